"""Which tar shards a pattern means, on this machine or in a store that fsspec knows."""

import glob
import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import fsspec
from braceexpand import braceexpand

from slam_jax.base.errors import InputError

CONNECTIONS = 32  # shards of a store that are asked about at once
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
      location: absolute path, or URL.
      size: bytes.
      version: changes with the content, as far as can be known: time of change or the like.
      system: where the URL is; None: a local file.
    """

    location: str
    size: int
    version: str
    system: fsspec.AbstractFileSystem | None = None

    @property
    def name(self) -> str:
        return self.location.partition("?")[0].rpartition("/")[2]

    def open(self) -> BinaryIO:
        if self.system is None:
            return Path(self.location).open("rb")
        return self.system.open(self.location, "rb")


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
    seen = set()
    for shard in shards:
        where = shard.location if shard.system else os.path.realpath(shard.location)
        if where in seen:
            raise InputError(f"{pattern}: {shard.location} is in it twice; name each shard once")
        seen.add(where)
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
    pattern = pattern.removeprefix("file://")
    if "://" not in pattern:
        pattern = os.path.expanduser(pattern)  # noqa: PTH111 - Path would lose what * means
        return [_local(path) for path in _expand(pattern, _local_paths)]
    try:
        system, _ = fsspec.core.url_to_fs(pattern)
        urls = list(_expand(pattern, lambda url: _remote_urls(system, url)))
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(lambda url: _remote(system, url), urls))
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{pattern}: needs a package that is not installed: {error}") from error
    # Whatever the store's library says.
    except Exception as error:
        raise InputError(f"{pattern}: cannot be read: {describe(error)}") from error


def _expand(pattern: str, matches) -> Iterator[str]:
    """Locations of all shards; `matches` gives those of a pattern without braces, or raises."""
    try:
        # A file may well have braces in its name.
        expanded = [pattern] if _exists(pattern) else list(braceexpand(pattern))
    except ValueError as error:
        raise InputError(f"{pattern}: a brace is not closed") from error
    for one in expanded:
        found = matches(one)
        if not found:
            raise InputError(f"{one}: no tar shard is there; give the path of a .tar or a pattern")
        for location in found:
            if COMPRESSED.search(location.partition("?")[0]):
                raise InputError(
                    f"{location}: a compressed tar has no random access; decompress it (such as "
                    "with `gunzip`) and give the .tar"
                )
            yield location


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - a long pattern is no path, which Path would say


def _local_paths(pattern: str) -> list[str]:
    if _exists(pattern):
        found = [pattern]
        if Path(pattern).is_dir():
            inside = os.path.join(glob.escape(pattern), "*.tar")  # noqa: PTH118
            # Nothing but compressed ones: let them be refused for that.
            found = glob.glob(inside) or glob.glob(inside + ".*")  # noqa: PTH207
    elif glob.has_magic(pattern):
        found = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob finds hidden files
        found = [path for path in found if not Path(path).is_dir()]
    else:
        raise InputError(f"{pattern}: no such tar shard")
    return sorted(os.path.abspath(path) for path in found)  # noqa: PTH100


def _local(path: str) -> Shard:
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: not a file; give the path of a .tar or of a folder of them")
    return Shard(path, status.st_size, str(status.st_mtime_ns))


def _remote_urls(system: fsspec.AbstractFileSystem, url: str) -> list[str]:
    # "?" begins the query of an https URL.
    magic = "*[" if url.startswith("http") else "*?["
    if not any(character in url for character in magic):
        if url.partition("?")[0].endswith(".tar") or not system.isdir(url):
            return [url]
        url = url.rstrip("/") + "/*.tar"
    paths = (path for path in system.glob(url) if not Path(path).name.startswith("."))
    return sorted(system.unstrip_protocol(path) for path in paths)


def _remote(system: fsspec.AbstractFileSystem, url: str) -> Shard:
    try:
        info = system.info(url)
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such tar shard") from error
    if info.get("size") is None:
        raise InputError(
            f"{url}: the server does not tell its size, without which there is no random access; "
            "download it and give the path"
        )
    version = next((str(info[name]) for name in VERSIONS if info.get(name)), "")
    # A store may have several ways to write one URL.
    location = system.unstrip_protocol(system._strip_protocol(url))
    return Shard(location, info["size"], version, system)


def describe(error: Exception) -> str:
    """The first line of what an error says, with its kind."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
