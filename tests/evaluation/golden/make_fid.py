"""Writes fid.json: what torch-fidelity and clean-fid measure of two small sets of pictures.

    python3 -m venv .venv-peers
    .venv-peers/bin/pip install torch==2.14.1 torchvision==0.29.1 clean-fid==0.1.35 \
        torch-fidelity==0.4.0
    .venv-peers/bin/python tests/evaluation/golden/make_fid.py

torchvision fits another torch than the tests need, so that they cannot call these programs.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "benchmarks")]
import fid_of_peers  # noqa: E402
import random_inception  # noqa: E402
import smooth_pictures  # noqa: E402

COUNT = 8  # pictures of each size in each set


def main():
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "inception.pth"
        arrays = random_inception.published()
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, weights)
        sets = smooth_pictures.write_two_sets(Path(folder), COUNT)
        found = fid_of_peers.measure(*sets, weights, COUNT)
    text = json.dumps({"count": COUNT, **found}, indent=2)
    (HERE / "fid.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
