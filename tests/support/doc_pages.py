"""The README and the pages of docs/, and the blocks of code in them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Pages with commands or Python, in the order in which a reader meets them: a command may need what
# an earlier one has made.
NAMES = (
    "getting_started",
    "flow",
    "emoji",
    "playground",
    "stable_diffusion",
    "lora",
    "data",
    "pretraining",
    "evaluation",
    "scaling",
    "reliability",
    "performance",
    "results",
    "extending",
)
PAGES = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in NAMES)]


def blocks(page: Path, language: str) -> list[str]:
    """The code of every block in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
