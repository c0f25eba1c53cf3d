"""`slam-jax COMMAND ...`, or `python -m slam_jax COMMAND ...`."""

import sys
from importlib import import_module

from slam_jax import __version__

COMMANDS = {
    "train": "train a student, or go on with it; then draw, measure and export it",
    "pretrain": "train a small Stable Diffusion from nothing, to be a teacher",
    "sample": "draw with a student or a teacher",
    "playground": "a page in the browser that draws while one types",
    "evaluate": "measure a student or a teacher on many pictures",
    "reference": "what networks see in real pictures, for evaluate",
    "export": "write a student for diffusers, or a sampler that needs jax alone",
    "check": "look through a published few-step student, or a LoRA",
    "prepare": "encode pictures and captions once, for training; or make captioned emoji",
    "inspect": "what a source of training data holds",
    "plan": "what a run will need of each device",
    "replay": "look again at a step whose loss or gradient was not finite",
    "report": "write the page about a run again, finished or not",
}
HELP = "usage: slam-jax COMMAND [options]; slam-jax COMMAND --help says which\n\n" + "\n".join(
    f"  {name:10} {what}" for name, what in COMMANDS.items()
)


def main(argv: list[str] | None = None) -> None:
    """The command line; a command is imported when it is asked for."""
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(HELP)
    elif name == "--version":
        print(f"slam_jax {__version__}")
    elif name not in COMMANDS:
        sys.exit(f"error: {name}: no such command; expected one of {', '.join(COMMANDS)}")
    else:
        import_module(f"slam_jax.commands.{name}").main(argv[1:])


if __name__ == "__main__":
    main()
