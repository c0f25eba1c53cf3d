"""Images in folders."""

import json
import os
import pickle
import re
import shutil

import pytest
import tar_files
from broken_images import BROKEN, GOOD, REASONS, WHOLE_HEADERS

from slam_jax.base.errors import InputError
from slam_jax.data import image_folder, images
from slam_jax.data.examples import Example, Filters
from slam_jax.data.image_folder import ImageFolder
from slam_jax.data.tar_shards import TarShards

IMAGES = [tar_files.image(number) for number in range(10)]


def lines(*records):
    """A metadata.jsonl."""
    return b"".join(
        (record if isinstance(record, bytes) else json.dumps(record).encode()) + b"\n"
        for record in records
    )


def read_all(examples):
    return [examples[index] for index in range(len(examples))]


def test_captions_in_metadata_and_in_text_files(tmp_path):
    """As Hugging Face's `imagefolder` has them: file names relative to the metadata.jsonl."""
    tar_files.write(
        tmp_path,
        {
            "metadata.jsonl": lines(
                {"file_name": "z.png", "text": "zett", "caption": "another"},
                {"file_name": "sub/b.png", "caption": ["b one", None, " b two"]},
                {"file_name": "./odd.picture", "text": "odd"},
                b"",
            ),
            "z.png": IMAGES[0],
            "z.txt": b"not this",
            "odd.picture": IMAGES[1],
            "sub/b.png": IMAGES[2],
            "sub/c.d.PNG": IMAGES[3],
            "sub/c.d.txt": b" of c.d\n",
            "sub/deep/metadata.jsonl": b"\xef\xbb\xbf"
            + lines({"file_name": "e.png", "text": "\u00e9"}),
            "sub/deep/e.png": IMAGES[4],
            "sub/notes.md": b"other files do not matter",
            "._z.png": b"nor do those",
            ".cache/z.png": b"or hidden ones",
        },
    )
    examples = ImageFolder(tmp_path)
    assert read_all(examples) == [
        Example("odd.picture", IMAGES[1], ("odd",)),
        Example("sub/b.png", IMAGES[2], ("b one", "b two")),
        Example("sub/c.d.PNG", IMAGES[3], ("of c.d",)),
        Example("sub/deep/e.png", IMAGES[4], ("é",)),
        Example("z.png", IMAGES[0], ("zett",)),
    ]
    assert not examples.rejects.total
    assert examples.name == str(tmp_path) and examples.sizes.tolist() == [[24, 32]] * 5
    asked = ImageFolder(tmp_path, caption_key="caption")
    assert [e.captions[0] for e in read_all(asked)] == ["b one", "of c.d", "another"]
    assert asked.rejects.counts == {"no caption": 2}


def test_a_folder_and_a_shard_of_the_same_files_have_the_same_examples(tmp_path):
    """Every unusual kind of image, and every broken one."""
    files, expected = {}, {}
    for number, maker in enumerate([*GOOD.values(), *BROKEN.values()]):
        files[f"{number:03d}.jpg"] = maker()
        files[f"{number:03d}.txt"] = f"caption {number}".encode()
    for name in BROKEN.keys() - set(WHOLE_HEADERS):
        expected[REASONS[name]] = expected.get(REASONS[name], 0) + 1
    folder = ImageFolder(tar_files.write(tmp_path / "folder", files))
    tar_files.write(tmp_path, {"x.tar": tar_files.tar(files)})
    tar = TarShards(str(tmp_path / "x.tar"), cache=tmp_path / "cache")
    assert folder.rejects.counts == tar.rejects.counts == expected
    assert folder.sizes.tolist() == tar.sizes.tolist()
    assert len(folder) == len(GOOD) + len(WHOLE_HEADERS)
    for one, other in zip(read_all(folder), read_all(tar), strict=True):
        assert (one.image, one.captions) == (other.image, other.captions)
        assert "x.tar/" + one.name.removesuffix(".jpg") == other.name


def test_only_the_beginning_of_a_long_file_is_looked_at(tmp_path, monkeypatch):
    lengths, read_size = [], images.read_size

    def measured(content, name):
        lengths.append(len(content))
        return read_size(content, name)

    monkeypatch.setattr(images, "read_size", measured)
    content = tar_files.image(1, kind="JPEG") + bytes(10**6)
    tar_files.write(tmp_path, {"a.jpg": content, "a.txt": b"a"})
    assert ImageFolder(tmp_path)[0].image == content
    assert lengths == [2**16]


def test_filters(tmp_path):
    records = [
        {"file_name": f"{number}.png", "text": "x"} | ({} if mark is None else {"pwatermark": mark})
        for number, mark in enumerate([0.1, 0.6, None, 0.5])
    ]
    files = {f"{number}.png": tar_files.image(number, 20 + number) for number in range(4)}
    tar_files.write(tmp_path, {**files, "metadata.jsonl": lines(*records)})

    def names(*options):
        return [example.name for example in read_all(ImageFolder(tmp_path, Filters(*options)))]

    assert names(0) == ["0.png", "1.png", "2.png", "3.png"]
    assert names(22) == ["2.png", "3.png"] and names(0, 0.5) == ["0.png", "3.png"]
    rejects = ImageFolder(tmp_path, Filters(21, 0.5)).rejects
    reasons = ("smaller than min_size = 21", "pwatermark above 0.5", "pwatermark not known")
    assert rejects.counts == dict.fromkeys(reasons, 1) and not rejects.damaged
    with pytest.raises(InputError, match="no example can be used: 4 smaller than min_size = 90"):
        ImageFolder(tmp_path, Filters(90))


def test_links(tmp_path):
    """Links to files of the user's own making, as in the hub's cache, are followed; names that lead
    out of the folder are not."""
    outside = tar_files.write(tmp_path / "outside", {"x.png": IMAGES[0], "x.txt": b"x"})
    folder = tmp_path / "folder"
    names = ["../outside/x.png", str(outside / "x.png"), "a/../../outside/x.png", "link.png"]
    records = [{"file_name": name, "text": "secret"} for name in names]
    files = {"metadata.jsonl": lines(*records), "a/good.png": IMAGES[1], "a/good.txt": b"good"}
    tar_files.write(folder, {**files, "b.png": IMAGES[2]})
    (folder / "link.png").symlink_to(outside / "x.png")
    (folder / "link").symlink_to(outside)
    (folder / "b.txt").symlink_to(outside / "x.txt")
    (folder / "lost.png").symlink_to("nowhere.png")
    examples = ImageFolder(folder)
    assert [example.name for example in read_all(examples)] == ["a/good.png", "b.png", "link.png"]
    assert examples.rejects.counts == {
        **{"no image for a caption": 3, "link to a folder": 1, "link to nothing": 1},
    }


@pytest.mark.parametrize(
    ("line", "reason", "first"),
    [
        (b"{", "damaged JSON", "metadata.jsonl:2"),
        (b"\xff", "damaged JSON", "metadata.jsonl:2"),
        (b"[1]", "JSON is not an object", "metadata.jsonl:2"),
        (b"null", "JSON is not an object", "metadata.jsonl:2"),
        ({"text": "x"}, "no file_name", "metadata.jsonl:2"),
        ({"file_name": 3, "text": "x"}, "no file_name", "metadata.jsonl:2"),
        ({"file_name": "", "text": "x"}, "no file_name", "metadata.jsonl:2"),
        ({"file_name": "n.png", "text": "x"}, "no image for a caption", "n.png"),
        ({"file_name": "a\0\n\ud800", "text": "x"}, "no image for a caption", "a???"),
        ({"file_name": ".", "text": "x"}, "no image for a caption", "."),
        ({"file_name": "a.png", "text": "again"}, "duplicate key", "a.png"),
        ({"file_name": "b.png"}, "no caption", "b.png"),
        ({"file_name": "b.png", "text": None}, "no caption", "b.png"),
        ({"file_name": "b.png", "text": ""}, "empty caption", "b.png"),
        ({"file_name": "b.png", "text": [None, " "]}, "empty caption", "b.png"),
        ({"file_name": "b.png", "text": {"en": "x"}}, "caption is not text", "b.png"),
        ({"file_name": "b.png", "text": "\ud800"}, "caption not UTF-8", "b.png"),
    ],
)
def test_records_that_cannot_be_used(tmp_path, line, reason, first):
    text = lines({"file_name": "a.png", "text": "a"}, line)
    tar_files.write(tmp_path, {"metadata.jsonl": text, "a.png": IMAGES[0]})
    if first == "b.png":
        tar_files.write(tmp_path, {"b.png": IMAGES[1]})
    examples = ImageFolder(tmp_path)
    assert read_all(examples) == [Example("a.png", IMAGES[0], ("a",))]
    assert examples.rejects.counts == {reason: 1} and examples.rejects.first == {reason: first}


def test_texts_that_cannot_be_used(tmp_path):
    names = ("damaged", "empty", "none", "two", "whole")
    files = {f"{name}.png": IMAGES[0] for name in names}
    files |= {"two.JPG": IMAGES[1], "damaged.txt": b"\xff", "empty.txt": b" \n", "two.txt": b"two"}
    tar_files.write(tmp_path, {**files, "whole.txt": b"whole", "alone.txt": b"alone"})
    examples = ImageFolder(tmp_path)
    assert [example.name for example in read_all(examples)] == ["whole.png"]
    assert examples.rejects.first == {
        "caption not UTF-8": "damaged.png",
        "empty caption": "empty.png",
        "no caption": "none.png",
        "several images for one key": "two.JPG",
        "no image for a caption": "alone.txt",
    }
    assert examples.rejects.total == examples.rejects.damaged == 5


def test_identity_is_of_the_examples_and_not_of_where_they_are(tmp_path):
    folder = tar_files.write(tmp_path / "a", tar_files.good(3))
    identity = ImageFolder(folder).identity
    copy = shutil.copytree(folder, tmp_path / "b")
    os.utime(copy / "00001.png", (0, 0))
    assert ImageFolder(copy).identity == pickle.loads(pickle.dumps(ImageFolder(folder))).identity
    picture = bytearray((copy / "00001.png").read_bytes())
    picture[-1] ^= 1  # of the same size
    tar_files.write(copy, {"00001.png": bytes(picture)})
    seen = {identity, ImageFolder(copy).identity}
    tar_files.write(copy, {"00001.txt": b"another caption"})
    seen.add(ImageFolder(copy).identity)
    (copy / "00001.png").rename(copy / "9.png")
    (copy / "00001.txt").rename(copy / "9.txt")
    seen.add(ImageFolder(copy).identity)
    (copy / "9.txt").unlink()
    seen.add(ImageFolder(copy).identity)
    assert len(seen) == 5


def test_a_file_that_goes_is_told(tmp_path):
    examples = ImageFolder(tar_files.write(tmp_path, tar_files.good(2)))
    path = tmp_path / "00001.png"
    path.unlink()
    with pytest.raises(InputError, match=re.escape(f"{path}: cannot be read: No such file")):
        examples[1]
    assert examples[0].captions == ("caption 0",)


def test_folders_that_cannot_be_used(tmp_path, monkeypatch):
    tar_files.write(
        tmp_path, {"empty/x.md": b"", "file": b"", "a/x.png": IMAGES[0], "a/x.txt": b"x"}
    )
    for name, said in (
        ("nowhere", "cannot be read: No such file or directory"),
        ("file", "cannot be read: Not a directory"),
        ("empty", "no example can be used: no images with captions are in it"),
    ):
        with pytest.raises(InputError, match=re.escape(f"{tmp_path / name}: {said}")):
            ImageFolder(tmp_path / name)

    def forbidden(*_):
        raise PermissionError(13, "Permission denied", "x.png")

    monkeypatch.setattr(image_folder.metadata, "image_size", forbidden)
    with pytest.raises(InputError, match="x.png: cannot be read: Permission denied"):
        ImageFolder(tmp_path / "a")
