"""Makes a data set of captioned emoji, in two or three styles, of packages that npm has.

slam-jax prepare emoji --packages FOLDER --out data/emoji

What it makes is described in slam_jax/data/emoji.py, and is the source emoji:FOLDER.
"""

import argparse

from slam_jax.base.out_folder import whole_folder
from slam_jax.commands.command import check_counts, check_out, parser_of, path, refusals
from slam_jax.data.emoji import RECORD_FILE, SPLITS
from slam_jax.data.emoji_write import EXTRAS, FLUENT, NOTO, OPENMOJI, read_package, write


def work(arguments: argparse.Namespace) -> None:
    """Makes what the command line asks for; says what was made."""
    check_counts(arguments, "size")
    check_out(arguments.out)
    styles = (NOTO, FLUENT, OPENMOJI) if arguments.openmoji else (NOTO, FLUENT)
    extras = [extra for extra in EXTRAS if extra in arguments.include]

    def is_ours(names: set[str]) -> bool:
        return names == {RECORD_FILE, *SPLITS}

    packages = {style: read_package(arguments.packages, style) for style in styles}
    with whole_folder(arguments.out, is_ours, "folder of emoji") as folder:
        record = write(folder, packages, extras, arguments.size)
    for name, style in record["styles"].items():
        print(f"{name:9} {style['train']} to train on, {style['held_out']} held out")
    print(f"wrote {arguments.out}: {record['pictures']} pictures; the source emoji:{arguments.out}")


def main(argv: list[str]) -> None:
    """The command line."""
    what = "Make captioned pictures of emoji from packages of npm; training reads emoji:FOLDER."
    parser = parser_of("prepare emoji", what)
    add = parser.add_argument
    add("--packages", type=path, required=True, help="folder with the .tgz files of npm pack")
    add("--out", type=path, required=True, help="folder to make")
    add("--openmoji", action="store_true", help="a third style, whose pictures are CC BY-SA")
    add("--size", type=int, default=64, help="pixels of a side")
    add("--include", nargs="+", choices=EXTRAS, default=[], help="what is left out otherwise")
    arguments = parser.parse_args(argv)
    with refusals():
        work(arguments)
