"""The command that lies beside an exported sampler; test_artefact.py has what it draws."""

import sys

import pytest

from slam_jax import artefact_draw


def test_files_that_the_command_cannot_read_or_write(tmp_path, monkeypatch):
    for out in (tmp_path / "x.jpg", tmp_path / "no_folder/x.npy"):
        monkeypatch.setattr(sys, "argv", ["draw.py", "--out", str(out)])
        with pytest.raises(SystemExit, match="error: --out .*x.*expected a .npy or .png in a"):
            artefact_draw.main()
    (tmp_path / "tokens.json").write_text("a cat")
    with pytest.raises(ValueError, match="tokens.json: expected token ids, as .npy or JSON"):
        artefact_draw.read_tokens(tmp_path / "tokens.json")
    (tmp_path / "tokens.json").write_text("[[11, 3]]")
    assert artefact_draw.read_tokens(tmp_path / "tokens.json").tolist() == [[11, 3]]
