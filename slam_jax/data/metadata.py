"""What lies beside an image: captions and records, in text, JSON or JSON lines; and how large the
image is."""

from collections.abc import Callable, Mapping
from typing import Any

from slam_jax.base.json_file import parse_json
from slam_jax.data import images
from slam_jax.data.rejects import Rejected

BEGINNING = 2**16  # bytes in which the headers of nearly every JPEG and PNG end


def captions(value: Any, name: str) -> tuple[str, ...]:
    """The captions that the contents of a text file, or a value in a record, are.

    Args:
      value: a text, in UTF-8 where it is bytes, or a list of texts; None: the record has none.
      name: the example's.

    Raises:
      Rejected: there are none.
    """
    if value is None:
        raise Rejected("no caption", name)
    texts = [text for text in (value if isinstance(value, list) else [value]) if text is not None]
    if not all(isinstance(text, str | bytes) for text in texts):
        raise Rejected("caption is not text", name)
    try:
        texts = [text.decode("utf-8-sig") if isinstance(text, bytes) else text for text in texts]
        # JSON can spell half a surrogate pair, which is no character and breaks tokenizers.
        "".join(texts).encode()
    except UnicodeError as error:
        raise Rejected("caption not UTF-8", name) from error
    if not (found := tuple(text.strip() for text in texts if text.strip())):
        raise Rejected("empty caption", name)
    return found


def record(content: bytes, name: str) -> dict[str, Any]:
    """The object that a JSON file, or a line of JSON, is.

    Args:
      content: of the file or line.
      name: the example's.

    Raises:
      Rejected: it is not one.
    """
    try:
        value = parse_json(content)
    except ValueError as error:
        raise Rejected("damaged JSON", name) from error
    if not isinstance(value, dict):
        raise Rejected("JSON is not an object", name)
    return value


def watermark(values: Mapping[str, Any]) -> float:
    """The probability of a watermark ("pwatermark") in a record; NaN: not known."""
    try:
        return float(values["pwatermark"])
    except (KeyError, TypeError, ValueError):
        return float("nan")


def image_size(read: Callable[[int], bytes], size: int, name: str) -> tuple[int, int]:
    """Height and width of an image file, of which mostly only the beginning is read.

    Args:
      read: gives that many bytes from the file's beginning.
      size: bytes of the file.
      name: the example's.

    Raises:
      Rejected: `images.read_size` does.
    """
    if size > BEGINNING:
        try:
            return images.read_size(read(BEGINNING), name)
        except Rejected:
            pass  # headers can be longer, and a WebP is read whole: the whole file decides
    return images.read_size(read(size), name)


def printable(name: str) -> str:
    """A file's name, which may be any bytes, on one line of text."""
    return "".join(c if c.isprintable() else "?" for c in name)
