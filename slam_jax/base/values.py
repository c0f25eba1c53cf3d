"""Values that no option of a command or a config can have."""

import math
import os
from pathlib import Path
from typing import Any

MOST = 2**31 - 1  # of a whole number that has no smaller limit
LONGEST = 255  # bytes of a file's name


def expected_of(value: Any) -> str | None:
    """What is expected in the place of an impossible value, in words; None if it is possible.

    Args:
      value: a number, a text, a path, or several of them.
    """
    if isinstance(value, tuple | list):
        return next((said for item in value if (said := expected_of(item))), None)
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if type(value) is int and abs(value) > MOST:
        return f"at most {MOST:,}" if value > 0 else f"at least {-MOST:,}"
    if isinstance(value, str | Path):
        return _expected_of_text(value)
    return None


def _expected_of_text(value: str | Path) -> str | None:
    if "\0" in str(value):
        return "text without a NUL"
    if isinstance(value, Path):  # whose names may be any bytes
        too_long = any(len(os.fsencode(name)) > LONGEST for name in value.parts)
        return f"names of at most {LONGEST} bytes" if too_long else None
    try:
        value.encode()
    except UnicodeEncodeError:
        return "text in UTF-8"
    return None
