"""Which tar shards a pattern means, and how they are read: on this machine or in a store that
fsspec knows."""

import math
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import fsspec
from braceexpand import braceexpand
from fsspec.implementations.local import LocalFileSystem

from slam_jax.base.errors import InputError

CONNECTIONS = 32  # shards of a store that are asked about at once
PAUSES = (1, 2)  # seconds before what failed is read again
MOST = 10**6  # shards of a pattern
INNERMOST = re.compile(r"\{([^{}]*)\}")
COUNTED = re.compile(r"\0(\d+)\0")
RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?\}")
COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$")
# What stores call the time or the version of a file's content.
VERSIONS = (
    *("mtime", "ETag", "etag", "LastModified", "Last-Modified", "last_modified"),
    *("updated", "created"),
)


@dataclass(frozen=True)
class Shard:
    """A tar file.

    Attributes:
      path: as its file system calls it.
      size: bytes.
      version: changes with the content, as far as can be known: time of change or the like.
      system: the file system.
    """

    path: str
    size: int
    version: str
    system: fsspec.AbstractFileSystem

    @property
    def name(self) -> str:
        """Without folders."""
        return self.path.partition("?")[0].rpartition("/")[2]

    @property
    def is_local(self) -> bool:
        return isinstance(self.system, LocalFileSystem)

    @property
    def location(self) -> str:
        """Absolute path, or URL."""
        return self.path if self.is_local else self.system.unstrip_protocol(self.path)

    def read(self, begin: int, end: int) -> bytes:
        """The bytes from one offset to another.

        Raises:
          InputError: it cannot be read, or is not what it was when it was found.
        """
        content = b""
        for pause in (*PAUSES, None):
            try:
                # To ask a store each time would double the requests.
                same = not self.is_local or _version(self.system.info(self.path)) == self.version
                if same:
                    found: Any = self.system.cat_file(self.path, begin, end)
                    content = found
                break
            except FileNotFoundError:
                break
            # Libraries of stores have errors of their own; most pass.
            except Exception as error:
                if pause is None:
                    raise InputError(
                        f"{self.location}: cannot be read: {first_line(error)}"
                    ) from error
                time.sleep(pause)
        if len(content) != end - begin:
            raise InputError(
                f"{self.location}: is gone or has changed since it was opened; put it back, or "
                "start again"
            )
        return content


def find(pattern: str) -> list[Shard]:
    """The shards that a pattern means.

    Args:
      pattern: path or URL of a shard or of a folder of them, with braces or * where there are
        several; patterns can be joined by "::". Braces give the order they are written in, what *
        finds is sorted.

    Raises:
      InputError: nothing matches, a shard that is named is not there, one is there twice, or they
        are compressed.
    """
    shards = [shard for part in pattern.split("::") for shard in _find(part)]
    (location, count), *_ = Counter(shard.location for shard in shards).most_common(1)
    if count > 1:
        raise InputError(f"{pattern}: {location} is in it twice; name each shard once")
    return shards


def _find(pattern: str) -> list[Shard]:
    """The shards of a pattern without "::"."""
    if not pattern:
        raise InputError("an empty pattern of tar shards: give the path or URL of one")
    if pattern.startswith("pipe:"):
        raise InputError(
            f"{pattern}: the output of a command has no random access, which shuffling needs; give "
            "paths, or URLs that fsspec knows (https://, s3://, gs://)"
        )
    if "/" not in pattern and pattern in fsspec.available_protocols():
        raise InputError(
            f"{pattern}::...: chained URLs are not read, as :: joins patterns here; give plain ones"
        )
    try:
        system, path = fsspec.core.url_to_fs(pattern)
        paths = [match for one in _expanded(path) for match in _matches(system, one)]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(partial(_shard, system), paths))
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{pattern}: needs a package that is not installed: {error}") from error
    # Whatever the store's library says.
    except Exception as error:
        raise InputError(f"{pattern}: cannot be read: {first_line(error)}") from error


def _expanded(path: str) -> list[str]:
    """What the braces of a path give.

    Raises:
      InputError: more than MOST; braceexpand would hold them all.
    """
    if _count(path) > MOST:
        raise InputError(f"{path}: more than {MOST:,} shards; name fewer, or find them by *")
    return [*braceexpand(path)]


def _count(path: str) -> int:
    """How many paths the braces of a path give, from the innermost ones outwards."""

    def of_parts(text: str) -> int:
        return math.prod(int(count) for count in COUNTED.findall(text))

    while group := INNERMOST.search(path):
        if numbers := RANGE.fullmatch(group[0]):
            first, last, step = numbers.groups()
            count = abs(int(last) - int(first)) // (int(step or 1) or 1) + 1
        else:
            count = sum(of_parts(part) for part in group[1].split(","))
        path = f"{path[: group.start()]}\0{count}\0{path[group.end() :]}"
    return of_parts(path)


def _matches(system: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """The paths of shards, for a path without braces."""

    def glob(path: str) -> list[str]:
        matches: Any = system.glob(path, detail=True)  # a dict, but for fsspec's annotations
        found = matches.items()
        files = (match for match, info in found if info["type"] != "directory")
        return sorted(match for match in files if not match.rpartition("/")[2].startswith("."))

    # "?" begins the query of an https URL.
    if any(character in path for character in ("*[" if "http" in system.protocol else "*?[")):
        found = glob(path)
    elif path.partition("?")[0].endswith(".tar") or not system.isdir(path):
        found = [path]
    else:
        inside = f"{path.rstrip('/')}/*.tar"
        # Nothing but compressed ones: let them be refused for that.
        found = glob(inside) or glob(f"{inside}.*")
    if not found:
        raise InputError(f"{path}: no tar shard is there; give the path of a .tar or a pattern")
    for match in found:
        if COMPRESSED.search(match.partition("?")[0]):
            raise InputError(
                f"{match}: a compressed tar has no random access; decompress it (such as with "
                "`gunzip`) and give the .tar"
            )
    return found


def _shard(system: fsspec.AbstractFileSystem, path: str) -> Shard:
    try:
        info = system.info(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such tar shard") from error
    if info["type"] != "file":
        raise InputError(f"{path}: not a file; give the path of a .tar or of a folder of them")
    if info.get("size") is None:
        raise InputError(
            f"{path}: the server does not tell its size, without which there is no random access; "
            "download it and give the path"
        )
    return Shard(path, info["size"], _version(info), system)


def _version(info: dict[str, Any]) -> str:
    return next((str(info[name]) for name in VERSIONS if info.get(name)), "")


def first_line(error: Exception) -> str:
    """What an error says, with its kind."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
