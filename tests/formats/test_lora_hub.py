"""LoRAs on the hub: what is fetched of a repository, and what is refused."""

import pytest
from hub_files import ADAPTER, OLD_COMMIT, STUDENT
from huggingface_hub import constants

from slam_jax.base.errors import InputError
from slam_jax.commands import check
from slam_jax.families.stable_diffusion_lora import locate


def fetched(path, file):
    """All files that came with a file of a repository."""
    snapshot = path
    for _ in file.split("/"):
        snapshot = snapshot.parent
    assert str(path.relative_to(snapshot)) == file
    return {str(p.relative_to(snapshot)) for p in snapshot.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("spelled", "file", "files"),
    [
        ("owner/student", "pytorch_lora_weights.safetensors", STUDENT),
        ("owner/peft", "adapter_model.safetensors", ADAPTER),
        ("owner/lone", "style.safetensors", {"style.safetensors"}),
        ("owner/several/steps4.safetensors", "steps4.safetensors", {"steps4.safetensors"}),
        (
            "owner/several/xl/steps4.safetensors",
            "xl/steps4.safetensors",
            {"xl/steps4.safetensors", "xl/slam.json"},
        ),
        ("owner/both/adapter_model.safetensors", "adapter_model.safetensors", STUDENT | ADAPTER),
    ],
)
def test_only_a_file_and_what_belongs_to_it_is_fetched(connected, spelled, file, files):
    path, factor = locate(f"{spelled}:0.7")
    assert factor == 0.7 and connected in path.parents
    others = STUDENT & {"pytorch_lora_weights.safetensors"} if "both" in spelled else set()
    assert fetched(path, file) == files - others


def test_a_file_that_was_fetched_needs_no_network(connected, monkeypatch):
    path, _ = locate("owner/student")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert locate("owner/student") == (path, 1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("owner/student/pytorch_lora_weights.safetensors") == (path, 1)


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        (
            "owner/several",
            "owner/several: expected one .safetensors file, it has steps1.safetensors, "
            "steps4.safetensors, xl/steps4.safetensors; owner/several/FILE.safetensors chooses",
        ),
        (
            "owner/both",
            "it has adapter_model.safetensors, pytorch_lora_weights.safetensors; owner/",
        ),
        ("owner/many", "style07.safetensors and 3 more; owner/many/FILE.safetensors chooses"),
        ("owner/pickled", "owner/pickled: expected one .safetensors file, it has none; "),
        (
            "owner/several/steps8.safetensors",
            "owner/several: has no steps8.safetensors; its .safetensors files: steps1.safetensors",
        ),
        ("owner/none", "owner/none: no such folder, and the hub has no such model"),
        ("owner/gated/a.safetensors", "https://huggingface.co/owner/gated"),
        ("owner/a.safetensors", "--lora owner/a.safetensors: no such file; a file, a folder, "),
        ("owner/several/steps1", "--lora owner/several/steps1: no such file; a file, a folder, "),
        ("a/../b.safetensors", "--lora a/../b.safetensors: no such file; a file, a folder, "),
    ],
)
def test_what_is_refused_of_the_hub(connected, spelled, expected):
    with pytest.raises(InputError) as caught:
        locate(spelled)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not list(connected.rglob("*.safetensors"))


def test_a_file_below_a_folder_here_is_not_looked_for_on_the_hub(connected, tmp_path):
    (tmp_path / "owner").mkdir()
    with pytest.raises(InputError, match="--lora owner/several/steps1.safetensors: no such file"):
        locate("owner/several/steps1.safetensors")


@pytest.mark.parametrize(
    ("name", "is_lora"),
    [("owner/student", True), ("owner/tiny", False), ("owner/pickled", False), ("owner", False)],
)
def test_check_knows_loras_of_the_hub(connected, name, is_lora):
    assert check.is_lora(name, "") == is_lora


def test_check_fetches_a_lora_at_a_revision(connected, capsys):
    with pytest.raises(SystemExit, match="1 of the checks failed"):
        check.main(["owner/student", "--revision", OLD_COMMIT])
    printed = capsys.readouterr().out
    file = f"snapshots/{OLD_COMMIT}/pytorch_lora_weights.safetensors"
    assert printed.startswith("FAIL     lora file") and file in printed
    with pytest.raises(SystemExit, match="owner/student at revision nowhere.*no such revision"):
        check.main(["owner/student", "--revision", "nowhere"])
