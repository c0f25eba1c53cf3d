"""slam-jax reference: what networks see in real pictures, in a file that `evaluate` reads.

slam-jax reference --images coco/val2014 --size 256 --metrics fid,cmmd --out coco2014.npz
"""

import argparse
import shutil

from slam_jax.base.errors import InputError
from slam_jax.base.files import locked, room_for
from slam_jax.commands.command import (
    check_counts,
    check_out,
    check_size,
    parser_of,
    path,
    place,
    run,
)
from slam_jax.commands.evaluate import add_network_options
from slam_jax.drawing.metrics.registry import networks_of
from slam_jax.evaluation.images import open_images
from slam_jax.evaluation.parts import claim
from slam_jax.evaluation.reference import RealPictures, from_pictures, write_statistics
from slam_jax.evaluation.views import view_of
from slam_jax.features.choose import open_networks
from slam_jax.features.extract import Extractor
from slam_jax.parallel import runtime
from slam_jax.parallel.sharding import make_mesh
from slam_jax.recipes.measure import read_metrics


def work(arguments: argparse.Namespace) -> None:
    """Looks at all pictures, and writes the file; killed, the same command goes on."""
    check_counts(arguments, "batch")
    check_size(arguments.size)
    if arguments.out.suffix != ".npz":
        raise InputError(f"--out {arguments.out}: expected a file that ends in .npz")
    check_out(arguments.out)
    metrics = [m for m in read_metrics(arguments.metrics) if m.compares_with == "reference"]
    if not (names := networks_of(metrics)):
        raise InputError(f"--metrics {arguments.metrics}: none of them reads real pictures")
    runtime.probe()
    images = open_images(arguments.images)
    networks = open_networks(names, arguments.weights, "--weights")
    identities = {name: network.identity for name, network in networks.items()}
    mesh = make_mesh()
    batch = arguments.batch * mesh.size
    extractor = Extractor(networks, mesh, batch, view_of(arguments.size))
    folder = arguments.out.with_suffix(".unfinished")
    how = {"size": arguments.size, "networks": identities}
    if len(images) < 2:
        raise InputError(f"{arguments.images}: one picture; expected two or more")
    advice = "make room; the same command goes on"
    with locked(folder), room_for(folder, advice):
        claim({"images": images.name, "identity": images.identity, **how}, folder)
        real = from_pictures(images, folder / "features", extractor)
        real = RealPictures(real.features, {**real.record, **how})
        write_statistics(arguments.out, real, metrics)
    shutil.rmtree(folder)
    print(f"wrote {arguments.out}: {len(images)} pictures")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("reference", "What networks see in real pictures, for slam-jax evaluate.")
    add = parser.add_argument
    add("--images", type=place, required=True, help="folder, tar shards or zip of pictures")
    add("--metrics", default="fid", help="that will compare with them, between commas")
    add("--size", type=int, default=256, help="centre square of this size, by Lanczos; 0: as it is")
    add_network_options(parser)
    add("--batch", type=int, default=32, help="pictures that a device looks at at a time")
    add("--out", type=path, required=True, help="file, .npz")
    run(work, parser, argv)
