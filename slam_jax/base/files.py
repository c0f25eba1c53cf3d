"""Files that are whole or not there at all, whenever a run is killed and whoever else writes."""

import errno
import fcntl
import hashlib
import os
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slam_jax.base.errors import InputError

# The disk, the quota, a file's size; or a file system that became read-only after an error.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def room_for(folder: Path, advice: str) -> Iterator[None]:
    """Turns a full disk into a refusal.

    Args:
      folder: what is written to.
      advice: what to do.

    Raises:
      InputError: it is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = error.filename or folder
        raise InputError(f"{where}: cannot be written ({error.strerror}); {advice}") from error


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


def sha256(path: Path) -> str:
    """The hash of a file.

    Raises:
      InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def is_empty(folder: Path) -> bool:
    """Whether it is a folder with nothing in it but hidden files: a lock, or what a killed process
    left `unfinished`."""
    return folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder, which is made; the system opens the lock again however
    the process ends.

    Raises:
      InputError: another process is in it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise InputError(
                f"{folder}: another run is using it ({lock.read().strip() or 'just begun'}); let "
                "it end, or choose another folder"
            ) from error
        except OSError as error:
            print(f"note: {folder}: cannot be locked ({error.strerror})", file=sys.stderr)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


def check_writable(path: Path) -> None:
    """Makes a file in the place of one that is to come, or in its folder, and takes it and the
    folders that were made for it away again.

    Raises:
      InputError: it cannot be made; names the file or folder.
    """
    new: list[Path] = []
    try:
        folder = path if path.is_dir() else path.parent
        new += (one for one in (folder, *folder.parents) if not one.exists())
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".{uuid.uuid4().hex}.tmp"
        trial.touch()
        trial.unlink()
    except OSError as error:
        in_file = isinstance(error, FileExistsError)  # in the place of a folder
        why = os.strerror(errno.ENOTDIR) if in_file else error.strerror
        raise InputError(f"{path}: cannot be written ({why})") from error
    finally:
        with suppress(OSError):
            for one in new:
                one.rmdir()


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file; a text gets a line end."""
    with unfinished(path) as beside:
        beside.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())
