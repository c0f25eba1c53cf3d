"""Lists of prompts from every kind of file, and what is refused."""

import hashlib
import json
import zipfile

import numpy as np
import pytest
import tar_files

from slam_jax.base.errors import InputError
from slam_jax.evaluation.prompts import read_prompts

# As in COCO's files: not in the order of their ids, several for an image, white space anywhere.
ANNOTATIONS = [
    {"image_id": 900, "id": 7, "caption": "Nine hundred, later."},
    {"image_id": 42, "id": 30, "caption": "A cat\non a  mat. "},
    {"image_id": 900, "id": 5, "caption": "Nine hundred, earlier"},
    {"image_id": 42, "id": 31, "caption": "Another cat"},
    {"image_id": 7, "id": 99, "caption": " caf\u00e9 "},
    {"image_id": 7, "id": 98, "caption": " \n"},
]
CAPTIONS = {"info": {}, "images": [{"id": 7}, {"id": 42}, {"id": 900}], "annotations": ANNOTATIONS}
CHOSEN = ("caf\u00e9", "A cat on a mat.", "Nine hundred, earlier")


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions_val2014.json"
    path.write_text(json.dumps(CAPTIONS))
    return path


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def text_file(folder, *lines, name="prompts.txt"):
    path = folder / name
    path.write_bytes("".join(lines).encode())
    return path


def test_a_prompt_on_each_line(tmp_path):
    content = "\ufeffa lighthouse\r\n\n  two   dogs \n\u4e00\u53ea\u732b\u2028next"
    path = text_file(tmp_path, content)
    prompts = read_prompts(path)
    assert prompts.texts == ("a lighthouse", "two dogs", "\u4e00\u53ea\u732b next")
    assert prompts.record == {
        "file": "prompts.txt",
        "sha256": sha256(path.read_bytes()),
        "prompts_sha256": sha256("a lighthouse\ntwo dogs\n\u4e00\u53ea\u732b next".encode()),
        "count": 3,
        "of": 3,
        "chosen": "each line that is not empty",
        "seed": 0,
    }
    json.dumps(prompts.record)


def test_of_coco_the_caption_with_the_lowest_id(captions):
    prompts = read_prompts(str(captions))
    assert prompts.texts == CHOSEN
    record = prompts.record
    assert (record["count"], record["of"], record["file"]) == (3, 3, "captions_val2014.json")
    assert record["sha256"] == sha256(captions.read_bytes())
    assert record["prompts_sha256"] == sha256("\n".join(CHOSEN).encode())
    assert "lowest id" in record["chosen"]


def test_the_published_zip_is_read_as_it_is(tmp_path, captions):
    path = tmp_path / "annotations_trainval2014.zip"
    other = json.dumps({"annotations": [{"image_id": 1, "id": 1, "caption": "of training"}]})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations/instances_val2014.json", "{}")
        archive.writestr("annotations/captions_train2014.json", other)
        archive.write(captions, "annotations/captions_val2014.json")
    prompts, unpacked = read_prompts(path), read_prompts(captions)
    assert prompts.texts == unpacked.texts
    name = "annotations_trainval2014.zip/annotations/captions_val2014.json"
    assert prompts.record == {**unpacked.record, "file": name}


def test_captions_of_images_in_a_folder_and_in_shards(tmp_path):
    folder = tar_files.write(tmp_path / "images", tar_files.good(5))
    shards = tar_files.write(tmp_path / "shards", {"0.tar": tar_files.tar(tar_files.good(5))})
    expected = tuple(f"caption {number}" for number in range(5))
    of_folder, of_shards = read_prompts(folder), read_prompts(f"{shards}/{{0..0}}.tar")
    assert of_folder.texts == of_shards.texts == expected
    assert of_folder.record["prompts_sha256"] == sha256("\n".join(expected).encode())
    assert len({len(of.record["sha256"]) for of in (of_folder, of_shards)}) == 1
    assert read_prompts(shards / "0.tar", 2, seed=3).texts == read_prompts(folder, 2, seed=3).texts


def test_a_choice_is_seeded_in_order_and_without_repetition(tmp_path):
    texts = [f"prompt {number}" for number in range(1000)]
    path = text_file(tmp_path, "\n".join(texts))
    chosen = read_prompts(path, 100, seed=5)
    places = [texts.index(text) for text in chosen.texts]
    assert places == sorted(set(places)) and len(places) == 100
    assert chosen.record["of"] == 1000 and chosen.record["count"] == 100
    assert chosen.record["seed"] == 5 and "100 of these 1000" in chosen.record["chosen"]
    assert read_prompts(path, 100, seed=5) == chosen
    assert read_prompts(path, 100, seed=6).texts != chosen.texts
    assert set(read_prompts(path, 30, seed=5).texts) < set(chosen.texts)
    # numpy's own way to the same order, at the level that it keeps the same for ever.
    generator = np.random.Generator(np.random.PCG64(5))
    ranks = generator.bit_generator.random_raw(1000)
    assert places == sorted(np.argsort(ranks)[:100].tolist())
    # Uniform: over many seeds each prompt is as frequent as any other.
    counts = np.zeros(10)
    for seed in range(300):
        short = read_prompts(text_file(tmp_path, "\n".join(texts[:10]), name="ten.txt"), 5, seed)
        counts[[texts.index(text) for text in short.texts]] += 1
    assert np.abs(counts - 150).max() < 45  # five deviations


def test_all_of_them_need_no_seed(captions):
    assert read_prompts(captions, 3, seed=1).texts == read_prompts(captions).texts
    assert ";" not in read_prompts(captions, 3).record["chosen"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: no prompts in it"),
        ("a.txt", b" \n\n", "a.txt: no prompts in it"),
        ("a.txt", "caf\u00e9".encode("latin-1"), "a.txt: not UTF-8 text"),
        ("a.pkl", b"\x80\x04\x95 pickled", "a.pkl: not UTF-8 text"),
        ("a.json", b"", "a.json: not JSON"),
        ("a.json", b"{", "a.json: not JSON"),
        ("a.json", b"[" * 100_000, "a.json: not JSON"),
        ("a.json", b"\xff{}", "a.json: not UTF-8"),
        ("a.json", b"[]", "a.json: no captions in it"),
        ("a.json", b'{"annotations": null}', "a.json: no captions in it"),
        ("a.json", b'{"annotations": []}', "a.json: no prompts in it"),
        ("a.json", b'{"annotations": [{"image_id": 1, "id": 2}]}', "a.json: no captions in it"),
        ("a.zip", b"PK\x05\x06" + bytes(18), "a.zip: no captions_"),
        ("gone.txt", None, "gone.txt: no such file"),
        ("gone/*.tar", None, "no tar shard"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_zip_that_was_cut_is_refused(tmp_path, captions):
    path = tmp_path / "annotations_trainval2014.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(captions, "annotations/captions_val2014.json")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Nine hundred", b"Zine hundred"))  # the CRC tells
    with pytest.raises(InputError, match="annotations_trainval2014.zip: cannot be read"):
        read_prompts(path)


def test_fewer_than_asked_for_are_refused(captions):
    with pytest.raises(InputError, match="3 prompts, fewer than the 4 asked for"):
        read_prompts(captions, 4)
