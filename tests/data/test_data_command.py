"""slam-jax inspect: what it says of sources whose contents are known."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from broken_images import BROKEN, GOOD, encode, smooth
from PIL import Image
from prepared_files import plan
from tar_files import tar

from slam_jax.commands import inspect as command
from slam_jax.data.examples import Example
from slam_jax.data.prepared import empty_dtype
from slam_jax.data.prepared_write import Store
from slam_jax.data.rejects import Rejected, Rejects

SIZES = [(300, 200), (100, 500), (800, 600), (1100, 1200), (40, 30)]  # width and height


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Where a contact sheet that is not told where to go may lie."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "pictures"
    home.mkdir()
    for i, (width, height) in enumerate(SIZES):
        (home / f"{i}.png").write_bytes(encode(smooth(width=width, height=height)))
    (home / "cut.jpg").write_bytes(BROKEN["JPEG, cut pixels"]())
    (home / "no.gif.png").write_bytes(BROKEN["GIF"]())
    captions = [["one", "three"], "two\n  lines", ["x" * 500], "four", "ñandú"]
    names = [f"{i}.png" for i in range(5)] + ["cut.jpg", "no.gif.png"]
    lines = [
        json.dumps({"file_name": name, "text": caption})
        for name, caption in zip(names, captions + ["c", "d"], strict=True)
    ]
    (home / "metadata.jsonl").write_text("\n".join(lines))
    return home


def say(capsys, *arguments) -> str:
    command.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def fact(said: str, name: str) -> str:
    """The line of a fact and those that go on with it."""
    found = re.search(rf"^{name} +(.*(\n {{16}}.*)*)", said, re.MULTILINE)
    assert found, said
    return " | ".join(line.strip() for line in found[1].split("\n"))


def test_a_folder(folder, capsys):
    said = say(capsys, folder, "--max-rejects", 1)
    assert fact(said, "examples") == "6"
    assert "wrote contact_sheet.png" in said and Path("contact_sheet.png").is_file()
    passed = fact(said, "passed over")
    assert passed.startswith("1: 1 damaged, 0 by filters | 1 not a JPEG, PNG or WebP image (first:")
    assert "no.gif.png" in passed
    assert fact(said, "read") == "6 of them, of which 5 can be used"
    assert fact(said, "not used").startswith("1: 1 damaged, 0 by filters | 1 damaged image (first:")
    shorter = [200, 100, 600, 1100, 30, 32]  # and the cut one's
    assert fact(said, "shorter side") == (
        f"min 30, median {np.median(shorter):.0f}, max 1,100 pixels, of 6 images (all) | "
        "of which 4 below 256, 4 below 512, 5 below 768, 5 below 1024"
    )
    assert fact(said, "width / height") == (
        f"min 0.20, median {(4 / 3 + 4 / 3) / 2:.2f}, max 1.50; 1 beyond 2:1 or 1:2"
    )
    assert fact(said, "caption length") == (
        "min 3, median 5, max 500 characters, of 6 captions (sampled)"
    )
    assert fact(said, "captions") == "min 1, median 1, max 2 of an example"
    assert ": two lines\n" in said and ": ñandú\n" in said and "x" * 121 not in said


def test_what_filters_leave_out(folder, capsys):
    said = say(capsys, folder, "--min-size", 150, "--max-rejects", 1)
    assert fact(said, "examples") == "3"
    assert fact(said, "passed over").startswith("4: 1 damaged, 3 by filters | 3 smaller than min_")


def test_a_sample_is_random_and_of_the_whole(folder, capsys):
    some = [say(capsys, folder, "--max-rejects", 1, "--sample", 2, "--seed", s) for s in range(9)]
    assert {fact(said, "read")[:9] for said in some} == {"2 of them"}
    shown = {name for said in some for name in re.findall(r"^  \S*?(\d)\.png:", said, re.MULTILINE)}
    assert shown == set("01234")
    again = say(capsys, folder, "--max-rejects", 1, "--sample", 2, "--seed", 3)
    assert again == some[3]


def test_shards(tmp_path, capsys):
    members = {}
    for i, name in enumerate(GOOD):
        kind = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
        extension = next(e for k, e in kind.items() if k in name.upper())
        members |= {f"{i:03d}.{extension}": GOOD[name](), f"{i:03d}.txt": name.encode()}
    (tmp_path / "0.tar").write_bytes(tar(members))
    out = tmp_path / "new" / "sheet.png"
    index = tmp_path / "index"
    said = say(capsys, f"{tmp_path}/{{0..0}}.tar", "--index", index, "--out", out)
    assert fact(said, "examples") == f"{len(GOOD)}"
    assert fact(said, "read") == f"{len(GOOD)} of them, of which {len(GOOD)} can be used"
    assert said.endswith(f"wrote {out}\n")
    with Image.open(out) as sheet:
        rows = -(-len(GOOD) // command.COLUMNS)
        gap = 4
        tile = (command.TILE + gap, command.TILE + command.LINE + gap)
        assert sheet.size == (gap + command.COLUMNS * tile[0], gap + rows * tile[1])


class Flat:
    """Pictures of one colour each, without an index."""

    name = identity = "flat"

    def __init__(self, count, broken=()):
        self.count, self.broken, self.rejects = count, broken, Rejects()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise Rejected("broken", f"{index}")
        picture = np.full((10, 20, 3), index % 256, np.uint8)
        return Example(f"{index}", picture, ("■" * index,))


def test_a_sheet_shows_pictures_from_all_over_the_source():
    looks, rejects = command.look_at_some(Flat(200, broken=[7]), 200, seed=0)
    assert len(looks) == 199 and rejects.counts == {"broken": 1}
    sheet = np.asarray(command.draw_sheet(looks))
    tile, gap = command.TILE, 4
    step = np.array([tile + command.LINE, tile]) + gap
    centres = gap + tile // 2 + step * np.argwhere(np.ones((6, 8)))
    expected = [int(looks[199 * i // 48].name) for i in range(48)]
    assert sheet[*centres.T, 0].tolist() == expected
    assert expected[0] == 0 and expected[-1] > 190
    above = centres - [tile // 4 + 2, 0]  # the picture is half as high as it is wide
    assert np.all(sheet[*above.T] == 255)
    captions = [sheet[y + tile // 2 :, x - tile // 2 :][: command.LINE, :tile] for y, x in centres]
    assert [bool((part < 128).any()) for part in captions] == [False] + [True] * 47


def test_sizes_are_of_the_sample_where_there_is_no_index():
    looks, rejects = command.look_at_some(Flat(300), 20, seed=0)
    facts = list(command.describe(Flat(300), looks, rejects))
    sizes = "min 10, median 10, max 10 pixels, of 20 images (sampled)"
    assert ("shorter side", sizes) in facts
    assert ("examples", "300") in facts


@pytest.fixture
def prepared(tmp_path):
    """Latents of two shards of random bytes."""
    folder = tmp_path / "latents"
    made = plan()
    made |= {"filters": {"min_size": 64, "max_watermark": 0.5}, "precision": "float32"}
    made |= {"crop": "center", "captions": 3}
    store = Store(folder, made)
    for shard in range(store.shards):
        with store.shard(shard) as writer:
            rows = np.zeros(2, store.dtype)
            writer.write({name: rows[name] for name in store.dtype.names})
            writer.rejects.add(Rejected("damaged image", "picture 2"))
    store.write_empty(np.zeros((), empty_dtype(store.dtype)))
    assert store.finish(Rejects(), 1.0) is not None
    return folder, store.shards


def test_latents(prepared, capsys):
    folder, shards = prepared
    said = say(capsys, folder)
    assert fact(said, "made from") == (
        "pictures, 10 examples | with min_size = 64, max_watermark = 0.5"
    )
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
    assert fact(said, "examples") == f"{2 * shards} in {shards} shards, {size:,.3g} GB"
    assert "moments: float16 [2, 2, 3, 8] | time_ids: float32 [2, 6]" in fact(said, "fields")
    assert "with mirrored twins" in fact(said, "pictures")
    assert fact(said, "passed over").endswith(f"{shards} damaged image (first: picture 2)")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere"], "no such folder; expected"),
        (["digits"], "digits: of kind digits, expected pictures with captions"),
        (["photographs", "--sample", "0"], "--sample 0: expected"),
        (["photographs", "--seed", "-1"], "--seed -1: expected 0 to"),
        (["photographs", "--out", "a.jpg"], "--out a.jpg: expected a file that ends in .png"),
        (["photographs", "--min-size", "-1"], "--min-size"),
        (["photographs", "--split", "test"], "split = 'test'"),
    ],
)
def test_bad_input_is_one_line(arguments, words):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    message = str(caught.value)
    assert message.startswith("error: ") and "\n" not in message and words in message


def test_nothing_usable_is_an_error(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(BROKEN["JPEG, cut pixels"]())
    (tmp_path / "a.txt").write_text("cut")
    with pytest.raises(SystemExit, match="nothing of the sample can be used"):
        command.main([str(tmp_path)])
    assert "1 damaged image (first: " in capsys.readouterr().out


def test_options_of_latents_are_those_they_were_made_with(prepared):
    with pytest.raises(SystemExit, match="min_size = 9 was decided when it was made"):
        command.main([str(prepared[0]), "--min-size", "9"])
    for option, value in (("--sample", "3"), ("--seed", "3"), ("--out", "a.png")):
        with pytest.raises(SystemExit, match=f"{option} {value}: latents are no pictures"):
            command.main([str(prepared[0]), option, value])


def test_unfinished_latents_are_refused(prepared):
    (prepared[0] / "info.json").unlink()
    with pytest.raises(SystemExit, match="error: .*not finished"):
        command.main([str(prepared[0])])


@pytest.mark.slow
def test_the_module_runs(folder):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "slam_jax", "inspect", folder, "--max-rejects", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert result.returncode == 0 and result.stdout.startswith("examples        6\n"), result.stderr
