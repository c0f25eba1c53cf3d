"""Pictures of folders, zips and shards: all of them, in one order, or none."""

import zipfile
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


def read_all(images):
    return [images[index] for index in range(len(images))]


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
    assert len(images) == 3 and images.name == str(sources[kind])
    for pixels, content in zip(read_all(images), CONTENTS, strict=True):
        expected = np.asarray(Image.open(BytesIO(content)).convert("RGB"))
        np.testing.assert_array_equal(pixels, expected)
        assert pixels.dtype == np.uint8
    if kind != "tar":
        assert count_images(sources[kind]) == 3


def test_pictures_are_found_in_folders_of_folders(tmp_path):
    jpeg = noisy("JPEG")
    tar_files.write(tmp_path / "a", {"b/c/2.JPG": jpeg, "1.png": CONTENTS[0]})
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name in ("a", "link"):  # the folder itself may be one
        first, second = read_all(open_images(tmp_path / name))
        np.testing.assert_array_equal(first, np.asarray(Image.open(BytesIO(CONTENTS[0]))))
        with Image.open(BytesIO(jpeg)) as picture:
            np.testing.assert_array_equal(second, np.asarray(picture.convert("RGB")))


def test_exif_turns_a_picture(tmp_path):
    content = oriented("JPEG", 6)
    tar_files.write(tmp_path, {"a.jpg": content})
    upright = ImageOps.exif_transpose(Image.open(BytesIO(content))).convert("RGB")
    np.testing.assert_array_equal(open_images(tmp_path)[0], np.asarray(upright))


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
def test_what_only_decoding_finds_is_refused_when_it_is_read(tmp_path, kind):
    files = FILES | {"a.jpg": BROKEN["JPEG, cut pixels"]()}
    source = tar_files.write(tmp_path / "x", files)
    if kind == "zip":
        source = zipped(tmp_path / "x.zip", files)
    images = open_images(source)
    assert len(images) == 4
    with pytest.raises(InputError, match="a.jpg: damaged image; repair or remove it"):
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
