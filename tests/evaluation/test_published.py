"""Published numbers beside measured ones."""

import pytest

from slam_jax.evaluation.presets import PRESETS
from slam_jax.evaluation.published import PUBLISHED, TITLES, beside


def test_each_number_has_a_preset_a_title_and_a_protocol():
    for number in PUBLISHED:
        assert number.preset in PRESETS and number.metric in TITLES
        assert number.protocol and number.value > 0 and number.steps > 0
    keys = [(number.model, number.steps, number.metric, number.preset) for number in PUBLISHED]
    assert len(set(keys)) == len(keys)


def test_a_table_with_both():
    rows = [
        {"model": "student", "steps": 4, "fid": 10.0649, "clip_score": 0.30149},
        {"model": "student", "steps": 8, "fid": 123.456, "mine": 2},
    ]
    assert beside(rows, "coco2017_5k") == (
        "| model | steps | FID | CLIP score | mine | by |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| student | 4 | 10.06 | 0.3015 |  | this measurement |\n"
        "| student | 8 | 123.5 |  | 2 | this measurement |\n"
        "| SLAM, SD 1.5 | 4 | 20.77 |  |  | SLAM, arXiv 2404.13903 |\n"
        "\n"
        "- SLAM, arXiv 2404.13903: COCO-2017, 5,000 prompts; the list, the reference and the "
        "resizing are not known."
    )


def test_a_metric_that_only_others_measured_has_a_column():
    table = beside([{"model": "student", "steps": 1, "fid": 9.0}], "coco2014_30k")
    head, _, ours, *others = table.splitlines()
    assert head == "| model | steps | FID | CMMD | by |"
    assert ours == "| student | 1 | 9 |  | this measurement |"
    source = "cmmd-pytorch, github.com/sayakpaul/cmmd-pytorch"
    assert f"| SDXL-Turbo | 1 |  | 0.548 | {source} |" in others
    assert table.count("\n- ") == 3  # a line for each source


def test_where_nothing_is_published_the_table_is_ours_alone():
    table = beside([{"model": "student", "steps": 1, "fid": 9.0}], "laion_5k")
    assert len(table.splitlines()) == 3


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_pcm_is_compared_with_the_teacher(steps):
    table = beside([], "teacher_30k")
    assert f"| PCM, SD 1.5 | {steps} |" in table and f"| LCM, SD 1.5 | {steps} |" in table
