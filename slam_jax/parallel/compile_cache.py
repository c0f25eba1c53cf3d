"""Compiled programs are kept between starts, in ~/.cache/slam_jax/compiled: JAX's persistent cache,
unless JAX's own options name another folder, or none, or turn it off.

JAX (to 0.11.2) leaves two things open, for which the folder is looked through at each start. An
entry that a kill left half written is never replaced. And where jax_compilation_cache_max_size is
set, a kill between the two files of an entry ends all writing (jax issue 39880): it is not set.
"""

import os
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import jax

MIN_SECONDS = 0.5  # what compiles faster is not worth a file
MAX_BYTES = 8 * 2**30
ZSTANDARD = b"\x28\xb5\x2f\xfd"  # how entries begin where JAX finds a library for it


def configure(alone: bool) -> None:
    """Turns the cache on, unless JAX has been told about one. Call it before JAX compiles.

    Args:
      alone: this is the run's only process. Several need a folder that they share: one that finds
        a program does not help the others to compile it.
    """
    # cuDNN's attention is a "custom partitioning" whose address in memory would be in the key, so
    # that no program with it is ever found. What it stands for comes with JAX's version.
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
    chosen = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if chosen == "":  # half on to JAX: XLA would write into the current folder
        jax.config.update("jax_compilation_cache_dir", None)
    enabled = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    if not alone or chosen is not None or not enabled:
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        look_after(folder := folder / "slam_jax/compiled", MAX_BYTES)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        hint = "JAX_COMPILATION_CACHE_DIR can name a folder for them"
        print(f"note: programs are compiled at each start: {error}; {hint}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def look_after(folder: Path, max_bytes: int) -> None:
    """Makes the folder; removes torn entries, and of too many those not read for longest."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp, total = folder / ".looked_after", 0
    # The clocks of a shared file system may differ by a minute.
    since = stamp.stat().st_mtime - 60 if stamp.exists() else 0
    stamp.touch()  # first, so that what is written meanwhile is looked at the next time
    with suppress(FileNotFoundError):  # another process looks after the same folder
        for path in sorted(folder.glob("*-cache"), key=lambda path: -path.stat().st_atime):
            total, written = total + path.stat().st_size, path.stat().st_mtime
            if total > max_bytes or (written >= since and _is_torn(path.read_bytes())):
                path.unlink()


def _is_torn(entry: bytes) -> bool:
    with suppress(zlib.error):
        return not zlib.decompress(entry)
    return not entry.startswith(ZSTANDARD)  # which this Python may be unable to read
