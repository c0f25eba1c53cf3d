"""Text files that are whole or not there at all, whenever a run is killed."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes beside `path`, then moves it there."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)
