"""Examples in tar shards: what is read is what tarfile reads, grouped as webdataset groups it."""

import json
import os
import pickle
import re
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tar_files

from slam_jax.base.errors import InputError
from slam_jax.data.examples import Filters
from slam_jax.data.rejects import Rejected
from slam_jax.data.shards import Shard
from slam_jax.data.tar_shards import TarShards


@pytest.fixture
def opened(tmp_path):
    """Opens shards; their index is not kept where the user's are."""

    def open_shards(pattern, *options, **more):
        return TarShards(str(pattern), *options, cache=tmp_path / "cache", **more)

    return open_shards


def shard(folder, members, name="00000.tar", **options):
    return tar_files.write(folder, {name: tar_files.tar(members, **options)}) / name


def read_all(examples):
    return {example.name: example for example in map(examples.__getitem__, range(len(examples)))}


def by_key(path):
    """What the webdataset library makes of a shard: its documented rule, on tarfile's members."""
    groups = {}
    with tarfile.open(path) as tar:
        for info in tar:
            match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", info.name)
            if match and info.isreg():
                key, suffix = match.groups()
                groups.setdefault(key, {})[suffix.lower()] = tar.extractfile(info).read()
    return groups


NAMES = ("000", "a/b/000", "v1.0/000", "a b/ü", "x" * 300, "d/" * 90 + "deep", "-", "~")


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_examples_are_those_that_webdatasets_rule_finds_with_tarfiles_bytes(tmp_path, opened, kind):
    suffixes = [("jpg", "JPEG"), ("JPEG", "JPEG"), ("Png", "PNG"), ("webp", "WEBP")]
    members = {}
    for number, name in enumerate(NAMES):
        if kind == tarfile.USTAR_FORMAT and len(name) > 90:
            continue
        suffix, image_kind = suffixes[number % 4]
        members[f"{name}.{suffix}"] = tar_files.image(number, kind=image_kind)
        members[f"{name}.seg.png"] = b"another part of the example"
        members[f"{name}.{'TXT' if number % 2 else 'txt'}"] = f"caption {number}".encode()
        members[f"{name}.cls"] = b"7"
    path = shard(tmp_path / "data", members, kind=kind)
    expected, examples = by_key(path), read_all(opened(path))
    assert len(expected) >= 6
    assert examples.keys() == {f"00000.tar/{key}" for key in expected}
    for key, files in expected.items():
        example = examples[f"00000.tar/{key}"]
        assert example.image in [files.get(e) for e in ("jpg", "jpeg", "png", "webp")]
        assert example.captions == (files["txt"].decode(),)


def test_an_unsorted_tar_has_its_examples_too(tmp_path, opened):
    members = tar_files.good(3)
    path = shard(tmp_path, dict(sorted(members.items(), key=lambda pair: pair[0][::-1])))
    examples = opened(path)
    assert len(examples) == 3 and not examples.rejects.total
    for example in read_all(examples).values():
        key = example.name.rpartition("/")[2]
        assert example.image == members[f"{key}.png"]
        assert example.captions == (members[f"{key}.txt"].decode(),)


RECORD = {
    "caption": "of json",
    "alt": ["one", " two ", ""],
    "none": None,
    "blank": " ",
    "number": 3,
}


@pytest.mark.parametrize(
    ("files", "caption_key", "expected"),
    [
        ({"txt": b" of txt\n"}, "", ("of txt",)),
        ({"txt": "\ufeffwith a mark: é".encode()}, "", ("with a mark: é",)),
        ({"caption": b"of caption"}, "", ("of caption",)),
        ({"json": RECORD}, "", ("of json",)),
        ({"txt": b"of txt", "json": RECORD}, "", ("of txt",)),
        ({"txt": b"of txt", "caption": b"of caption"}, "", ("of txt",)),
        ({"txt": b"of txt", "caption": b"\xff"}, "", ("of txt",)),
        ({"caption": b"of caption", "txt": b"of txt"}, "", ("of txt",)),
        ({"txt": b"of txt", "json": RECORD}, "caption", ("of json",)),
        ({"json": RECORD, "txt": b"of txt"}, "alt", ("one", "two")),
        ({"json": RECORD}, "alt", ("one", "two")),
        ({"txt": b"of txt", "json": RECORD}, "missing", ("of txt",)),
        ({"txt": b"of txt"}, "alt", ("of txt",)),
        ({"txt": b"of txt", "json": RECORD}, "none", ("of txt",)),
        ({"txt": b"\xff", "json": RECORD}, "caption", ("of json",)),
        ({"txt": b"of txt", "json": b"{"}, "", ("of txt",)),
        ({"json": RECORD}, "missing", "no caption"),
        ({"json": RECORD}, "none", "no caption"),
        ({"json": RECORD}, "blank", "empty caption"),
        ({"json": RECORD}, "number", "caption is not text"),
        ({"txt": b"\xff", "json": RECORD}, "", ("of json",)),
        ({"txt": b" ", "json": b"{"}, "", "empty caption"),
    ],
)
def test_where_the_captions_are_taken_from(tmp_path, opened, files, caption_key, expected):
    """Twice: the second time from an index that was made for other options."""
    members = {"k.png": tar_files.image(0), **tar_files.good(1, begin=5)}
    for suffix, content in files.items():
        content = json.dumps(content).encode() if isinstance(content, dict) else content
        members[f"k.{suffix}"] = content
    path = shard(tmp_path / "data", members)
    opened(path, caption_key="other")
    examples = opened(path, caption_key=caption_key)
    if isinstance(expected, str):
        assert len(examples) == 1
        assert (examples.rejects.counts, examples.rejects.first) == (
            {expected: 1},
            {expected: "00000.tar/k"},
        )
    else:
        assert read_all(examples)["00000.tar/k"].captions == expected
        assert not examples.rejects.total


def test_filters_take_out_what_they_say(tmp_path, opened):
    """Against `Filters.check`, one example at a time."""
    rng = np.random.default_rng(0)
    nan = float("nan")
    marks = [(0.0, 0.0), (0.3, 0.3), (0.31, 0.31), (1, 1.0), ("0.2", 0.2)]  # in JSON; meant
    marks += [(None, nan), ("none", nan), ([0.1], nan), ("missing", nan)]
    members, facts = {}, {}
    for number in range(60):
        height, width = (int(side) for side in rng.choice([16, 24, 25, 40], 2))
        mark, meant = marks[number % len(marks)]
        record = {"caption": "c"} | ({} if mark == "missing" else {"pwatermark": mark})
        members[f"{number:03d}.png"] = tar_files.image(number, height, width)
        members[f"{number:03d}.json"] = json.dumps(record).encode()
        facts[f"00000.tar/{number:03d}"] = ((height, width), meant)
    path = shard(tmp_path / "data", members)
    for filters in (Filters(), Filters(25), Filters(0, 0.3), Filters(24, 0.3), Filters(17, 0.0)):
        kept, texts = [], []
        for name, sizes in facts.items():
            try:
                filters.check(name, *sizes)
                kept.append(name)
            except Rejected as rejected:
                assert rejected.asked_for
                texts.append(rejected.reason)
        examples = opened(path, filters)
        assert list(read_all(examples)) == kept
        assert sorted(texts) == sorted(
            reason for reason, count in examples.rejects.counts.items() for _ in range(count)
        )
        assert examples.rejects.damaged == 0
        assert examples.sizes.tolist() == [list(facts[name][0]) for name in kept]
    with pytest.raises(InputError, match="can be used: 60 smaller than min_size = 99"):
        opened(path, Filters(99))


def test_identity_is_of_the_examples_and_not_of_where_they_are(tmp_path, opened):
    shards = {f"{n}.tar": tar_files.tar(tar_files.good(4, 10 * n)) for n in range(3)}
    folder = tar_files.write(tmp_path / "data", shards)
    identity = opened(folder).identity
    copy = shutil.copytree(folder, tmp_path / "copy")
    os.utime(copy / "1.tar", (0, 0))
    assert opened(copy).identity == opened(copy, Filters(24)).identity == identity
    others = {opened(f"{folder}/{{1,0,2}}.tar").identity, opened(f"{folder}/{{0,1}}.tar").identity}
    tar_files.write(copy, {"1.tar": tar_files.tar(tar_files.good(3, 10))})
    others.add(opened(copy).identity)
    assert len(others | {identity}) == 4


@pytest.mark.parametrize("suffix", ["png", "txt", "json"])
def test_identity_is_of_what_the_files_say_and_not_only_of_where_they_are(tmp_path, opened, suffix):
    """Another content of the same size, at the same places."""
    good, identities = tar_files.good(2), []
    keys = {name.partition(".")[0] for name in good}
    members = {**good, **{f"{key}.json": b'{"caption": "a"}' for key in keys}}
    name = next(name for name in members if name.endswith(suffix))
    other = members[name][:-1] + bytes([members[name][-1] ^ 1])
    for content in (members[name], other):
        path = tar_files.write(
            tmp_path / str(len(identities)), {"0.tar": tar_files.tar({**members, name: content})}
        )
        identities.append(opened(path).identity)
    assert identities[0] != identities[1]


def test_identity_changes_with_what_filters_and_caption_key_leave(tmp_path, opened):
    members = {**tar_files.good(3), "9.png": tar_files.image(1, 9, 9), "9.txt": b"small"}
    members["9.json"] = b'{"alt": "small"}'
    path = shard(tmp_path / "data", members)
    identities = {opened(path).identity, opened(path, Filters(10)).identity}
    identities.add(opened(path, caption_key="alt").identity)
    assert len(identities) == 3


def test_many_threads_read_right(tmp_path, opened):
    shards = {f"{n:02d}.tar": tar_files.tar(tar_files.good(2, 2 * n)) for n in range(20)}
    examples = opened(tar_files.write(tmp_path / "data", shards))
    examples = pickle.loads(pickle.dumps(examples))
    indices = np.random.default_rng(0).integers(0, 40, 500)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(examples.__getitem__, indices))
    for index, example in zip(indices, read, strict=True):
        assert example.captions == (f"caption {index}",)
        assert example.image == tar_files.image(int(index))


@pytest.mark.parametrize(("between", "reads"), [(0, 1), (300_000, 2)])
def test_an_image_far_from_its_caption_is_read_without_what_lies_between(
    tmp_path, opened, monkeypatch, between, reads
):
    lengths, read = [], Shard.read

    def counted(shard, begin, end):
        lengths.append(end - begin)
        return read(shard, begin, end)

    monkeypatch.setattr(Shard, "read", counted)
    members = {"k.png": tar_files.image(3), "k.npy": bytes(between), "k.txt": b"far"}
    example = opened(shard(tmp_path / "data", members))[0]
    assert (example.image, example.captions) == (tar_files.image(3), ("far",))
    assert len(lengths) == reads and sum(lengths) < 5000


@pytest.mark.parametrize("change", ["gone", "cut", "other"])
def test_a_shard_that_changes_is_told(tmp_path, opened, change):
    path = shard(tmp_path / "data", tar_files.good(3))
    examples = opened(path)
    examples[0]
    if change == "gone":
        path.unlink()
    elif change == "cut":
        os.truncate(path, 1000)
    else:
        path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(InputError, match=r"00000\.tar: is gone or has changed"):
        examples[2]
