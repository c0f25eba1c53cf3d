"""How the documentation is built; `make docs` does it."""

import inspect
import os
import re
import shutil
import sys
import typing
from pathlib import Path

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]
typing.GENERATING_DOCUMENTATION = "slam_jax"  # jaxtyping: Float[Array, "B"], without modules

import options_page  # noqa: E402

import slam_jax  # noqa: E402
from slam_jax.config.options import Config  # noqa: E402
from slam_jax.config.pretraining import Pretraining  # noqa: E402

project, author, copyright = "slam_jax", "The slam_jax authors", "The slam_jax authors"
version = release = slam_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "generated/*_table.md"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"slam_jax {version}"
html_static_path = ["_static"]
html_css_files = ["slam_jax.css"]
if "MATHJAX" in os.environ:  # a copy of MathJax, to look at the pages without a network
    mathjax_path = os.environ["MATHJAX"]

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # a test runs the notebook

default_role = "code"  # in docstrings `x` is code
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_use_ivar = True
napoleon_use_rtype = False


def copy_notebooks(app: typing.Any) -> None:
    """Copies examples/*.ipynb to where Sphinx looks for pages, and writes the tables of options."""
    generated = HERE / "generated"
    generated.mkdir(exist_ok=True)
    for notebook in (ROOT / "examples").glob("*.ipynb"):
        shutil.copy(notebook, generated)
    tables = {"options_table": Config(), "pretraining_table": Pretraining()}
    for name, options in tables.items():
        (generated / f"{name}.md").write_text(options_page.markdown(options))


def as_plain_text(
    app: typing.Any, what: str, name: str, obj: typing.Any, options: typing.Any, lines: list[str]
) -> None:
    """Shows a docstring as it is in the file: "*" and "|" are no markup, and indented lines of a
    module, its equations, keep their form."""
    shown, inside = [], False
    for line in lines:
        indented = what == "module" and (line.startswith("    ") or (inside and not line))
        if indented and not inside:
            shown += ["", "::", ""]
        elif inside and not indented:
            shown.append("")
        inside = indented
        shown.append(line if indented else re.sub(r"(`[^`]*`)|([*|])", escaped, line))
    lines[:] = shown


def escaped(found: re.Match) -> str:
    """Code as it is, anything else behind a backslash."""
    return found[1] or f"\\{found[2]}"


def properties_as_they_stand(
    app: typing.Any, what: str, name: str, obj: typing.Any, options: typing.Any, lines: list[str]
) -> None:
    """Undoes napoleon on a property, where it takes the words before a colon for a type."""
    if what == "property" and isinstance(obj, property):
        lines[:] = inspect.getdoc(obj).splitlines()


def skip_fields(
    app: typing.Any, what: str, name: str, obj: typing.Any, skip: bool, options: typing.Any
) -> bool | None:
    """Leaves out the fields of named tuples: "Attributes" tells what they are."""
    return True if type(obj).__name__ == "_tuplegetter" or inspect.isbuiltin(obj) else None


def setup(app: typing.Any) -> None:
    app.connect("builder-inited", copy_notebooks, priority=1)  # before autosummary
    app.connect("autodoc-process-docstring", as_plain_text, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", properties_as_they_stand, priority=600)  # after it
    app.connect("autodoc-skip-member", skip_fields)
