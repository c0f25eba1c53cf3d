"""Captioned emoji: made of small packages like npm's, and read as a source."""

import hashlib
import io
import json
import re
import sys
import tarfile

import numpy as np
import pytest
from emoji_packages import EMOJI, make_packages, noto, one, pack, picture
from PIL import Image

from slam_jax.base.errors import InputError
from slam_jax.commands import prepare
from slam_jax.data.emoji_write import FLUENT, NOTO, OPENMOJI, concepts_of
from slam_jax.data.images import decode
from slam_jax.data.options import Data
from slam_jax.data.sources import open_examples, open_source
from slam_jax.evaluation.prompts import read_prompts

NPM = (
    "npm pack emoji-datasource-google@16.0.0; npm pack @lobehub/fluent-emoji-3d@1.1.0; "
    "npm pack openmoji@17.0.0"
)


@pytest.fixture
def packages(tmp_path):
    return make_packages(tmp_path / "npm")


def make(packages, out, *options):
    prepare.main(["emoji", "--packages", str(packages), "--out", str(out), *options])
    return out


def refusal(*arguments):
    with pytest.raises(SystemExit) as caught:
        make(*arguments)
    (line,) = str(caught.value).splitlines()
    return line


def captions(folder):
    """Captions by shard, split and key, read with tarfile alone."""
    found = {}
    for path in folder.glob("*/*.tar"):
        with tarfile.open(path) as tar:
            for info in tar:
                if info.name.endswith(".txt"):
                    key = path.stem, path.parent.name, info.name.removesuffix(".txt")
                    found[key] = tar.extractfile(info).read().decode()
    return found


def test_captions_have_the_style_and_the_name(packages, tmp_path, capsys):
    found = captions(make(packages, tmp_path / "emoji"))
    assert sorted(found.values()) == sorted(
        [
            "noto emoji of red apple",
            "noto emoji of heart",
            "noto emoji of black heart",
            "noto emoji of person in tuxedo",
            "noto emoji of man in tuxedo",
            "noto emoji of waving hand sign",
            "noto emoji of handshake",
            "noto emoji of ok hand sign",
            "fluent emoji of red apple",
            "fluent emoji of heart",
            "fluent emoji of waving hand sign",
        ]
    )
    assert "11 pictures" in capsys.readouterr().out


def test_what_is_left_out_can_be_asked_for(packages, tmp_path):
    usual = captions(make(packages, tmp_path / "usual"))
    extras = ("flags", "symbols", "components", "skin_tones")
    found = captions(make(packages, tmp_path / "all", "--include", *extras))
    assert usual.items() <= found.items()  # and no concept changed its split
    assert {found[key] for key in found.keys() - usual.keys()} == {
        "noto emoji of germany flag",
        "fluent emoji of germany flag",
        "noto emoji of black small square",
        "noto emoji of emoji modifier fitzpatrick type-1-2",
        "noto emoji of waving hand sign, light skin tone",
        "noto emoji of waving hand sign, dark skin tone",
        "fluent emoji of waving hand sign, dark skin tone",
        "noto emoji of ok hand sign, medium skin tone",
        "fluent emoji of ok hand sign, medium skin tone",
        "noto emoji of handshake, light skin tone, medium-dark skin tone",
    }
    record = json.loads((tmp_path / "all/emoji.json").read_text())
    assert record["include"] == list(extras) and record["pictures"] == len(found)


@pytest.mark.parametrize("size", [16, 10])
def test_pictures_are_composed_on_white_and_resized_by_lanczos(packages, tmp_path, size):
    out = make(packages, tmp_path / "emoji", "--size", str(size))
    for split in ("train", "held_out"):
        for example in map(open_split(out, split).__getitem__, range(count(out, split))):
            style, code = re.fullmatch(r"(\w+)\.tar/(.+)", example.name).groups()
            kind, side = ("PNG", 16) if style == "noto" else ("WEBP", 24)
            file = io.BytesIO(picture(code, kind, side))
            rgba = np.asarray(Image.open(file).convert("RGBA"), np.float64)
            alpha = rgba[..., 3:] / 255
            white = np.round(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
            resized = Image.fromarray(white).resize((size, size), Image.Resampling.LANCZOS)
            found = np.asarray(decode(example.image, "")).astype(int)
            assert np.abs(found - np.asarray(resized, int)).max() <= 1, example.name


def open_split(out, split):
    return open_examples(Data(source=f"emoji:{out}", split=split, index=f"{out}_index"))


def count(out, split):
    styles = json.loads((out / "emoji.json").read_text())["styles"]
    return sum(style[split] for style in styles.values())


def test_a_concept_is_in_one_split_with_all_its_styles_and_skin_tones(packages, tmp_path):
    out = make(packages, tmp_path / "emoji", "--include", "skin_tones")
    record = json.loads((out / "emoji.json").read_text())
    assert record["split"]["held_out"] == ["1f44c"]
    splits = {}
    for _, split, key in captions(out):
        concept = re.sub("(-1f3f[b-f])+$", "", key)
        splits.setdefault(concept, set()).add(split)
    for concept, found in splits.items():
        assert found == {"held_out" if concept == "1f44c" else "train"}
    assert {"1f44b", "1f44c", "1f91d"} <= splits.keys()


def test_about_one_concept_in_ten_is_held_out():
    emoji = [one(f"{0x1F300 + i:X}", f"NUMBER {i}") for i in range(2000)]
    held_out = [concept for concept in concepts_of(emoji, []) if concept.split == "held_out"]
    assert abs(len(held_out) - 200) < 4 * 13.4  # four standard deviations
    # `printf 1f44c | sha256sum` and `bc` say so.
    splits = {concept.code: concept.split for concept in concepts_of(EMOJI, [])}
    assert [code for code in splits if splits[code] == "held_out"] == ["1f44c"]


def test_the_same_packages_give_the_same_bytes(packages, tmp_path):
    one, other = (make(packages, tmp_path / name) for name in ("one", "other"))
    files = {path.relative_to(one): path.read_bytes() for path in one.rglob("*.*")}
    assert files == {path.relative_to(other): path.read_bytes() for path in other.rglob("*.*")}
    assert len(files) == 4
    make(packages, one)  # in the place of the former
    assert files == {path.relative_to(one): path.read_bytes() for path in one.rglob("*.*")}


def test_the_record_says_versions_licences_and_counts(packages, tmp_path):
    out = make(packages, tmp_path / "emoji")
    styles = json.loads((out / "emoji.json").read_text())["styles"]
    found = captions(out)
    for style in (NOTO, FLUENT):
        for split in ("train", "held_out"):
            keys = [key for key in found if key[:2] == (style.name, split)]
            assert styles[style.name].pop(split) == len(keys)
        assert styles[style.name] == {
            "package": style.package,
            "version": style.version,
            "sha256": hashlib.sha256((packages / style.file).read_bytes()).hexdigest(),
            "license": style.licence,
        }


def test_openmoji_is_drawn(packages, tmp_path):
    svg = """<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">
<rect x="0" y="0" width="36" height="72" fill="#ea5a47"/></svg>"""
    pack(packages, OPENMOJI, {"package/color/svg/1F34E.svg": svg.encode()})
    out = make(packages, tmp_path / "emoji", "--openmoji")
    (example,) = (e for e in open_split(out, "train") if e.name.startswith("openmoji"))
    assert example.captions == ("openmoji emoji of red apple",)
    pixels = np.asarray(decode(example.image, ""))
    assert pixels.shape == (64, 64, 3)
    assert np.unique(pixels[:, :32].reshape(-1, 3), axis=0).tolist() == [[0xEA, 0x5A, 0x47]]
    assert np.unique(pixels[:, 32:]).tolist() == [255]


def test_openmoji_needs_a_package_to_draw_it(packages, tmp_path, monkeypatch):
    pack(packages, OPENMOJI, {"package/color/svg/1F34E.svg": b"<svg/>"})
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    said = refusal(packages, tmp_path / "emoji", "--openmoji")
    assert "pip install 'slam_jax[emoji]'" in said
    assert not (tmp_path / "emoji").exists()


def test_missing_packages_are_named_with_the_commands_that_get_them(packages, tmp_path):
    (packages / FLUENT.file).unlink()
    said = refusal(packages, tmp_path / "new/emoji")
    assert f"{packages}: no lobehub-fluent-emoji-3d-1.1.0.tgz; run there: {NPM}" in said
    assert NPM in refusal(tmp_path / "nowhere", tmp_path / "new/emoji")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("named", [None, "emoji-datasource-google-15.1.2.tgz"])
def test_another_version_is_refused_with_both(packages, tmp_path, named):
    (packages / NOTO.file).unlink()
    pack(packages, NOTO, noto(EMOJI), version="15.1.2", named=named)
    said = refusal(packages, tmp_path / "emoji")
    assert "emoji-datasource-google 15.1.2, expected 16.0.0" in said
    assert "npm pack emoji-datasource-google@16.0.0" in said


def damaged(packages):
    path = packages / NOTO.file
    path.write_bytes(path.read_bytes()[:200])


def no_archive(packages):
    (packages / NOTO.file).write_bytes(b"<html>")


def bad_drawing(packages):
    pack(packages, OPENMOJI, {"package/color/svg/1F34E.svg": b"<svg \xff"})


def bad_picture(packages):
    pack(packages, FLUENT, {"package/assets/1f34e.webp": b"nothing"})


@pytest.mark.parametrize(
    ("breaks", "message", "options"),
    [
        (damaged, "emoji-datasource-google-16.0.0.tgz: cannot be read", ()),
        (no_archive, "emoji-datasource-google-16.0.0.tgz: cannot be read", ()),
        (bad_picture, "package/assets/1f34e.webp: not a JPEG, PNG or WebP image", ()),
        (bad_drawing, "package/color/svg/1F34E.svg: damaged SVG", ("--openmoji",)),
    ],
)
def test_damaged_packages_are_refused_and_leave_nothing(
    packages, tmp_path, breaks, message, options
):
    breaks(packages)
    assert message in refusal(packages, tmp_path / "emoji", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["npm"]


def test_a_folder_of_something_else_is_not_overwritten(packages, tmp_path):
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji/mine.txt").write_text("mine")
    assert "not empty, and no earlier folder of emoji" in refusal(packages, tmp_path / "emoji")
    assert refusal(packages, tmp_path / "other", "--size", "0").endswith("expected 1 or more")


def test_it_is_a_source_to_train_on(packages, tmp_path):
    out = make(packages, tmp_path / "emoji")
    expected = {text for (_, split, _), text in captions(out).items() if split == "train"}
    assert {e.captions[0] for e in open_split(out, "train")} == expected
    data = Data(source=f"emoji:{out}", resolution=32, crop="center", index=str(tmp_path / "index"))
    source = open_source(data, lambda texts: np.array([[len(text)] for text in texts]))
    batch, rejects = source.read(np.arange(3), np.arange(3))
    assert batch["images"].shape == (3, 32, 32, 3) and rejects.total == 0


def test_captions_are_prompts(packages, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = make(packages, tmp_path / "emoji")
    for source, split in ((f"emoji:{out}", "train"), (f"{out}/held_out", "held_out")):
        expected = [text for key, text in captions(out).items() if key[1] == split]
        assert sorted(read_prompts(source).texts) == sorted(expected)


def test_what_is_no_folder_of_emoji_is_refused(packages, tmp_path):
    with pytest.raises(InputError, match=r"npm: no folder of emoji, emoji.json is not in it; make"):
        open_examples(Data(source=f"emoji:{packages}"))
    out = make(packages, tmp_path / "emoji")
    with pytest.raises(InputError, match="split = 'test', expected one of train, held_out"):
        open_split(out, "test")
    with pytest.raises(InputError, match="min_size = 8 means nothing to it"):
        open_examples(Data(source=f"emoji:{out}", min_size=8))
    (out / "train/fluent.tar").unlink()
    with pytest.raises(InputError, match=r"train: \d pictures, emoji.json says \d+; make"):
        open_split(out, "train")
    (out / "emoji.json").write_text("{}")
    with pytest.raises(InputError, match="emoji.json: not of format 1; make"):
        open_split(out, "train")
