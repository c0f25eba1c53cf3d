"""Where a preset finds its files, and what it says of files that are not there or not right."""

import dataclasses
import hashlib
import json
import re
import zipfile

import pytest
import tar_files

from slam_jax.base.errors import InputError
from slam_jax.evaluation import presets
from slam_jax.evaluation.images import open_images
from slam_jax.evaluation.presets import ARCHIVES, PRESETS, Archive, Found, find, preset_of
from slam_jax.evaluation.prompts import read_prompts

ANNOTATIONS = [{"image_id": i, "id": i, "caption": f"caption {i}"} for i in range(5)]
CAPTIONS = json.dumps({"annotations": ANNOTATIONS}).encode()
PICTURES = {f"{number:012d}.png": tar_files.image(number) for number in range(5)}


def small(name):
    """The preset, with a reference of five pictures."""
    return dataclasses.replace(PRESETS[name], count=4, pictures=5 if PRESETS[name].pictures else 0)


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def zips(tmp_path, monkeypatch):
    """A folder with the zips of COCO-2017, of which the module knows the MD5s."""
    folder = tmp_path / "coco"
    folder.mkdir()
    zipped(folder / "val2017.zip", {f"val2017/{k}": v for k, v in PICTURES.items()})
    annotations = {"annotations/captions_val2017.json": CAPTIONS}
    zipped(folder / "annotations_trainval2017.zip", annotations)
    for path in folder.iterdir():
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setitem(presets.ARCHIVES, path.name, Archive("http://where", md5))
    return folder


def test_presets_are_what_papers_measure_with():
    facts = {n: (p.count, p.pictures, p.picture_size, p.of_teacher) for n, p in PRESETS.items()}
    assert facts == {
        "coco2014_30k": (30_000, 40_504, 256, False),
        "coco2017_5k": (5_000, 5_000, 256, False),
        "laion_5k": (5_000, 0, 256, False),
        "teacher_5k": (5_000, 0, 256, True),
        "teacher_30k": (30_000, 0, 256, True),
    }
    assert all(name == preset.name for name, preset in PRESETS.items())
    assert all("\n" not in preset.where + preset.about for preset in PRESETS.values())
    assert all(re.fullmatch("[0-9a-f]{32}", archive.md5) for archive in ARCHIVES.values())
    for preset in PRESETS.values():  # a message says where the last of each is
        for names in (preset.prompts, preset.reference):
            assert names in ((), presets.WHOLE_FOLDER) or names[-1] in ARCHIVES


@pytest.mark.parametrize(
    ("captions", "pictures"),
    [("annotations/captions_val2014.json", "val2014"), ("captions_val2014.json", "images/val2014")],
)
def test_folders_as_coco_is_unpacked(tmp_path, captions, pictures):
    files = {captions: CAPTIONS, **{f"{pictures}/{name}": c for name, c in PICTURES.items()}}
    tar_files.write(tmp_path, files)
    found = find(small("coco2014_30k"), tmp_path)
    assert found == Found(str(tmp_path / captions), str(tmp_path / pictures))
    assert read_prompts(found.prompts, 4).record["of"] == len(open_images(found.reference)) == 5


def test_a_published_list_of_prompts_comes_first(tmp_path):
    files = {"annotations/captions_val2014.json": CAPTIONS, "captions_coco14_test.txt": b"a\nb\n"}
    tar_files.write(tmp_path, files)
    assert find(small("teacher_30k"), tmp_path) == Found(
        str(tmp_path / "captions_coco14_test.txt"), ""
    )


def test_zips_as_they_are_published(zips):
    found = find(small("coco2017_5k"), zips)
    assert found == Found(str(zips / "annotations_trainval2017.zip"), str(zips / "val2017.zip"))
    assert len(read_prompts(found.prompts).texts) == len(open_images(found.reference)) == 5
    assert find(small("teacher_5k"), zips) == found._replace(reference="")


@pytest.mark.parametrize("name", ["val2017.zip", "annotations_trainval2017.zip"])
def test_a_zip_that_is_not_the_published_one_is_refused(zips, name):
    content = (zips / name).read_bytes()
    (zips / name).write_bytes(content[:-1])
    message = f"{name}: MD5 {hashlib.md5(content[:-1]).hexdigest()}, expected "
    with pytest.raises(InputError, match=message) as caught:
        find(small("coco2017_5k"), zips)
    assert "http://where" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_missing_is_named_with_its_url_and_md5(tmp_path):
    tar_files.write(tmp_path, {"val2017/1.png": PICTURES["000000000001.png"]})
    with pytest.raises(InputError) as caught:
        find(PRESETS["coco2017_5k"], tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: coco2017_5k needs annotations/captions_val2017.json, captions_val2017.json "
        "or annotations_trainval2017.zip (http://images.cocodataset.org/annotations/"
        "annotations_trainval2017.zip, MD5 f4bbac642086de4f52a3fdda2de5fa2c) in it; put the files "
        "there"
    )
    with pytest.raises(InputError, match="needs captions_coco14_test.* and val2014, .*a3d79f5e"):
        find(PRESETS["coco2014_30k"], tmp_path)
    with pytest.raises(InputError, match="gone: no such folder; coco2014_30k needs val2014.zip"):
        find(PRESETS["coco2014_30k"], tmp_path / "gone")


def test_a_reference_that_is_not_whole_is_refused(tmp_path):
    tar_files.write(tmp_path, {"captions_val2017.json": CAPTIONS})
    tar_files.write(tmp_path / "val2017", PICTURES)
    (tmp_path / "val2017/000000000003.png").unlink()
    with pytest.raises(InputError, match="val2017: 4 pictures, expected 5; unpack val2017.zip"):
        find(small("coco2017_5k"), tmp_path)


def test_images_of_ones_own_are_prompts_and_reference(tmp_path):
    tar_files.write(tmp_path, {"0.tar": tar_files.tar(tar_files.good(6))})
    pattern = f"{tmp_path}/{{0..0}}.tar"
    found = find(small("laion_5k"), pattern)
    assert found == Found(pattern, pattern)
    assert len(read_prompts(found.prompts, 4).texts) == 4 and len(open_images(pattern)) == 6


def test_an_unknown_preset_is_refused():
    with pytest.raises(InputError, match="coco: no such preset, expected one of coco2014_30k, "):
        preset_of("coco")
    assert preset_of("laion_5k") is PRESETS["laion_5k"]
