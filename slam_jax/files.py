"""Files that are whole or not there at all, whenever a run is killed and whoever else writes."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which no other process has; becomes `path` at the end, and
    disappears when anything fails."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield beside
        beside.replace(path)
    finally:
        with suppress(OSError):  # what went wrong before matters more
            beside.unlink(missing_ok=True)


def names_in(folder: Path) -> set[str]:
    """Names of what is in a folder, without what a killed process left `unfinished`."""
    names = {path.name for path in folder.iterdir()}
    return {name for name in names if not (name.startswith(".") and name.endswith(".tmp"))}


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file; a text gets a line end."""
    with unfinished(path) as beside:
        beside.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())
