"""Command lines of small measurements, and their numbers."""

import json

METRIC_NAMES = "fd_colours_reference,fd_colours_teacher"


def options(run, real, out, *more):
    return [
        *("--model", str(run), "--count", "70", "--steps", "1,2", "--teacher-steps", "3"),
        *("--metrics", METRIC_NAMES, "--reference", str(real), "--out", str(out), *more),
    ]


def results(out):
    return json.loads((out / "results.json").read_text())
