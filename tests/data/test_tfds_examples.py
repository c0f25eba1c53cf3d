"""Sets of tensorflow-datasets: tfds itself describes and serialises what is read here."""

import pickle
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from broken_images import GOOD
from tfds_files import COUNT, FEATURES, SHARDS, F, example, make, picture

from slam_jax.base.errors import InputError
from slam_jax.data.batches import Batches
from slam_jax.data.examples import Filters
from slam_jax.data.image_text import ImageText, Transform
from slam_jax.data.rejects import Rejected
from slam_jax.data.tfds_examples import TfdsExamples


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("sets")
    make(folder, FEATURES, [example(i) for i in range(COUNT)])
    return str(folder)


def examples_of(data_dir, split="train", caption_key="captions/text", **options) -> TfdsExamples:
    return TfdsExamples("pics", split, str(data_dir), caption_key=caption_key, **options)


def test_examples_are_those_that_tfds_reads(data_dir, capfd):
    examples = examples_of(data_dir)
    assert len(examples) == COUNT and examples.name == "tfds:pics"
    builder = tfds.builder_from_directory(f"{data_dir}/pics/1.0.0")
    skip = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source("train", decoders=skip)
    for index in range(COUNT):
        expected, found = source[index], examples[index]
        assert found.image == expected["image"] == picture(index)
        assert found.captions == tuple(t.decode() for t in expected["captions"]["text"])
        assert found.name == f"train/{index}"
    assert not examples.rejects.counts
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("key", "captions"),
    [
        ("title", ("title 4",)),
        ("label", ("dog",)),
        ("more/text", ("text 4",)),
        ("captions/text", ("ñ 4.0", "ñ 4.1")),
    ],
)
def test_captions_of_all_kinds(data_dir, key, captions):
    assert examples_of(data_dir, caption_key=key)[4].captions == captions


def test_another_image(data_dir):
    examples = examples_of(data_dir, image_key="more/image")
    assert examples[2].image == GOOD["RGBA PNG"]()


@pytest.mark.parametrize(
    ("split", "indices"),
    [
        ("train[2:5]", [2, 3, 4]),
        ("train[-2:]", [5, 6]),
        ("train[5:]+train[:1]", [5, 6, 0]),
        ("train[:29%]", [0, 1]),
    ],
)
def test_parts_of_a_split(data_dir, split, indices):
    examples = examples_of(data_dir, split, caption_key="title")
    found = [examples[i].captions for i in range(len(examples))]
    assert found == [(f"title {i}",) for i in indices]
    assert examples[0].name == f"{split}/0"


def test_the_identity_tells_other_examples(data_dir, tmp_path):
    one = examples_of(data_dir).identity
    assert examples_of(data_dir, filters=Filters(min_size=9)).identity == one
    others = [
        examples_of(data_dir, "train[:6]"),
        examples_of(data_dir, "train[3:]+train[:3]"),
        examples_of(data_dir, "train[:3]"),
        examples_of(data_dir, "train[4:]"),  # as many of another shard
        examples_of(data_dir, caption_key="title"),
        examples_of(data_dir, image_key="more/image"),
        examples_of(data_dir, filters=Filters(min_size=23)),
    ]
    assert len({one, *(other.identity for other in others)}) == 8
    make(tmp_path, FEATURES, [example(i) for i in range(COUNT)])
    assert examples_of(tmp_path).identity == one  # a copy elsewhere
    make(tmp_path / "more", FEATURES, [example(i) for i in range(COUNT + 1)])
    assert examples_of(tmp_path / "more").identity != one


def test_the_only_text_is_the_caption(tmp_path):
    features = {"image": F.Image(), "alt": F.Text(), "caption": np.int64}
    make(tmp_path, features, [{"image": BytesIO(picture(0)), "alt": "text", "caption": 3}])
    assert examples_of(tmp_path, caption_key="")[0].captions == ("text",)


def test_caption_is_the_caption_among_several_texts(tmp_path):
    features = {"image": F.Image(), "alt": F.Text(), "caption": F.Text()}
    make(tmp_path, features, [{"image": BytesIO(picture(0)), "alt": "text", "caption": "this"}])
    assert examples_of(tmp_path, caption_key="")[0].captions == ("this",)


def test_small_images_are_filtered(data_dir):
    examples = examples_of(data_dir, filters=Filters(min_size=23))
    assert len(examples) == COUNT - 3 and examples[0].captions == ("ñ 3.0",)
    assert examples.rejects.counts == {"smaller than min_size = 23": 3}
    assert examples.rejects.first == {"smaller than min_size = 23": "train/0"}
    assert examples.rejects.damaged == 0
    with pytest.raises(InputError, match=f"tfds:pics: no example can be used: {COUNT} smaller"):
        examples_of(data_dir, filters=Filters(min_size=1000))


def test_examples_that_cannot_be_used_are_rejected(tmp_path):
    def one(image, captions):
        return {"image": BytesIO(image), "captions": captions, "label": -1}

    image = picture(0)
    examples = [
        one(image, ["fine", " "]),
        one(image, [b"\xff\xfe"]),
        one(image, []),
        one(image, ["  "]),
        one(b"GIF89a nonsense", ["a"]),
    ]
    make(
        tmp_path,
        {"image": F.Image(), "captions": F.Sequence(F.Text()), "label": F.ClassLabel(names=["a"])},
        examples,
    )
    found = examples_of(tmp_path, caption_key="captions")
    assert found[0].captions == ("fine",)
    reasons = ["caption not UTF-8", "no caption", "empty caption"]
    for index, reason in enumerate(reasons, 1):
        with pytest.raises(Rejected, match=reason) as caught:
            found[index]
        assert not caught.value.asked_for and caught.value.name == f"train/{index}"
    with pytest.raises(Rejected, match="no caption"):
        examples_of(tmp_path, caption_key="label")[0]  # -1: not labelled
    looked_at = examples_of(tmp_path, caption_key="captions", filters=Filters(min_size=1))
    reasons.append("not a JPEG, PNG or WebP image")
    assert looked_at.rejects.counts == dict.fromkeys(reasons, 1) and len(looked_at) == 1
    assert looked_at.rejects.damaged == 4


def test_a_record_without_an_image(tmp_path):
    make(tmp_path, FEATURES, [{"title": "alone"}])
    with pytest.raises(Rejected, match="no image"):
        examples_of(tmp_path)[0]


@pytest.mark.parametrize("damage", ["overwritten", "cut", "gone later"])
def test_damaged_records_are_rejected(tmp_path, damage):
    home = make(tmp_path, FEATURES, [example(i) for i in range(COUNT)])
    file = home / "pics-train.array_record-00000-of-00002"
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "overwritten":
        at = content.index(b"title 1")  # within the second record
        file.write_bytes(content[:at] + b"\0" * 7 + content[at + 7 :])
    examples = examples_of(tmp_path)
    if damage == "gone later":
        file.unlink()
    with pytest.raises(Rejected, match="damaged record") as caught:
        examples[1]
    assert caught.value.name == "train/1"
    assert examples[SHARDS[0]].captions == ("ñ 4.0", "ñ 4.1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(split="test"), ["'test'", "expected a part of train"]),
        (dict(split="train[:0]"), ["'train[:0]'"]),
        (dict(split="train[7"), ["'train[7'"]),
        (dict(split=""), ["no examples in split ''"]),
        (dict(caption_key="text"), ["'text'", "one of captions/text, more/text, title, label"]),
        (dict(caption_key=""), ["'caption'", "captions/text"]),
        (dict(image_key="img"), ["'img'", "one of image, mask, more/image"]),
        (dict(image_key="title"), ["'title'"]),
    ],
)
def test_what_is_not_there_is_named_with_what_is(tmp_path, options, words):
    make(tmp_path, FEATURES, [example(i) for i in range(COUNT)])
    with pytest.raises(InputError) as caught:
        examples_of(tmp_path, **options)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("tfds:pics: ")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("picz", ["not in", "pics", "tfds build picz", "--file_format=array_record"]),
        ("pics:2.0.0", ["not in", "tfds build pics:2.0.0"]),
        ("pics/small", ["not in"]),
        ("pi cs", ["cannot be read"]),
    ],
)
def test_no_such_set(data_dir, name, words, capfd):
    with pytest.raises(InputError) as caught:
        TfdsExamples(name, data_dir=data_dir)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in (f"tfds:{name}", data_dir, *words))
    assert capfd.readouterr() == ("", "")


def test_sets_that_cannot_be_read(tmp_path):
    home = make(tmp_path / "a", {"image": F.Image(), "caption": F.Text()}, [], "tfrecord")
    with pytest.raises(InputError, match=f"tfrecord, expected array_record.*={home} --out"):
        examples_of(tmp_path / "a", caption_key="caption")
    home = make(tmp_path / "b", FEATURES, [example(i) for i in range(COUNT)])
    next(home.glob("*-00001-of-00002")).unlink()
    with pytest.raises(InputError, match="00001-of-00002: no such file"):
        examples_of(tmp_path / "b")
    (home / "features.json").write_text("{")
    with pytest.raises(InputError, match="tfds:pics: cannot be read in"):
        examples_of(tmp_path / "b")


def test_a_missing_package_is_named(monkeypatch, data_dir):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r"pip install 'slam_jax\[tfds\]'"):
        examples_of(data_dir)


def test_it_is_imported_when_needed_and_without_a_word():
    code = (
        "import sys, slam_jax.data.tfds_examples as t; "
        "assert 'tensorflow_datasets' not in sys.modules; t._import('x').features"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[2], text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_pickled_source_reads_the_same(data_dir):
    examples = examples_of(data_dir)
    examples[0]  # its files are open
    again = pickle.loads(pickle.dumps(examples))
    assert [again[i] for i in range(COUNT)] == [examples[i] for i in range(COUNT)]
    assert (again.identity, again.name) == (examples.identity, examples.name)


def lengths(captions: list[str]) -> np.ndarray:
    return np.array([[len(caption)] for caption in captions], np.int32)


def test_batches_of_a_set(data_dir):
    examples = examples_of(data_dir, filters=Filters(min_size=22))
    source = ImageText(examples, Transform(16), lengths)
    iterator = Batches(source, COUNT, seed=0).iterate(0)
    batch = next(iterator)
    iterator.close()
    assert len(examples) == COUNT - 2 and batch["images"].shape == (COUNT, 16, 16, 3)
    assert np.unique(batch["time_ids"][:, 0]).tolist() == [22, 23, 24, 25, 26]
    assert batch["tokens"].tolist() == [[5]] * COUNT
