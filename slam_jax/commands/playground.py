"""slam-jax playground: a page in the browser whose picture follows the prompt while one types.

slam-jax playground --model runs/emoji --prompt "noto emoji of green apple"
slam-jax playground --model runs/emoji --teacher assets/emoji_teacher --teacher-guidance 3
"""

import argparse
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from slam_jax.base.errors import InputError
from slam_jax.commands.command import (
    add_lora_options,
    add_size_options,
    add_version_options,
    check_counts,
    check_seed,
    parser_of,
    run,
)
from slam_jax.drawing.draw import TEACHER_GUIDANCE, choose_guidance
from slam_jax.families.family import Model
from slam_jax.parallel import runtime
from slam_jax.recipes.measure import load_teacher
from slam_jax.recipes.student import load, load_options
from slam_jax.serving.playground import Artist, Wish, option
from slam_jax.serving.playground_page import build, gradio_to_come, serve

MOST_STEPS = 1000
MOST_WAITING = 10_000
PORTS = 65535


def check_options(arguments: argparse.Namespace) -> None:
    """Refuses what is wrong whatever the model; looks whether the port is free.

    Raises:
      InputError: names the option.
    """
    check_seed(arguments.seed)
    check_counts(arguments, "steps", "teacher_steps", most=MOST_STEPS)
    check_counts(arguments, "queue", most=MOST_WAITING)
    check_counts(arguments, "port", most=PORTS)
    try:
        with socket.create_server((arguments.host, arguments.port)):
            pass
    except OSError as error:
        where = f"--host {arguments.host} --port {arguments.port}"
        raise InputError(f"{where}: {error.strerror}; choose another") from error


def sample_options(arguments: argparse.Namespace) -> list[str]:
    """The options of slam-jax sample that load the same model, to draw in the same way."""
    words = option("model", arguments.model)
    for name in ("revision", "variant", "method"):
        if value := getattr(arguments, name):
            words += option(name, value)
    for name in ("width", "height", "guidance"):
        if (value := getattr(arguments, name)) is not None:
            words += [f"--{name}", str(value)]
    for lora in arguments.lora:
        words += option("lora", lora)
    return words + dtype_option(arguments) + ["--allow-unused"] * arguments.allow_unused


def dtype_option(arguments: argparse.Namespace) -> list[str]:
    """That of slam-jax sample, where it is not what that does anyway."""
    return [] if arguments.dtype == "float32" else ["--dtype", arguments.dtype]


def read_teacher(arguments: argparse.Namespace, model: Model) -> tuple[Artist, int] | None:
    """The teacher and its steps; None: none is asked for.

    Raises:
      InputError: it cannot be read, or is not of the model's kind.
    """
    if arguments.teacher is None:
        return None
    teacher, guidance = load_teacher(arguments.teacher, model, arguments)
    words = [*option("model", arguments.teacher), "--guidance", str(guidance)]
    if (size := model.pipeline.image_size) is not None:
        words += ["--height", str(size[0]), "--width", str(size[1])]
    artist = Artist(teacher, words + dtype_option(arguments), guidance, arguments.dtype)
    return artist, arguments.teacher_steps


def work(arguments: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C."""
    check_options(arguments)
    start = time.perf_counter()
    with TemporaryDirectory(prefix="slam_jax_uploads_") as uploads:
        gradio = gradio_to_come(Path(uploads))
        runtime.probe()
        model = load(arguments.model, load_options(arguments))
        if model.note:
            print(f"note: {model.note}", file=sys.stderr)
        guidance = choose_guidance(model, arguments.guidance)
        artist = Artist(model, sample_options(arguments), guidance, arguments.dtype)
        teacher = read_teacher(arguments, model)
        example = model.pipeline.example_prompts[0]
        prompt = example if arguments.prompt is None else arguments.prompt
        first = Wish(prompt, arguments.steps, arguments.seed)
        print(f"compiling the program for {first.steps} steps", file=sys.stderr)
        artist.draw(first)
        page = build(gradio.result(), artist, first, teacher)
        address = serve(page, arguments.host, arguments.port, arguments.queue)
        print(f"ready after {time.perf_counter() - start:.1f} s", file=sys.stderr)
        print(f"open {address}; Ctrl-C ends it", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploads are removed then, too
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    os._exit(130)  # without waiting for threads that compile or draw


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = parser_of("playground", "A page whose picture follows the prompt while one types.")
    add = parser.add_argument
    add("--model", required=True, help="workdir of a finished run, folder, or hub repository")
    add_version_options(parser)
    add_lora_options(parser)
    add("--prompt", help="that the page begins with; None: an example of the model's")
    add("--steps", type=int, default=4, help="that the page begins with")
    add("--seed", type=int, default=0, help="of the noise that the page begins with")
    add_size_options(parser)
    add("--guidance", type=float, help=f"usual scale, of teachers only; None: {TEACHER_GUIDANCE}")
    add("--teacher", help="folder or hub repository, to draw beside the student; None: nobody does")
    add("--teacher-steps", type=int, default=50, help="that the teacher draws in")
    add("--teacher-guidance", type=float, help="usual scale; None: what the student learnt")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: for other machines too")
    add("--port", type=int, default=7860, help="to listen at")
    add("--queue", type=int, default=16, help="requests that may wait; more are refused")
    run(work, parser, argv)
