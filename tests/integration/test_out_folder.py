"""Folders that are whole or not there; test_export.py has what becomes of an export that fails."""

from slam_jax.base.out_folder import whole_folder


def test_a_link_to_another_disk_stays_one(tmp_path):
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.symlink_to(disk / "of_today")
    for text in ("first", "second"):
        with whole_folder(out, lambda names: names == {"file"}, "export") as folder:
            (folder / "file").write_text(text)
        assert out.is_symlink() and (out / "file").read_text() == text
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "out"}
    assert [path.name for path in disk.iterdir()] == ["of_today"]
