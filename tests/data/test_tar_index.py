"""The pass over a shard, whatever is in it, and the cache of what it finds."""

import io
import random
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tar_files
from broken_images import BROKEN, GOOD
from PIL import Image

from slam_jax.base.errors import InputError
from slam_jax.data import images, metadata, tar_index
from slam_jax.data.rejects import Rejected
from slam_jax.data.tar_scan import scan
from slam_jax.data.tar_shards import TarShards

KINDS = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
LONG = "dir/" * 40 + "name" * 10
MEMBERS = {
    **tar_files.good(3),
    f"{LONG}.png": tar_files.image(3),
    f"{LONG}.txt": b"long",
    "é.png": tar_files.image(4),
    "é.json": b'{"caption": "e"}',
}


def scanned(content, caption_key=""):
    return scan(io.BytesIO(content), len(content), "x.tar", caption_key)


def usable(content):
    """Key -> image and caption, of the examples that can be used; and why others cannot."""
    rows, rejects, _ = scanned(content)
    found = {
        row["key"].decode(): tuple(
            content[at : at + size] for at, size in (row["image"], row["caption"])
        )
        for row in rows
    }
    return found, rejects.counts


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_cut_shard_everything_before_the_cut_is_used(kind):
    whole = tar_files.tar(MEMBERS, kind)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        ends = [(info.name.split("."), info.offset_data + info.size) for info in tar]
    mark = -(-ends[-1][1] // 512) * 512  # where the end of the tar is marked, by a block of zeros
    for cut in [*range(600, mark + 1024, 256), mark - 1, mark + 511]:
        found, reasons = usable(whole[:cut])
        parts = [key for (key, suffix), end in ends if end <= cut]
        assert list(found) == [key for key in dict.fromkeys(parts) if parts.count(key) == 2]
        for key, content in found.items():
            captions = [MEMBERS.get(f"{key}.{suffix}") for suffix in ("txt", "json")]
            assert content[0] == MEMBERS[f"{key}.png"] and content[1] in captions
        # And what the cut left of an example.
        assert reasons.pop("truncated shard", 0) == (cut < mark + 512)
        assert sum(reasons.values()) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes_never_crash_and_never_hang(kind):
    whole, rng = tar_files.tar(MEMBERS, kind), random.Random(0)
    seen = set()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 3, 20])):
            block = 512 * rng.randrange(len(whole) // 512)
            offset = rng.choice([rng.randrange(512), rng.randrange(124, 136), 156])
            damaged[block + offset] = rng.choice([0, 48, 128, 255, rng.randrange(256)])
        seen.update(usable(bytes(damaged))[1])
    assert {"damaged shard", "no caption", "shard that is not a tar"} <= seen


def test_of_every_kind_of_image_an_index_knows_what_the_whole_file_tells():
    """Also of those that are so long that only their beginning is looked at."""
    tails = {"": b"", " long": np.random.default_rng(0).bytes(metadata.BEGINNING)}
    for name, maker in {**GOOD, **BROKEN}.items():
        for tail in tails.values():
            content = maker() + tail
            try:
                expected = images.read_size(content, "")
            except Rejected as rejected:
                expected = rejected.reason
            rows, rejects, _ = scanned(tar_files.tar({"a.jpg": content, "a.txt": b"c"}))
            found = [*rejects.counts, *(tuple(row["shape"].tolist()) for row in rows)]
            assert found == [expected], name


def test_long_headers_are_read_to_their_end():
    exif = tar_files.image(0, kind="JPEG")
    content = exif[:2] + (b"\xff\xe1" + (50000).to_bytes(2, "big") + bytes(49998)) * 2 + exif[2:]
    tar = tar_files.tar({"a.jpg": content, "a.txt": b"c"})
    assert scanned(tar).rows["shape"].tolist() == [[24, 32]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_long_images(kind):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8))
    picture.save(file := io.BytesIO(), kind, lossless=True, quality=95)
    assert len(file.getvalue()) > metadata.BEGINNING
    tar = tar_files.tar({"a.jpg": file.getvalue(), "a.txt": b"c"})
    assert scanned(tar).rows["shape"].tolist() == [[300, 200]]


@pytest.mark.parametrize(
    ("names", "reasons"),
    [
        (["k.png", "k.txt", "k.png", "k.txt"], {"duplicate key": 1}),
        (["k.png", "k.txt", "x.npy", "k.txt", "k.png"], {"duplicate key": 1}),
        (["k.png", "k.PNG", "k.txt"], {"duplicate key": 1}),
        (["k.png", "k.txt"] * 3, {"duplicate key": 2}),
        (["k.png", "k.txt", "a.txt", "k.txt"], {"no image for a caption": 1}),
        (["d/.png", "d/.txt", ".png", "k.png", "k.txt", "png", "txt"], {}),
        (["k.png", "k.seg.png", "k.txt", "k.x.txt", "k..jpg", "k.jpg.txt"], {}),
    ],
)
def test_keys_that_come_again(names, reasons):
    contents = {"txt": b"c", "png": tar_files.image(0)}
    members = [
        tar_files.member(name, contents.get(name.rpartition(".")[2].lower(), b"")) for name in names
    ]
    found, why = usable(tar_files.tar(members))
    assert found == {"k": (tar_files.image(0), b"c")} and why == reasons


@pytest.fixture
def data(tmp_path):
    files = {f"{n}.tar": tar_files.tar(tar_files.good(3, 3 * n)) for n in range(3)}
    return tar_files.write(tmp_path / "data", files)


def made(cache):
    return {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}


def captions(examples):
    return [examples[n].captions[0] for n in range(len(examples))]


def test_an_index_is_made_once_and_again_when_the_shard_changes(tmp_path, data, monkeypatch):
    cache = tmp_path / "a" / "cache"
    TarShards(str(data), cache=cache)
    first = made(cache)
    assert len(first) == 3 and all(re.fullmatch(r"[0-9a-f]{32}\.npz", name) for name in first)
    assert sorted(path.name for path in data.iterdir()) == ["0.tar", "1.tar", "2.tar"]
    monkeypatch.setattr(tar_index, "scan", None)  # nothing is indexed again
    assert captions(TarShards(str(data), cache=cache)) == [f"caption {n}" for n in range(9)]
    monkeypatch.undo()
    tar_files.write(data, {"1.tar": tar_files.tar(tar_files.good(3, 50))})
    expected = [f"caption {n}" for n in (0, 1, 2, 50, 51, 52, 6, 7, 8)]
    assert captions(TarShards(str(data), cache=cache)) == expected
    assert len(made(cache)) == 4 and made(cache).items() >= first.items()


@dataclass
class Touch:
    """Makes a file when it is unpickled."""

    path: Path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "pickle"])
def test_a_damaged_index_is_made_again(tmp_path, data, damage):
    cache = tmp_path / "cache"
    TarShards(str(data), cache=cache)
    path = sorted(cache.iterdir())[0]
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flip":
        content[len(content) // 3] ^= 255
        path.write_bytes(content)
    else:
        with path.open("wb") as file:
            np.savez(file, rows=np.array([Touch(tmp_path / "run")], object), rejects="{}")
    assert captions(TarShards(str(data), cache=cache)) == [f"caption {n}" for n in range(9)]
    assert tar_index.load(path).rows.dtype.names
    assert not (tmp_path / "run").exists()


def test_many_may_index_at_once(tmp_path, data):
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: TarShards(str(data), cache=cache), range(16)))
    assert len({examples.identity for examples in opened}) == 1
    assert len(made(cache)) == 3 and all(name.endswith(".npz") for name in made(cache))


def test_the_users_cache(tmp_path, data, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    TarShards(str(data))
    assert len(made(tmp_path / "xdg" / "slam_jax" / "tar_index")) == 3
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    TarShards(str(data))
    assert len(made(tmp_path / "home" / ".cache" / "slam_jax" / "tar_index")) == 3


def test_a_cache_that_cannot_be_written_is_named(tmp_path, data):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=rf"{tmp_path}/file: cannot write .*--index"):
        TarShards(str(data), cache=tmp_path / "file")


def test_a_full_disk_leaves_no_half_index(tmp_path, data, monkeypatch):
    def full(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match="cache: cannot write .*No space left"):
        TarShards(str(data), cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_shard_that_cannot_be_read_is_named(tmp_path, data, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(tar_index, "scan", broken)
    with pytest.raises(InputError, match=r"0\.tar: cannot be read: OSError: .*Input/output error"):
        TarShards(str(data), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_processes_index_as_one_does(tmp_path, data, monkeypatch):
    one = TarShards(str(data), cache=tmp_path / "one")
    monkeypatch.setattr(tar_index, "MANY", 0)
    many = TarShards(str(data), cache=tmp_path / "many")
    assert made(tmp_path / "one").keys() == made(tmp_path / "many").keys()
    assert many.identity == one.identity and captions(many) == captions(one)


def test_an_index_keeps_no_caption(tmp_path, data):
    """Facts only: where a record is, and not what it says."""
    members = {"a.png": tar_files.image(0), "a.json": b'{"caption": "a secret"}'}
    tar_files.write(data, {"9.tar": tar_files.tar(members)})
    TarShards(str(data / "9.tar"), cache=tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    assert b"secret" not in path.read_bytes()
