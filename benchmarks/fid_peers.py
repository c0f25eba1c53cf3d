"""FID of two folders of pictures by slam_jax, torch-fidelity and clean-fid, with the same weights.

    python -m venv .venv-peers
    .venv-peers/bin/pip install torch==2.14.1 torchvision==0.29.1 torch-fidelity==0.4.0 \\
        clean-fid==0.1.35
    PYTHONPATH=. python benchmarks/fid_peers.py --python .venv-peers/bin/python

The pictures and Inception's weights are random, from seeds. The other programs run with the Python
of `--python`, as their torchvision fits another torch. It fails where numbers differ by more than
ALLOWED. What was measured is in fid_peers.json in benchmarks/results/ (or --out). Covariances of
fewer than 2,049 pictures are singular, which none of the programs minds.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import torch
from fid_of_peers import PACKAGES as PEERS
from result import FOLDER, device, made_by, positive, write

from slam_jax.drawing.metrics.metric import Drawn
from slam_jax.drawing.metrics.registry import measure
from slam_jax.evaluation.images import open_images
from slam_jax.evaluation.reference import from_pictures
from slam_jax.features.choose import open_networks
from slam_jax.features.extract import Extractor
from slam_jax.parallel import runtime
from slam_jax.parallel.sharding import make_mesh

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests/support"))
import random_inception  # noqa: E402
import smooth_pictures  # noqa: E402

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow")
# Metric, the program that it is compared with, and the largest difference.
ALLOWED = (
    ("fid_tf1", "torch-fidelity", 1e-3),
    ("precision", "torch-fidelity", 1e-2),
    ("recall", "torch-fidelity", 1e-2),
    ("fid", "clean-fid", 1e-2),
)
NETWORKS = ("inception", "inception_tf1")


def write_weights(path: Path) -> None:
    """Random ones, with the names and in the layout of pytorch-fid's file."""
    arrays = random_inception.published()
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


def ours(drawn: Path, real: Path, weights: Path, batch: int) -> dict[str, float]:
    """All metrics that are compared, as slam-jax measures pictures in files.

    Args:
      drawn, real: folders of pictures.
      weights: of Inception.
      batch: pictures at a time.
    """
    given = [f"{name}={weights}" for name in NETWORKS]
    mesh = make_mesh(devices=jax.local_devices())
    extractor = Extractor(open_networks(NETWORKS, given, "weights"), mesh, batch * mesh.size)
    features = {}
    with tempfile.TemporaryDirectory() as folder:
        for whose, pictures in (("model", drawn), ("reference", real)):
            seen = from_pictures(open_images(pictures), Path(folder) / whose, extractor)
            features |= {(whose, name): rows for name, rows in seen.features.items()}
        found = measure(Drawn(None, (), features=features), ["fid", "fid_tf1"])
        # torch-fidelity has precision and recall in the features of its FID.
        resized = {(whose, "inception"): features[whose, "inception_tf1"] for whose, _ in features}
        return found | measure(Drawn(None, (), features=resized), ["precision", "recall"])


def theirs(python: str, *arguments: Any) -> dict[str, Any]:
    """What fid_of_peers.py prints.

    Args:
      python: that has the programs.
      arguments: of the script.
    """
    command = [python, str(HERE / "fid_of_peers.py"), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: --python {python}: cannot measure; pip install {' '.join(PEERS[:4])}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(ours: dict[str, float], theirs: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a metric: both numbers and their difference, absolute and relative."""
    rows = []
    for metric, program, allowed in ALLOWED:
        number, other = ours[metric], theirs[program][metric.removesuffix("_tf1")]
        difference = abs(number - other)
        row = {"metric": metric, "ours": number, "program": program, "theirs": other}
        relative = difference / abs(other) if other else None
        rows.append({**row, "difference": difference, "relative": relative, "allowed": allowed})
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="that has the other programs")
    parser.add_argument("--count", type=positive, default=64, help="pictures of a size in a set")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args(argv)
    runtime.configure()
    made = {**made_by("fid_peers.py", argv, PACKAGES), "device": device()}
    batch = math.gcd(options.count, 16)  # torch-fidelity takes pictures of one size at a time
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "inception.pth"
        write_weights(weights)
        sets = smooth_pictures.write_two_sets(Path(folder), options.count)
        found = theirs(options.python, *sets, weights, batch)
        rows = compare(ours(*sets, weights, batch), found)
    shapes = " and ".join(f"{width} x {height}" for height, width in smooth_pictures.SHAPES)
    pictures = f"2 sets, {options.count} of each size: {shapes}"
    report = {**made, "their_versions": found["versions"], "pictures": pictures, "compared": rows}
    write(report, options.out / "fid_peers.json")
    if wrong := [row["metric"] for row in rows if row["difference"] > row["allowed"]]:
        sys.exit(f"error: differs by more than is allowed: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
