"""Pictures of folders, zips and shards: all of them, in one order, or none."""

import hashlib
import threading
import zipfile
from contextlib import closing
from io import BytesIO

import numpy as np
import pytest
import tar_files
from broken_images import BROKEN, cut, noisy, oriented
from PIL import Image, ImageOps

from slam_jax.base.errors import InputError
from slam_jax.evaluation.images import count_images, open_images

NAMES = [f"COCO_val2014_{number:012d}.png" for number in (42, 73, 1000)]
CONTENTS = [tar_files.image(number) for number in range(3)]
FILES = dict(zip(reversed(NAMES), reversed(CONTENTS), strict=True))  # written in no order


def zipped(path, files, kind=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def read_all(images, make=lambda picture: picture):
    with closing(images.read(make)) as stream:
        return list(stream)


def expected_sha256(contents):
    digests = (hashlib.sha256(content).digest() for content in contents)
    return hashlib.sha256(b"".join(digests)).hexdigest()


@pytest.fixture
def sources(tmp_path):
    """The same three pictures in three ways."""
    more = {"readme.txt": b"no picture", "._COCO.png": b"of macOS", ".hidden/x.png": b"hidden"}
    folder = tar_files.write(tmp_path / "val2014", {**FILES, **more})
    archive = zipped(
        tmp_path / "val2014.zip",
        {"val2014/": b"", **{f"val2014/{name}": content for name, content in FILES.items()}}
        | {"__MACOSX/val2014/._COCO.png": b"of macOS", "val2014/readme.txt": b"no picture"},
    )
    shards = tar_files.write(tmp_path, {"0.tar": tar_files.tar(tar_files.good(3))}) / "{0..0}.tar"
    return {"folder": folder, "zip": archive, "tar": shards}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_the_same_pictures_from_a_folder_a_zip_and_shards(sources, kind):
    images = open_images(sources[kind])
    assert len(images) == 3 and images.name == str(sources[kind]) and images.sha256 == ""
    pictures = read_all(images)
    for index, (picture, content) in enumerate(zip(pictures, CONTENTS, strict=True)):
        expected = np.asarray(Image.open(BytesIO(content)).convert("RGB"))
        np.testing.assert_array_equal(picture.pixels, expected)
        assert picture.pixels.dtype == np.uint8
        again = images[index]
        assert again.name == picture.name
        np.testing.assert_array_equal(again.pixels, expected)
    prefix = {"folder": "", "zip": "val2014/", "tar": "0.tar/"}[kind]
    names = [f"{number:05d}" for number in range(3)] if kind == "tar" else NAMES
    assert [picture.name for picture in pictures] == [prefix + name for name in names]
    assert images.sha256 == expected_sha256(CONTENTS)
    if kind != "tar":
        assert count_images(sources[kind]) == 3


def test_pictures_are_found_in_folders_of_folders(tmp_path):
    tar_files.write(tmp_path / "a", {"b/c/2.JPG": noisy("JPEG"), "1.png": CONTENTS[0]})
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name in ("a", "link"):  # the folder itself may be one
        assert [picture.name for picture in read_all(open_images(tmp_path / name))] == [
            "1.png",
            "b/c/2.JPG",
        ]


def test_exif_turns_a_picture(tmp_path):
    content = oriented("JPEG", 6)
    tar_files.write(tmp_path, {"a.jpg": content})
    upright = ImageOps.exif_transpose(Image.open(BytesIO(content))).convert("RGB")
    np.testing.assert_array_equal(open_images(tmp_path)[0].pixels, np.asarray(upright))


def test_what_is_made_of_them_comes_in_their_order_from_threads(tmp_path):
    files = {f"{number:04d}.png": tar_files.image(number) for number in range(200)}
    threads = set()

    def make(picture):
        threads.add(threading.get_ident())
        return picture.name, picture.pixels[0, 0].tolist()

    expected = [
        (name, [number * 40 % 256, number * 7 % 256, 99]) for number, name in enumerate(files)
    ]
    archive = zipped(tmp_path / "a.zip", files)
    assert read_all(open_images(archive), make) == expected
    assert len(threads) > 1 and threading.get_ident() not in threads


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_three_broken_files_are_refused_before_anything_is_computed(tmp_path, kind):
    files = FILES | {
        "a.png": BROKEN["HTML"](),
        "b.jpg": BROKEN["zero bytes"](),
        "c.jpg": BROKEN["HTML"](),
    }
    source = tar_files.write(tmp_path / "x", files)
    if kind == "zip":
        source = zipped(tmp_path / "x.zip", files)
    with pytest.raises(InputError) as caught:
        open_images(source)
    assert str(caught.value) == (
        f"{source}: 3 of 6 pictures cannot be used, where all have to be: 2 not a JPEG, PNG or "
        "WebP image (first: a.png); 1 empty image file (first: b.jpg); repair or remove them"
    )


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_only_decoding_finds_is_refused_at_the_end(tmp_path, kind):
    files = FILES | {"a.jpg": BROKEN["JPEG, cut pixels"](), "z.png": BROKEN["PNG, cut pixels"]()}
    source = tar_files.write(tmp_path / "x", files)
    if kind == "zip":
        source = zipped(tmp_path / "x.zip", files)
    images, seen = open_images(source), []
    message = r"2 of 5 pictures cannot be used.*2 damaged image \(first: a.jpg\)"
    with pytest.raises(InputError, match=message), closing(images.read(lambda p: p.name)) as stream:
        seen.extend(stream)
    assert seen == NAMES and images.sha256 == ""
    with pytest.raises(InputError, match="a.jpg: damaged image"):
        images[3]


def test_a_member_of_a_zip_whose_bytes_changed_is_refused(tmp_path):
    source = zipped(tmp_path / "x.zip", FILES, zipfile.ZIP_STORED)
    content = bytearray(source.read_bytes())
    at = content.index(CONTENTS[1]) + len(CONTENTS[1]) - 5
    content[at] ^= 255
    source.write_bytes(content)
    with pytest.raises(InputError, match=rf"1 damaged in the zip \(first: {NAMES[1]}\)"):
        read_all(open_images(source))


def test_a_shard_with_an_example_that_cannot_be_used_is_refused(tmp_path):
    members = tar_files.good(3) | {"x.png": b"nothing", "x.txt": b"of nothing"}
    tar_files.write(tmp_path, {"0.tar": tar_files.tar(members)})
    with pytest.raises(InputError, match="1 of 4 pictures cannot be used"):
        open_images(tmp_path / "0.tar")


def test_a_link_to_a_folder_is_not_passed_over(tmp_path):
    tar_files.write(tmp_path / "x", FILES)
    tar_files.write(tmp_path / "y", FILES)
    (tmp_path / "x/more").symlink_to(tmp_path / "y")
    with pytest.raises(InputError, match=r"1 link to a folder \(first: more\)"):
        open_images(tmp_path / "x")


def test_nothing_to_read_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_bytes(cut(zipped(tmp_path / "a.zip", FILES).read_bytes(), 0.5))
    zipped(tmp_path / "empty.zip", {"readme.txt": b""})
    for name, message in {
        "empty": "empty: no pictures in it",
        "empty.zip": "empty.zip: no pictures in it",
        "gone": "gone: cannot be read .No such file",
        "gone.zip": "gone.zip: cannot be read .No such file",
        "broken.zip": "broken.zip: cannot be read .Not a directory",
        "*.tar": "no tar shard is there",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            open_images(tmp_path / name)
        assert "\n" not in str(caught.value)
