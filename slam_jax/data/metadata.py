"""What lies beside an image: captions and records, in text, JSON or JSON lines; and how large the
image is."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from slam_jax.data import images
from slam_jax.data.rejects import Rejected

BEGINNING = 2**16  # bytes in which the headers of nearly every JPEG and PNG end
LARGEST = 2**28  # bytes; a file that is larger is no image, caption or record to train on


def text_captions(content: bytes, name: str) -> tuple[str, ...]:
    """The caption that a text file is.

    Args:
      content: the file's.
      name: the example's.

    Raises:
      Rejected: there is none.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Rejected("caption not UTF-8", name) from error
    return captions(text, name)


def captions(value: Any, name: str) -> tuple[str, ...]:
    """The captions that a value in a record is: a text or a list of them.

    Args:
      value: None where the record does not have it.
      name: the example's.

    Raises:
      Rejected: there are none.
    """
    if value is None:
        raise Rejected("no caption", name)
    values = value if isinstance(value, list) else [value]
    texts = [text for text in values if text is not None]
    if not all(isinstance(text, str) for text in texts):
        raise Rejected("caption is not text", name)
    stripped = tuple(text.strip() for text in texts)
    if not any(stripped):
        raise Rejected("empty caption", name)
    # JSON can spell half a surrogate pair, which is no character and breaks tokenizers.
    if not all(text.isascii() or _encodes(text) for text in stripped):
        raise Rejected("caption not UTF-8", name)
    return tuple(filter(None, stripped))


def record(content: bytes, name: str) -> dict[str, Any]:
    """The object that a JSON file, or a line of JSON, is.

    Args:
      content: of the file or line.
      name: the example's.

    Raises:
      Rejected: it is not one.
    """
    try:
        value = json.loads(content)
    # Numbers of thousands of digits, brackets nested thousands deep.
    except (ValueError, RecursionError) as error:
        raise Rejected("damaged JSON", name) from error
    if not isinstance(value, dict):
        raise Rejected("JSON is not an object", name)
    return value


def watermark(values: Mapping[str, Any]) -> float:
    """The probability of a watermark ("pwatermark") in a record; NaN: not known."""
    try:
        return float(values.get("pwatermark"))
    except (TypeError, ValueError, OverflowError):
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
    if size > LARGEST:
        raise Rejected("file above 256 MB", name)
    if size > BEGINNING:
        try:
            return images.read_size(read(BEGINNING), name)
        except Rejected:
            pass  # headers can be longer, and a WebP is read whole: the whole file decides
    return images.read_size(read(size), name)


def printable(name: str) -> str:
    """A file's name, which may be any bytes, on one line of text."""
    return name if name.isprintable() else "".join(c if c.isprintable() else "?" for c in name)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
