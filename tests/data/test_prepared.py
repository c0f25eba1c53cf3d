"""Folders of latents: their format, what is drawn from them, and what damage leads to."""

import json
import pickle
import shutil

import ml_dtypes
import numpy as np
import prepared_files
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from prepared_files import CAPTIONS, COUNT, SHARD_SIZE

from slam_jax.base.errors import InputError
from slam_jax.data.image_text import Transform
from slam_jax.data.prepared import Prepared, check_fits, read_info
from slam_jax.data.rejects import Rejected

STORED = ("tokens", "encoder_hidden_states", "text_embeds")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder, content, the empty prompt's; not to be changed."""
    folder = tmp_path_factory.mktemp("latents") / "finished"
    return folder, *prepared_files.write(folder)


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "copy")


def shard(folder, number):
    return folder / f"shard-{number:05d}.arrayrecord"


def refused(folder, **options):
    """The one line with which it is."""
    with pytest.raises(InputError) as error:
        Prepared(folder, **options)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def bits(array):
    return np.ascontiguousarray(array).tobytes()


def test_a_record_is_the_bytes_of_its_fields(finished):
    folder, content, _ = finished
    info = read_info(folder)
    assert info["counts"] == {"examples": COUNT, "source": COUNT, "shards": 3}
    assert [entry["count"] for entry in info["shards"]] == [4, 4, 2]
    assert not list(folder.glob(".*"))
    index = 0
    for number in range(3):
        reader = ArrayRecordReader(str(shard(folder, number)))
        options = reader.writer_options_string()  # those for random access
        assert "group_size:1," in options and "uncompressed" in options
        for record in reader.read_all():
            expected = b"".join(bits(content[name][index]) for name in info["fields"])
            assert record == expected
            index += 1
        reader.close()
    assert index == COUNT


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_batches_have_what_was_stored(tmp_path, dtype):
    content, _ = prepared_files.write(tmp_path / "x", dtype=dtype)
    source, indices = Prepared(tmp_path / "x", captions="first"), np.array([9, 0, 5, 9])
    batch, rejects = source.read(indices, np.arange(4))
    assert len(source) == COUNT and rejects.total == 0
    assert batch.keys() == {"moments", "time_ids", *STORED}
    for name, rows in batch.items():
        assert rows.dtype == content[name].dtype
        assert bits(rows) == bits(content[name][indices, 0])
    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    assert batch["moments"].dtype == batch["text_embeds"].dtype == kind


def test_only_what_is_stored_is_in_a_batch(tmp_path):
    prepared_files.write(tmp_path / "x", twins=False, embeddings=False)
    batch, _ = Prepared(tmp_path / "x").read(np.arange(3), np.arange(3))
    assert {name: rows.shape for name, rows in batch.items()} == {
        "moments": (3, 2, 3, 8),
        "time_ids": (3, 6),
        "tokens": (3, 2, 5),
    }


def choices(content, empty, batch, indices):
    """For each row, which view and which caption it has; -1 is the empty prompt."""
    for row, index in enumerate(indices):
        views = [bits(batch["moments"][row]) == bits(v) for v in content["moments"][index]]
        texts = [bits(batch["tokens"][row]) == bits(t) for t in content["tokens"][index]]
        view = views.index(True)
        text = texts.index(True) if True in texts else -1
        assert bits(batch["time_ids"][row]) == bits(content["time_ids"][index, view])
        for name in STORED:
            expected = empty[name] if text == -1 else content[name][index, text]
            assert bits(batch[name][row]) == bits(expected)
        yield view, text


def test_twins_captions_and_empty_prompts_are_drawn(finished):
    folder, content, empty = finished
    indices, seeds = np.tile(np.arange(COUNT), 60), np.arange(60 * COUNT)
    source = Prepared(folder, flip=True, captions="random", empty_prompts=0.25)
    batch, _ = source.read(indices, seeds)
    drawn = list(choices(content, empty, batch, indices))
    flipped = sum(view for view, _ in drawn)
    dropped = sum(text == -1 for _, text in drawn)
    assert 250 < flipped < 350 and 110 < dropped < 190
    for index in range(COUNT):
        seen = {text for n, (_, text) in zip(indices, drawn, strict=True) if n == index}
        assert seen == {-1, *range(1 + index % CAPTIONS)}  # and no repetition of the first
    again, _ = source.read(indices[::-1], seeds[::-1])
    assert all(bits(again[name][::-1]) == bits(rows) for name, rows in batch.items())


def test_no_option_changes_what_another_one_does(finished):
    folder, content, empty = finished
    indices, seeds = np.tile(np.arange(COUNT), 20), np.arange(20 * COUNT)

    def drawn(**options):
        batch, _ = Prepared(folder, **options).read(indices, seeds)
        return zip(*choices(content, empty, batch, indices), strict=True)

    views, texts = drawn(flip=True, captions="random", empty_prompts=0.3)
    assert next(iter(drawn(flip=True, captions="first"))) == views
    kept_views, kept_texts = drawn(captions="random", empty_prompts=0.0)
    assert set(kept_views) == {0}
    assert all(text in (-1, kept) for text, kept in zip(texts, kept_texts, strict=True))
    assert set(list(drawn(captions="first", empty_prompts=1.0))[1]) == {-1}


def test_draws_are_those_of_pictures_that_are_encoded_in_training(finished):
    """Example, seed -> the same twin, caption and empty prompt as `Transform.draw` takes."""
    folder, content, empty = finished
    pictures = prepared_files.Pictures()
    transform = Transform(24, "center", flip=True, captions="random", empty_prompts=0.3)
    indices, seeds = np.tile(np.arange(COUNT), 10), np.arange(10 * COUNT)
    batch, _ = Prepared(folder, True, "random", 0.3).read(indices, seeds)
    for drawn, index, seed in zip(
        choices(content, empty, batch, indices), indices, seeds, strict=True
    ):
        # Picture n has 1 + n % 3 captions, and so has example n.
        example = pictures[index]
        crop, caption = transform.draw(example, np.random.default_rng((seed, 0)))
        plain = transform.cut(example)
        view = int(bits(crop.image) != bits(plain.image))
        assert drawn == (view, example.captions.index(caption) if caption else -1)


def flip_bit(path, content):
    """In the middle of the record with this content."""
    stored = bytearray(path.read_bytes())
    place = stored.index(content) + len(content) // 2
    stored[place] ^= 1
    path.write_bytes(stored)


def test_a_damaged_record_is_replaced_and_counted(tmp_path):
    # Records that are larger than the ends of a shard that are looked at when it is opened.
    folder = tmp_path / "x"
    content, _ = prepared_files.write(folder, count=400, shard_size=400)
    flip_bit(shard(folder, 0), bits(content["text_embeds"][200]))
    source = Prepared(folder, captions="first")
    batch, rejects = source.read(np.array([199, 200, 201]), np.array([7, 8, 9]))
    assert rejects.counts == {"damaged record": 1} and not rejects.asked_for
    assert rejects.first == {"damaged record": "shard-00000.arrayrecord/200"}
    stored = [bits(moments[0]) for moments in content["moments"]]
    found = [stored.index(bits(row)) for row in batch["moments"]]
    assert found == [199, replacement(seed=8, attempt=0), 201]
    np.testing.assert_array_equal(batch["tokens"], content["tokens"][found, 0])
    # And where that one is damaged too, the next.
    flip_bit(shard(folder, 0), bits(content["text_embeds"][found[1]]))
    batch, rejects = Prepared(folder, captions="first").read(np.array([200]), np.array([8]))
    assert rejects.counts == {"damaged record": 2}
    assert stored.index(bits(batch["moments"][0])) == replacement(seed=8, attempt=1)


def replacement(seed, attempt):
    """Which of 400 examples stands in for one, drawn after what would have been drawn for it."""
    rng = np.random.default_rng((seed, attempt))
    rng.random(4)
    return rng.integers(400)


def test_a_folder_with_no_whole_record_is_refused_and_not_read_forever(copy, monkeypatch):
    source = Prepared(copy)
    monkeypatch.setattr(source, "_row", lambda index: (_ for _ in ()).throw(Rejected("bad", "x")))
    with pytest.raises(InputError, match="100 examples in a row cannot be used: 100 bad"):
        source.read(np.array([0]), np.array([0]))


def test_shards_that_are_not_what_was_made_are_refused(copy):
    path = shard(copy, 1)
    content = path.read_bytes()
    path.unlink()
    assert "shard-00001.arrayrecord: cannot be read" in refused(copy)
    path.write_bytes(content[:-1])
    assert "shard-00001.arrayrecord: not the file that was made" in refused(copy)
    path.write_bytes(shard(copy, 0).read_bytes())  # whole, and of the same size
    assert len(content) == path.stat().st_size
    assert "shard-00001.arrayrecord: not the file that was made" in refused(copy)
    for place in (100, -100):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert "shard-00001.arrayrecord: not the file that was made" in refused(copy)
    path.write_bytes(content)
    Prepared(copy)


def test_a_shard_that_vanishes_later_is_named(copy):
    source = Prepared(copy)
    shard(copy, 1).unlink()
    source.read(np.array([0]), np.array([0]))
    with pytest.raises(InputError, match="shard-00001.arrayrecord: cannot be read any more"):
        source.read(np.array([SHARD_SIZE]), np.array([0]))


def test_unfinished_and_damaged_folders_are_refused(copy, tmp_path):
    assert "has no mirrored" not in refused(tmp_path / "nothing", flip=True)
    assert "no such file" in refused(tmp_path / "nothing")
    (copy / "empty.bin").unlink()
    assert "empty.bin: cannot be read" in refused(copy)
    info = json.loads((copy / "info.json").read_text())
    (copy / "info.json").write_text(json.dumps({**info, "format": 2}))
    assert "format 2, expected 1" in refused(copy)
    for damaged in ('{"format": 1, "sour', "[]"):
        (copy / "info.json").write_text(damaged)
        assert "info.json: damaged" in refused(copy)
    (copy / "info.json").unlink()
    assert "not finished, 3 of 3 shards are done" in refused(copy)


def test_flipping_needs_twins(tmp_path):
    prepared_files.write(tmp_path / "x", twins=False)
    assert "prepare the data with --flip" in refused(tmp_path / "x", flip=True)


def test_a_pickled_source_reads_the_same(finished):
    source, content = Prepared(finished[0], captions="first"), finished[1]
    order = np.random.default_rng(0).integers(COUNT, size=100)
    batch, _ = source.read(order, order)
    assert bits(batch["moments"]) == bits(content["moments"][order, 0])
    again, _ = pickle.loads(pickle.dumps(source)).read(order, order)
    assert all(bits(again[name]) == bits(rows) for name, rows in batch.items())


def test_latents_must_fit_the_training(finished):
    folder, info = finished[0], read_info(finished[0])
    parts = {"vae": "1", "tokenizer": "2", "text_encoder": "3", "unet": "4"}
    check_fits(folder, info, "teacher", parts, 24)
    with pytest.raises(InputError, match="have 24 pixels, but resolution = 512"):
        check_fits(folder, info, "teacher", parts, 512)
    with pytest.raises(InputError, match="some/model, which has no tokenizer_2, as teacher has"):
        check_fits(folder, info, "teacher", parts | {"tokenizer_2": "5"}, 24)
    for part in ("vae", "tokenizer", "text_encoder"):
        message = f"made with the {part} of some/model, which is not the {part} of teacher"
        for other in (parts | {part: "0"}, {k: v for k, v in parts.items() if k != part}):
            with pytest.raises(InputError, match=message):
                check_fits(folder, info, "teacher", other, 24)
