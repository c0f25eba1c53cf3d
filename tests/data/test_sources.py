"""Which source a name means, and which options it takes."""

import argparse
import errno
import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from slam_jax.base.errors import InputError
from slam_jax.data.image_folder import ImageFolder
from slam_jax.data.image_text import ImageText
from slam_jax.data.options import Data
from slam_jax.data.sources import (
    SOURCES,
    add_source_options,
    check_used,
    data_of,
    kind_of,
    open_examples,
    open_source,
    say_rejects,
)
from slam_jax.data.tar_shards import TarShards


def jpeg(size=(40, 30)):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "JPEG")
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    (tmp_path / "shards").mkdir()
    for i in range(2):
        good = {f"{i}{k}.{e}": c for k in "ab" for e, c in (("jpg", jpeg()), ("txt", b"red"))}
        small = {f"{i}c.jpg": jpeg((9, 9)), f"{i}c.txt": b"small"}
        damaged = {f"{i}d.jpg": b"nothing", f"{i}d.txt": b"x"} if i else {}
        write_tar(tmp_path / "shards" / f"{i}.tar", {**good, **small, **damaged})
    return tmp_path / "shards"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / f"images/{i}.jpg").write_bytes(jpeg())
        (tmp_path / f"images/{i}.txt").write_text(f"red {i}")
    return tmp_path / "images"


def test_a_name_says_what_it_is(shards, folder):
    kinds = {
        **{"digits": "digits", "photographs": "photographs", "tfds:coco_captions/2014": "tfds"},
        **{str(shards): "tar", str(folder): "folder", f"{shards}/{{0..1}}.tar": "tar"},
        **{f"teacher:{shards}/*.tar": "teacher", "teacher:prompts.txt": "teacher"},
        **{"gs://bucket/x-*.tar": "tar", "a.tar::b.tar": "tar", "https://host/0.tar": "tar"},
    }
    assert {source: kind_of(source) for source in kinds} == kinds
    with pytest.raises(InputError, match="'nowhere': no such folder; expected a folder"):
        kind_of("nowhere")


def test_a_folder_that_may_not_be_read_is_not_said_to_be_missing(folder, monkeypatch):
    """As where nobody but its owner may enter the folder above it."""
    stat = os.stat

    def refused(path, *arguments, **options):
        if str(path) == str(folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(
        InputError, match=r"cannot be read \(Permission denied\); expected a folder"
    ):
        kind_of(str(folder))


def test_a_name_may_be_long_or_of_nobodys_home(shards):
    many = "::".join(f"{shards}/{i % 2}.tar" for i in range(300))
    assert kind_of(many) == "tar"
    with pytest.raises(InputError, match="0.tar is in it twice"):
        open_examples(Data(source=many))
    braces = f"{shards}/{{{','.join(['0'] * 300)}}}.tar"
    with pytest.raises(InputError, match="0.tar is in it twice"):
        open_examples(Data(source=braces))
    with pytest.raises(InputError, match="~nobody-at-all/x.tar: no such tar shard"):
        open_examples(Data(source="~nobody-at-all/x.tar"))
    with pytest.raises(InputError, match="simplecache::...: chained URLs are not read"):
        open_examples(Data(source="simplecache::file:///a.tar"))


def test_sources_are_opened_with_their_options(shards, folder, tmp_path, capsys):
    index = str(tmp_path / "index")
    data = Data(source=f"{shards}/*.tar", min_size=20, max_rejects=0.2, index=index)
    examples = open_examples(data)
    assert isinstance(examples, TarShards) and len(examples) == 4
    say_rejects(examples)
    said = capsys.readouterr().err
    assert "passed over 2 smaller than min_size = 20 (first: 0.tar/0c)" in said
    assert "passed over 1 not a JPEG, PNG or WebP image (first: 1.tar/1d)" in said
    assert list((tmp_path / "index").iterdir())
    examples = open_examples(Data(source=str(folder)))
    assert isinstance(examples, ImageFolder) and examples[2].captions == ("red 2",)


def test_a_text_to_image_source_has_the_transforms_of_the_config(folder):
    def tokenize(texts):
        return np.array([[len(text)] for text in texts])

    data = Data(source=str(folder), resolution=16, crop="center", empty_prompts=1.0)
    source = open_source(data, tokenize)
    assert isinstance(source, ImageText)
    batch, rejects = source.read(np.arange(3), np.arange(3))
    assert batch["images"].shape == (3, 16, 16, 3) and rejects.total == 0
    assert batch["tokens"].ravel().tolist() == [0, 0, 0]
    assert set(batch["time_ids"][:, 3]) == {3}  # 40 x 30 becomes 21 x 16, with 2.5 on each side


def test_a_source_that_is_mostly_damaged_is_refused(tmp_path):
    members = {f"{i}.{e}": b"nothing" for i in range(150) for e in ("jpg", "txt")}
    members |= {"good.jpg": jpeg(), "good.txt": b"red"}
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(InputError, match=r"150 of 151 examples .*max_rejects = 0.5"):
        open_examples(Data(source=str(tmp_path), max_rejects=0.5, index=str(tmp_path / "index")))


def other_than(default):
    """Another value of the same type, which `Data` takes."""
    special = {"random": "center", 512: 64}
    return special.get(default, {str: "x", int: 3, float: 0.5, bool: True}[type(default)])


DRAWN = {"resolution", "flip", "captions", "empty_prompts", "workers"}
TEACHER = {f"teacher_{name}" for name in ("count", "steps", "w", "batch", "text_embeddings")}
FILES = DRAWN | {"crop", "min_size", "max_watermark", "max_rejects", "caption_key"}
READS = {
    "digits": {"workers"},
    "photographs": DRAWN | {"crop"},
    "folder": FILES,
    "tar": FILES | {"index"},
    "tfds": FILES | {"image_key", "split", "data_dir"},
    "emoji": DRAWN | {"crop", "index", "split"},
    "prepared": DRAWN | {"max_rejects"},
    "teacher": (DRAWN | TEACHER | {"max_rejects"}) - {"flip"},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_an_option_that_a_source_does_not_read_is_refused(kind):
    for name, field in Data.__dataclass_fields__.items():
        if name == "source":
            continue
        value = {"captions": "first", "flip": True}.get(name, other_than(field.default))
        data = Data(source="here", **{name: value})
        if name in READS[kind]:
            check_used(data, kind)
            continue
        with pytest.raises(InputError, match=f"here: {name} = .* leave it at {field.default!r}"):
            check_used(data, kind)


@pytest.mark.parametrize("source", ["digits", "photographs"])
def test_bundled_sources_have_images_or_not(source):
    if source == "digits":
        with pytest.raises(InputError, match="digits: of kind digits, expected pictures"):
            open_examples(Data(source=source))
    else:
        assert len(open_examples(Data(source=source))) == 15


def test_command_lines_have_the_same_options():
    parser = argparse.ArgumentParser()
    add_source_options(parser)
    arguments = parser.parse_args(["--min-size", "256", "--split", "train[:10%]"])
    data = data_of(arguments, "tfds:mnist", resolution=64)
    assert data == Data("tfds:mnist", resolution=64, min_size=256, split="train[:10%]")
    with pytest.raises(
        InputError, match=r"^--max-watermark = 2.0, expected a number at least 0 and at most 1"
    ):
        data_of(parser.parse_args(["--max-watermark", "2"]), "photographs")
