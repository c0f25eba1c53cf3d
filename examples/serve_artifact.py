"""Serves a sampler that `slam-jax export --artifact` wrote over HTTP, without slam_jax.

    pip install jax flatbuffers pillow  # and transformers, for one that draws from texts
    python examples/serve_artifact.py runs/tiny_sampler --port 8000
    curl -o fox.png 'http://127.0.0.1:8000/?prompt=a+red+fox&seed=3'

A sampler without tokenizers, such as the digits', takes ?label=7 in place of a prompt. A picture is
drawn at a time, and other requests wait. Who is refused gets status 400 and one line.
"""

import argparse
import io
import runpy
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from PIL import Image


class Sampler:
    """A sampler in a folder, for several threads.

    Raises:
      ValueError: the folder holds none, or none for this machine.
    """

    def __init__(self, folder: Path):
        if not (folder / "draw.py").is_file():
            raise ValueError(f"{folder}: expected a folder that slam-jax export --artifact wrote")
        draw = runpy.run_path(str(folder / "draw.py"))
        about, self._lock = draw["read_about"](folder), threading.Lock()
        self._draw = draw["load"](folder)
        self._count, self._row = about["batch_sizes"][0], about["example"]["tokens"][0]
        self._tokenizers = []
        if names := sorted(path for path in folder.glob("tokenizer*") if path.is_dir()):
            from transformers import CLIPTokenizer

            self._tokenizers = [CLIPTokenizer.from_pretrained(name) for name in names]

    def png(self, query: str) -> bytes:
        """The picture that the part of a URL behind its question mark asks for.

        Raises:
          ValueError: it asks for none; in one line.
        """
        what = "prompt" if self._tokenizers else "label"
        asked = dict(parse_qsl(query, keep_blank_values=True))
        if what not in asked or not asked.keys() <= {what, "seed"}:
            raise ValueError(f"expected /?{what}=...&seed=..., got {sorted(asked)}")
        if self._tokenizers:
            row = self._tokens(asked["prompt"])
        else:
            row = [*self._row[:-1], number(asked, "label")]
        with self._lock:
            batch = self._draw(np.array([row] * self._count), number(asked, "seed"))
        file = io.BytesIO()
        Image.fromarray(batch[0].squeeze()).save(file, "png")
        return file.getvalue()

    def _tokens(self, prompt: str) -> list[list[int]]:
        options = dict(padding="max_length", truncation=True, max_length=len(self._row[0]))
        return [tokenizer(prompt, **options)["input_ids"] for tokenizer in self._tokenizers]


def number(asked: dict[str, str], name: str) -> int:
    """A whole number that was asked for; 0 where it was not."""
    text = asked.get(name, "0")
    if not text.isdecimal():
        raise ValueError(f"{name}={text!r}: expected a whole number")
    return int(text)


def server_of(sampler: Sampler, host: str, port: int) -> ThreadingHTTPServer:
    """A server that listens already; `serve_forever` answers.

    Raises:
      OSError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 - the library's name
            url = urlsplit(self.path)
            if url.path != "/":
                self._answer(404, "text/plain", b"expected /\n")
                return
            try:
                self._answer(200, "image/png", sampler.png(url.query))
            except ValueError as error:
                self._answer(400, "text/plain; charset=utf-8", f"{error}\n".encode())

        def _answer(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return ThreadingHTTPServer((host, port), Handler)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Serve an exported sampler over HTTP.")
    parser.add_argument("folder", type=Path, help="that slam-jax export --artifact wrote")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for other machines too")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    try:
        server = server_of(Sampler(arguments.folder), arguments.host, arguments.port)
    except (ValueError, OSError, OverflowError) as error:
        sys.exit(f"error: {error}")
    print(f"open http://{arguments.host}:{arguments.port}/; Ctrl-C ends it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
