"""The command that lies beside an exported sampler; test_artifact.py has what it draws."""

import sys
import zlib
from pathlib import Path

import pytest

from slam_jax.serving import artifact_draw


def test_files_that_the_command_cannot_read_or_write(tmp_path, monkeypatch):
    for out in (tmp_path / "x.jpg", tmp_path / "no_folder/x.npy"):
        monkeypatch.setattr(sys, "argv", ["draw.py", "--out", str(out)])
        with pytest.raises(SystemExit, match="error: --out .*x.*expected a .npy or .png in a"):
            artifact_draw.main()
    (tmp_path / "tokens.json").write_text("a cat")
    with pytest.raises(ValueError, match="tokens.json: expected token ids, as .npy or JSON"):
        artifact_draw.read_tokens(tmp_path / "tokens.json")
    (tmp_path / "tokens.json").write_text("[[11, 3]]")
    assert artifact_draw.read_tokens(tmp_path / "tokens.json").tolist() == [[11, 3]]


def test_torn_programs_are_removed(tmp_path, monkeypatch):
    whole, other = zlib.compress(b"program" * 99), artifact_draw.ZSTANDARD + b"..."
    for name, content in (("a", whole), ("b", whole[:-5]), ("c", b""), ("d", b"no"), ("e", other)):
        (tmp_path / f"{name}-cache").write_bytes(content)

    def refuse(path):
        raise PermissionError

    with monkeypatch.context() as patch:  # the folder of another user
        patch.setattr(Path, "unlink", refuse)
        artifact_draw.remove_torn(tmp_path)
    artifact_draw.remove_torn(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a-cache", "e-cache"}
