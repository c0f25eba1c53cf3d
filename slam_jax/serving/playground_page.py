"""The page of slam-jax playground, by gradio; nothing in it comes from another server."""

import base64
import json
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slam_jax.base.errors import InputError
from slam_jax.serving.playground import Artist, Wish

MOST_STEPS = 8  # of the slider, unless it begins with more
MOST_SEED = 999  # of the slider
LARGEST_UPLOAD = "32mb"
DAY = 24 * 60 * 60  # seconds that an upload is kept
CSS = """
.picture img {
  width: 100%; max-width: 32rem; image-rendering: pixelated;
  border: 1px solid var(--border-color-primary);
}
.said { min-height: 1.5em; }
"""


def gradio_to_come(uploads: Path) -> Future[Any]:
    """The package, which is told to ask nobody for anything. A thread imports it, as that takes
    seconds, in which a model can be loaded.

    Args:
      uploads: folder for them.

    Raises:
      InputError: it is not there.
    """
    if find_spec("gradio") is None:
        raise InputError("the package gradio is not there; pip install 'slam_jax[playground]'")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    return ThreadPoolExecutor(1).submit(_import_gradio)


def _import_gradio() -> Any:
    import gradio

    return gradio


def build(gradio: Any, artist: Artist, first: Wish, teacher: tuple[Artist, int] | None) -> Any:
    """The page.

    Args:
      gradio: the package.
      artist: whose pictures follow the prompt.
      first: what the page begins with.
      teacher: draws beside it on request, in so many steps; None: there is none.
    """
    with gradio.Blocks(
        analytics_enabled=False, title="slam_jax playground", delete_cache=(DAY, DAY)
    ) as page:
        with gradio.Row():
            with gradio.Column(min_width=240):
                inputs = _inputs(gradio, artist, first)
                wanted = gradio.Checkbox(
                    label="the teacher's picture", visible=bool(teacher), elem_id="wanted"
                )
            with gradio.Column(scale=2), gradio.Row():
                shown = _outputs(gradio, "student", "draws the same picture")
                theirs = _outputs(gradio, "teacher", "draws the teacher's") if teacher else []
        _follow(gradio, [page.load], _drawer(artist), inputs, shown)
        if teacher:
            texts = [wanted, inputs[0], inputs[2]]
            _follow(gradio, [], _teacher_drawer(*teacher), texts, theirs)
    return page


def _inputs(gradio: Any, artist: Artist, first: Wish) -> list[Any]:
    """Prompt, steps and seed; image and strength, where the model takes them."""
    labels = ", ".join(artist.model.pipeline.labels)

    def slider(name, *values, **options):
        return gradio.Slider(*values, label=name, elem_id=name, **options)

    inputs = [
        gradio.Textbox(
            first.prompt,
            label="prompt",
            info=f"one of {labels}" if labels else None,
            autofocus=True,
            elem_id="prompt",
        ),
        slider("steps", 1, max(MOST_STEPS, first.steps), first.steps, step=1, precision=0),
        slider("seed", 0, max(MOST_SEED, first.seed), first.seed, step=1, precision=0),
    ]
    if artist.takes_images:
        inputs += [
            gradio.File(
                label="picture to go on from", file_types=["image"], height=120, elem_id="image"
            ),
            slider("strength", 0.1, 1, 0.6, step=0.1, precision=1, info="how much is drawn anew"),
        ]
    return inputs


def _outputs(gradio: Any, name: str, what: str) -> list[Any]:
    """A picture, what is said about it, and its command line."""
    with gradio.Column(min_width=240):
        return [
            gradio.HTML(elem_id=name, elem_classes="picture"),
            gradio.HTML(elem_id=f"{name}-said", elem_classes="said"),
            gradio.Textbox(
                label=what,
                interactive=False,
                buttons=["copy"],
                elem_id=f"{name}-command",
            ),
        ]


def _follow(gradio: Any, triggers: list[Any], function: Any, inputs: Any, outputs: Any) -> None:
    """Calls a function at every change; of those that come while it is at work, for the last."""
    lowest = json.dumps([getattr(component, "minimum", None) for component in inputs])
    gradio.on(
        triggers + [component.change for component in inputs],
        function,
        inputs,
        outputs,
        # A slider's number that is deleted, to write another, is none for a moment.
        js=f"(...values) => values.map((value, i) => value ?? {lowest}[i])",
        trigger_mode="always_last",
        concurrency_limit=1,
        show_progress="hidden",
        api_visibility="private",
    )


def _drawer(artist: Artist) -> Any:
    def draw(prompt, steps, seed, image=None, strength=1.0):
        path = None if image is None else Path(image)
        yield from show(artist, Wish(prompt, steps, seed, path, strength))

    return draw


def _teacher_drawer(artist: Artist, steps: int) -> Any:
    def draw(wanted, prompt, seed):
        if wanted:
            yield from show(artist, Wish(prompt, steps, seed))
        else:
            yield "", "", ""

    return draw


def show(artist: Artist, wish: Wish) -> Iterator[tuple[str, str, str]]:
    """A picture in HTML, what is said about it, and its command line; of what is refused, why."""
    steps = f"{wish.steps} step{'s' * (wish.steps > 1)}"
    try:
        if artist.compiles(wish):
            yield "", f"compiling the program for {steps}", ""
        drawn = artist.draw(wish)
    except InputError as error:
        yield "", escape(str(error)), ""
        return
    data = base64.b64encode(drawn.png).decode()
    said = f"{drawn.seconds * 1000:.0f} ms for {steps}"
    if drawn.teacher:
        said += f" {drawn.teacher}"
    if drawn.cut:
        said += f"; too long for the text encoder, cut off: {drawn.cut!r}"
    image = f'<img alt="{escape(wish.prompt)}" src="data:image/png;base64,{data}">'
    yield image, escape(said), drawn.command


def serve(page: Any, host: str, port: int, queue: int) -> str:
    """Serves a page from threads of its own; its address.

    Args:
      page: of `build`.
      host, port: where it listens.
      queue: requests that may wait; more are refused.

    Raises:
      OSError: it cannot listen there.
    """
    os.environ["no_proxy"] = "*"  # gradio asks its own server whether it is there
    page.queue(max_size=queue)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        max_file_size=LARGEST_UPLOAD,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        css=CSS,
    )
    return address
