"""Compiled programs are kept between starts, in ~/.cache/slam_jax/compiled.

That is JAX's persistent compilation cache. Its keys are the program, the flags, jaxlib and the
kind of device, on a CPU with its instruction set: what another machine compiled is not found. A
program that is found has the bits of the one that was compiled.

JAX's own options win: JAX_COMPILATION_CACHE_DIR names another folder, which JAX then looks after
alone, or none where it is empty; JAX_ENABLE_COMPILATION_CACHE=0 turns the cache off.

Two things JAX leaves open, for which the folder is looked through at each start. It writes entries
in place: one that a kill left half written would be read in vain, with a warning, and never
replaced. And the folder would grow for ever: jax_compilation_cache_max_size locks the folder for
every program that is read, and in JAX 0.10 a kill at the wrong moment ends all writing (jax issue
39880).
"""

import os
import sys
import zlib
from pathlib import Path

import jax

FOLDER = "slam_jax/compiled"
ENTRIES = "*-cache"
MIN_SECONDS = 0.5  # what compiles faster is not worth a file
MAX_BYTES = 8 * 2**30
CHUNK = 2**20
ZSTANDARD = b"\x28\xb5\x2f\xfd"
CLOCKS = 60  # seconds by which those of a shared file system may differ


def configure(alone: bool) -> None:
    """Turns the cache on, unless JAX has been told about one. Call it before JAX compiles.

    Args:
      alone: this is the run's only process. Several use a folder that JAX has been told of, which
        they must share: one that finds a program does not help the others to compile it.
    """
    # cuDNN's attention is a "custom partitioning" whose address in memory would be in the key, so
    # that no program with it is ever found. What it stands for comes with JAX's version.
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
    chosen = jax.config.jax_compilation_cache_dir
    if chosen == "":  # half on to JAX: XLA would write into the current folder
        jax.config.update("jax_compilation_cache_dir", None)
    if not alone or chosen is not None or not jax.config.jax_enable_compilation_cache:
        return
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        look_after(folder, MAX_BYTES)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        print(
            f"note: programs are compiled anew at each start: {error}; JAX_COMPILATION_CACHE_DIR "
            "can name a folder for them",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def look_after(folder: Path, max_bytes: int) -> None:
    """Removes entries that are not whole, and where there are too many, those not read for longest.

    Other processes may read, write and look after the same folder.

    Raises:
      OSError: the folder cannot be written.
    """
    stamp = folder / ".looked_after"
    since = stamp.stat().st_mtime - CLOCKS if stamp.exists() else 0
    stamp.touch()  # first, so that what is written meanwhile is looked at the next time
    entries = {}
    for path in folder.glob(ENTRIES):
        try:
            entries[path] = path.stat()
        except FileNotFoundError:
            continue  # another process removed it
    for path, stat in entries.items():
        # One that is being written has no end yet either. To remove it costs one compilation.
        if stat.st_mtime >= since and not is_whole(path):
            path.unlink(missing_ok=True)
    total = sum(stat.st_size for stat in entries.values())
    for path in sorted(entries, key=lambda path: entries[path].st_atime):
        if total <= max_bytes:
            break
        path.unlink(missing_ok=True)
        total -= entries[path].st_size


def is_whole(path: Path) -> bool:
    """Whether a compressed entry has its end.

    Where a library for Zstandard is installed, JAX writes that; such entries are not judged.
    """
    stream, start = zlib.decompressobj(), b""
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                start = start or chunk[: len(ZSTANDARD)]
                if start == ZSTANDARD:
                    return True
                stream.decompress(chunk)
    except FileNotFoundError:  # another process removed it
        return True
    except zlib.error:
        return False
    return stream.eof
