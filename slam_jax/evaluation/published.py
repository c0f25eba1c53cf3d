"""Numbers that papers and model cards give, to stand beside those measured here.

They are no target that a right program must meet: FID changes with the list of prompts, the
reference, the resizing and the number of pictures, and most of this is not told.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

TITLES = {"fid": "FID", "clip_score": "CLIP score", "cmmd": "CMMD"}


class Published(NamedTuple):
    """A number.

    Attributes:
      paper: who gives it.
      model: what drew the pictures.
      steps: network evaluations; a guided teacher needs twice as many.
      metric: a key of TITLES.
      preset: the one whose protocol is nearest.
      value: of the metric.
      protocol: what of the protocol is known.
    """

    paper: str
    model: str
    steps: int
    metric: str
    preset: str
    value: float
    protocol: str


SLAM = "SLAM, arXiv 2404.13903"
SLAM_30K = "COCO-2014, 30,000 prompts; the list, the reference and the resizing are not known"
SLAM_5K = "COCO-2017, 5,000 prompts; the list, the reference and the resizing are not known"
DMD2 = "DMD2, arXiv 2405.14867"
DMD2_30K = (
    "30,000 prompts of COCO-2014 in a published list (captions_coco14_test.txt), all 40,504 "
    "pictures of val2014, centre crop and Lanczos to 256, clean-fid"
)
PCM = "PCM, arXiv 2405.18407"
PCM_30K = (
    "FID to the pictures of Stable Diffusion 1.5 for 30,000 prompts of COCO-2014; the list and the "
    "resizing are not known"
)
CMMD = "cmmd-pytorch, github.com/sayakpaul/cmmd-pytorch"
CMMD_30K = (
    "30,000 prompts and 30,000 pictures of COCO-2014 in published lists; Stable Diffusion XL at "
    "1024 x 1024 with its default guidance, SDXL-Turbo at 512 x 512 with none"
)

PUBLISHED: tuple[Published, ...] = (
    Published(SLAM, "SLAM, SD 1.5", 4, "fid", "coco2014_30k", 10.06, SLAM_30K),
    Published(SLAM, "SLAM, SD 1.5", 4, "fid", "coco2017_5k", 20.77, SLAM_5K),
    Published(DMD2, "SD 1.5, guidance 3", 50, "fid", "coco2014_30k", 8.59, DMD2_30K),
    Published(DMD2, "LCM-LoRA, SD 1.5", 4, "fid", "coco2014_30k", 23.62, DMD2_30K),
    Published(DMD2, "DMD2, SD 1.5", 1, "fid", "coco2014_30k", 8.35, DMD2_30K),
    Published(CMMD, "SDXL", 30, "cmmd", "coco2014_30k", 0.696, CMMD_30K),
    Published(CMMD, "SDXL-Turbo", 1, "cmmd", "coco2014_30k", 0.548, CMMD_30K),
    *(
        Published(PCM, f"{model}, SD 1.5", steps, "fid", "teacher_30k", value, PCM_30K)
        for model, values in {"LCM": (53.4, 11.0, 6.7, 6.6), "PCM": (8.3, 9.8, 5.8, 5.0)}.items()
        for steps, value in zip((1, 2, 4, 8), values, strict=True)
    ),
)


def beside(rows: Sequence[Mapping[str, Any]], preset: str) -> str:
    """A Markdown table of what was measured and, behind it, what was published; below the table
    what is known of the published protocols.

    Args:
      rows: {"model": ..., "steps": ..., name of a metric: its value, ...} each.
      preset: the name of the one that they were measured with.
    """
    known = [number for number in PUBLISHED if number.preset == preset]
    ours = [name for row in rows for name in row if name not in ("model", "steps")]
    names = list(dict.fromkeys([*ours, *(number.metric for number in known)]))
    lines = [["model", "steps", *(TITLES.get(name, name) for name in names), "by"]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        values = [_number(row[name]) if name in row else "" for name in names]
        lines.append([str(row["model"]), str(row["steps"]), *values, "this measurement"])
    for number in known:
        values = [_number(number.value) if name == number.metric else "" for name in names]
        lines.append([number.model, str(number.steps), *values, number.paper])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = dict.fromkeys(f"- {number.paper}: {number.protocol}." for number in known)
    return "\n".join([table, "", *notes]) if notes else table


def _number(value: float) -> str:
    return f"{value:.4g}"
