"""Fetching a model: from a hub that is a small server here, from the cache, and every refusal."""

import shutil
import time
from pathlib import Path

import pytest
from hub_files import (
    COMMIT,
    FP16,
    OLD_COMMIT,
    OLDER_FP16,
    PLAIN,
    SHARDED,
    SHARDED_FP16,
    WANTED,
)
from huggingface_hub import constants

from slam_jax.base.errors import InputError
from slam_jax.formats import diffusers_folder as folder


def cached(cache: Path) -> Path:
    """A snapshot as a download leaves it."""
    repository = cache / "models--owner--tiny"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def refusal(*args):
    with pytest.raises(InputError) as caught:
        folder.resolve(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("variant", "weights"),
    [("", PLAIN | SHARDED), ("fp16", FP16 | SHARDED_FP16 | OLDER_FP16)],
)
def test_only_what_is_needed_is_fetched(connected, variant, weights):
    model = folder.resolve("owner/tiny", "", variant)
    files = {str(p.relative_to(model.path)) for p in model.path.rglob("*") if p.is_file()}
    assert files == WANTED | weights
    assert model == folder.Folder(model.path, "owner/tiny", COMMIT, variant)
    assert connected in model.path.parents


def test_a_second_fetch_needs_no_network(connected, monkeypatch):
    first = folder.resolve("owner/tiny", COMMIT)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert folder.resolve("owner/tiny", COMMIT) == first
    assert folder.resolve("owner/tiny", COMMIT).revision == COMMIT


@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_a_cached_model_works_offline(offline, revision):
    snapshot = cached(offline)
    model = folder.resolve("owner/tiny", revision)
    assert model == folder.Folder(snapshot, "owner/tiny", COMMIT, "")


def test_a_cached_model_works_without_network(cache):
    snapshot = cached(cache)
    assert folder.resolve("owner/tiny").path == snapshot


@pytest.mark.parametrize("revision", ["", "v2", OLD_COMMIT])
def test_offline_and_not_cached_is_refused(offline, revision):
    if revision:
        cached(offline)
    message = refusal("owner/tiny", revision)
    assert message.startswith("owner/tiny" + (f" at revision {revision}:" if revision else ":"))
    for part in (str(offline), "HF_HUB_OFFLINE is set", "local folder"):
        assert part in message


@pytest.mark.parametrize("revision", ["", COMMIT])
def test_no_network_and_not_cached_is_refused(cache, capfd, revision):
    started = time.perf_counter()
    message = refusal("owner/tiny", revision)
    assert time.perf_counter() - started < 5 and capfd.readouterr().err == ""
    for part in (
        "owner/tiny",
        str(cache),
        "not to be had from the hub",
        "local folder",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("name", "revision", "parts"),
    [
        ("owner/none", "", ("owner/none: no such folder, and the hub has no such model",)),
        ("owner/gated", "", ("https://huggingface.co/owner/gated", "hf auth login")),
        ("owner/tiny", "nowhere", ("owner/tiny at revision nowhere", "no such revision")),
        ("owner/broken", "", ("owner/broken", "500")),
        ("owner/a--b", "", ("owner/a--b: download failed", "--")),
    ],
)
def test_what_the_hub_refuses(connected, name, revision, parts):
    message = refusal(name, revision)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("pattern", "what"),
    [("sd_xl*", "not to be had from the hub (403"), ("v1-5*", "download failed (403")],
)
def test_a_download_that_breaks(connected, monkeypatch, pattern, what):
    monkeypatch.setattr(folder, "_patterns", lambda *_: [pattern])
    assert what in refusal("owner/tiny")


def test_a_full_disk(connected, monkeypatch):
    def no_space(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_space)
    assert "No space left on device" in refusal("owner/tiny")


def test_a_folder_comes_before_the_hub(cache):
    local = Path("owner/tiny")
    local.mkdir(parents=True)
    assert folder.resolve("owner/tiny", "", "fp16") == folder.Folder(
        local, "owner/tiny", "", "fp16"
    )
    assert "owner/tiny: a local folder has no revision 'main'" in refusal("owner/tiny", "main")
    shutil.rmtree(local)
    assert "not to be had from the hub" in refusal("owner/tiny")


@pytest.mark.parametrize("path", ["", "tiny", "./owner/tiny", "/nowhere/tiny", "a/b/c", "../a"])
def test_neither_a_folder_nor_an_id(cache, path):
    assert refusal(path) == f"{path!r}: no such folder, and not a hub id of the form owner/name"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("assets/emoji_teacher", "a clone of slam_jax has it; run the command there"),
        ("runs/sd", "a run that is finished leaves it"),
    ],
)
def test_what_this_project_makes_is_not_asked_of_the_hub(path, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(path) == f"{path}: no such folder; {hint}"


def test_a_single_file_is_refused(cache, tmp_path):
    file = tmp_path / "sd15.safetensors"
    file.touch()
    message = refusal(str(file))
    assert message.startswith(f"{file}: a file, expected a diffusers folder")
    assert "from_single_file" in message


def test_a_variant_is_a_word(tmp_path):
    assert "variant '*'" in refusal(str(tmp_path), "", "*")
