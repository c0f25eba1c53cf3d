"""A set of images with everything wrong that web data has: nothing crashes, nothing is lost, and
every good example is read."""

import gzip
import io
import json
import tarfile
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
import tar_files
from broken_images import BROKEN, GOOD, REASONS, WHOLE_HEADERS
from tar_files import member

from slam_jax.base.errors import InputError
from slam_jax.data.batches import Batches
from slam_jax.data.image_folder import ImageFolder
from slam_jax.data.image_text import ImageText, Transform
from slam_jax.data.rejects import Rejected, Rejects
from slam_jax.data.tar_shards import TarShards

LINK = "no image for a caption"  # that the shard has no bytes of
IMAGE = tar_files.image(1)
UTF_16 = "in UTF-16".encode("utf-16")
# What is wrong -> files of one example by their suffixes, and the reason it is refused for.
FILES = {
    "no text": ({"png": IMAGE}, "no caption"),
    "only other files": ({"jpg": IMAGE, "npy": b"1", "cls": b"2"}, "no caption"),
    "text not UTF-8": ({"png": IMAGE, "txt": b"caf\xe9"}, "caption not UTF-8"),
    "text in UTF-16": ({"png": IMAGE, "txt": UTF_16}, "caption not UTF-8"),
    "a picture as text": ({"png": IMAGE, "txt": IMAGE}, "caption not UTF-8"),
    "text of zero bytes": ({"png": IMAGE, "txt": b""}, "empty caption"),
    "blank text": ({"png": IMAGE, "txt": b" \r\n\t"}, "empty caption"),
    "a mark and no text": ({"png": IMAGE, "txt": b"\xef\xbb\xbf"}, "empty caption"),
    "a text alone": ({"txt": b"alone"}, "no image for a caption"),
    "an image of another kind": ({"gif": b"GIF89a", "txt": b"a"}, "not a JPEG, PNG or WebP image"),
    "two kinds of image": ({"jpg": IMAGE, "png": IMAGE, "txt": b"a"}, "several images for one key"),
    **{
        name: ({"png": maker(), "txt": b"a broken image"}, REASONS[name])
        for name, maker in BROKEN.items()
        if name not in WHOLE_HEADERS
    },
}
RECORDS = {
    "json of zero bytes": (b"", "damaged JSON"),
    "json cut": (b'{"caption": "a ca', "damaged JSON"),
    "json of nulls": (bytes(99), "damaged JSON"),
    "json of HTML": (b"<html>", "damaged JSON"),
    "json not UTF-8": (b'{"caption": "\xff"}', "damaged JSON"),
    "a list": (b'["caption"]', "JSON is not an object"),
    "a null": (b"null", "JSON is not an object"),
    "a word": (b'"caption"', "JSON is not an object"),
    "other names": (b'{"text": "t", "Caption": "c"}', "no caption"),
    "caption null": (b'{"caption": null}', "no caption"),
    "caption empty": (b'{"caption": ""}', "empty caption"),
    "no captions": (b'{"caption": []}', "empty caption"),
    "captions blank": (b'{"caption": [null, " "]}', "empty caption"),
    "caption a number": (b'{"caption": 0}', "caption is not text"),
    "caption an object": (b'{"caption": {"en": "a"}}', "caption is not text"),
    "captions numbers": (b'{"caption": ["a", 2]}', "caption is not text"),
    "half a character": (b'{"caption": "\\ud83d"}', "caption not UTF-8"),
}
SPARSE = {"pax_headers": {"GNU.sparse.map": "0,5", "GNU.sparse.size": "99"}}
MEMBERS = {
    **{
        name: ([("{k}.png", b"", options), ("{k}.txt", b"a")], LINK)
        for name, options in {
            "symbolic link": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
            "hard link": {"type": tarfile.LNKTYPE, "linkname": "0000.png"},
            "pipe": {"type": tarfile.FIFOTYPE},
            "device": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
            "sparse file": SPARSE,
            "unknown type": {"type": b"Z"},
        }.items()
    },
    "linked text": (
        [("{k}.png", IMAGE), ("{k}.txt", b"", {"type": tarfile.SYMTYPE})],
        "no caption",
    ),
}


def good_members(number):
    """An example with what must not disturb it; its caption is its number."""
    kinds = list(GOOD.values())
    image, caption, key = kinds[number % len(kinds)](), str(number), f"good/{number:04d}"
    suffix = ("jpg", "JPEG", "png", "WebP")[number % 4]
    captions = [
        ("txt", caption.encode()),
        ("json", json.dumps({"caption": caption, "width": None}).encode()),
        ("json", json.dumps({"caption": [caption, None, caption]}).encode("utf-16")),
        ("caption", b"\xef\xbb\xbf" + caption.encode()),
        ("TXT", b" " + caption.encode() + b"\n"),
    ]
    return [
        member("good", type=tarfile.DIRTYPE),
        member(f"good/._{number:04d}.jpg", b"AppleDouble"),
        member(f"{key}.npy", b"numbers"),
        member(f"{key}.{suffix}", image),
        member(f"{key}.seg.png", b"another image"),
        member(f"{key}.{captions[number % 5][0]}", captions[number % 5][1]),
    ]


def good_tar(*numbers):
    return tar_files.tar(sum(map(good_members, numbers), []))


def end_of(content):
    """Where the last member of a tar ends."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        last = tar.getmembers()[-1]
    return last.offset_data + last.size


def broken_examples():
    """(name, members, reason) of each; the key is the members' own."""
    for name, (files, reason) in FILES.items():
        yield name, [("{k}." + suffix, content) for suffix, content in files.items()], reason
    for name, (content, reason) in RECORDS.items():
        yield name, [("{k}.png", IMAGE), ("{k}.json", content)], reason
    for name, (members, reason) in MEMBERS.items():
        yield name, members, reason


def shards_of_broken_examples():
    """Shards by name, each broken example followed by a good one; how many good ones; rejects."""
    cases, shards, rejects = list(broken_examples()), {}, Rejects()
    assert len(cases) > 60
    for begin in range(0, len(cases), 10):
        shard, members = f"{begin:03d}.tar", []
        for number, (name, parts, reason) in enumerate(cases[begin : begin + 10], begin):
            parts = [(part.format(k=name), *rest) for part, *rest in parts]
            members += [member(part, content, **dict(*rest)) for part, content, *rest in parts]
            members += good_members(number)
            rejects.add(Rejected(reason, f"{shard}/{parts[0][0].rpartition('.')[0]}"))
        shards[shard] = tar_files.tar(members, tarfile.PAX_FORMAT)
    return shards, len(cases), rejects


def broken_shards(goods):
    """Shards by name, that are broken themselves; how many good examples with those that were
    before; rejects."""
    cut, damaged = good_tar(*range(goods, goods + 3)), bytearray(good_tar(goods + 2, goods + 3))
    block = -(-end_of(damaged) // 512) * 512
    damaged[block : block + 512] = b"\7" * 512
    cases = {
        "x.cut": (cut[: end_of(cut) - 1], "truncated shard"),  # the third is not whole
        "x.damaged": (bytes(damaged), "damaged shard"),
        "x.joined": (good_tar(goods + 4) * 2, "damaged shard"),
        "x.other": (tar_files.tar({"a.npy": b"", "README": b""}), "empty shard"),
        "x.page": (b"<html><body>404 Not Found</body></html>" * 99, "shard that is not a tar"),
        "x.short": (good_tar(0)[:300], "shard that is not a tar"),
        "x.void": (bytes(10240), "empty shard"),
        "x.zero": (b"", "shard of zero bytes"),
        "x.zipped": (gzip.compress(good_tar(0)), "shard that is not a tar"),
    }
    rejects = Rejects()
    for name, (_, reason) in cases.items():
        rejects.add(Rejected(reason, f"{name}.tar"))
    # What the cut left of the third.
    rejects.add(Rejected("no caption", f"x.cut.tar/good/{goods + 2:04d}"))
    return {f"{name}.tar": content for name, (content, _) in cases.items()}, goods + 5, rejects


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Opened shards; the captions of the good ones in them; the rejects to be expected."""
    folder = tmp_path_factory.mktemp("broken")
    shards, goods, rejects = shards_of_broken_examples()
    more, goods, more_rejects = broken_shards(goods)
    # Headers are whole of these, so that only reading finds them out.
    late = {f"{name}.png": BROKEN[name]() for name in WHOLE_HEADERS}
    late |= {f"{name}.txt": b"broken" for name in WHOLE_HEADERS}
    # The first one counts.
    copies = good_members(goods) + good_members(goods + 1) + good_members(goods)
    rejects.update(more_rejects)
    rejects.add(Rejected("duplicate key", f"copies.tar/good/{goods:04d}"))
    shards |= {"copies.tar": tar_files.tar(copies), "late.tar": tar_files.tar(late), **more}
    tar_files.write(folder / "data", shards)
    examples = TarShards(str(folder / "data"), cache=folder / "cache")
    return examples, [str(number) for number in range(goods + 2)], rejects


def tokens_of(texts):
    return np.array([int(text) if text.isdigit() else -1 for text in texts], np.int32)


def one_epoch(examples):
    """The numbers that the captions of one epoch are, and what was passed over."""
    source = ImageText(examples, Transform(16), tokens_of)
    batches = Batches(source, 8, seed=0)
    with closing(batches.iterate(0)) as iterator:
        read = [next(iterator) for _ in range(-(-len(examples) // 8))]
    assert all(batch["images"].shape == (8, 16, 16, 3) for batch in read)
    return np.concatenate([batch["tokens"] for batch in read]), batches.rejects


def test_all_that_is_broken_is_counted_and_all_that_is_good_is_there(broken):
    examples, goods, expected = broken
    assert examples.rejects.counts == expected.counts
    assert examples.rejects.first == expected.first
    assert examples.rejects.damaged == examples.rejects.total > 70
    assert len(examples) == len(goods) + len(WHOLE_HEADERS)
    read = [examples[index] for index in range(len(examples))]
    assert Counter(example.captions[0] for example in read) == Counter(
        goods + ["broken"] * len(WHOLE_HEADERS)
    )


def test_an_epoch_of_batches_has_every_good_example(broken):
    examples, goods, _ = broken
    tokens, rejects = one_epoch(examples)
    assert set(tokens) == set(map(int, goods))
    # Each once, and again where what was drawn in place of one is broken too.
    assert rejects.counts.keys() == {"damaged image"} and not rejects.asked_for
    assert rejects.total >= len(WHOLE_HEADERS)
    assert rejects.first["damaged image"].removeprefix("late.tar/") in WHOLE_HEADERS


def test_reading_finds_what_opening_cannot(broken):
    examples, _, _ = broken
    rejects = Rejects()
    for index in range(len(examples)):
        try:
            Transform(16).cut(examples[index])
        except Rejected as rejected:
            rejects.add(rejected)
    assert rejects.counts == {"damaged image": len(WHOLE_HEADERS)}
    assert rejects.first == {"damaged image": f"late.tar/{WHOLE_HEADERS[0]}"}


def test_files_in_a_folder(tmp_path):
    """Of every kind that can be unpacked."""
    files, expected = {}, Counter(reason for _, reason in FILES.values())
    for number, (name, (parts, _)) in enumerate(FILES.items()):
        files |= {f"{name}/broken.{suffix}": content for suffix, content in parts.items()}
        files |= {f"{name}/good.png": IMAGE, f"{name}/good.txt": str(number).encode()}
    examples = ImageFolder(tar_files.write(tmp_path, files))
    assert examples.rejects.counts == expected
    assert set(examples.rejects.first.values()) <= set(files)
    tokens, rejects = one_epoch(examples)
    assert set(tokens) == set(range(len(FILES))) and not rejects.total
    assert len(examples) == len(FILES)


def test_shards_without_anything_usable_are_refused_with_the_reasons(tmp_path, capsys):
    shards = {"0.tar": b"", "1.tar": b"<html>" * 999, "2.tar": tar_files.tar({"a.png": IMAGE})}
    tar_files.write(tmp_path / "data", shards)
    with pytest.raises(InputError) as refused:
        TarShards(str(tmp_path / "data"), cache=tmp_path / "cache")
    assert str(refused.value) == (
        f"{tmp_path}/data: no example can be used: 1 shard of zero bytes (first: 0.tar); "
        "1 shard that is not a tar (first: 1.tar); 1 no caption (first: 2.tar/a)"
    )
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [
        f"note: {tmp_path}/data/0.tar: shard of zero bytes",
        f"note: {tmp_path}/data/1.tar: shard that is not a tar",
    ]
