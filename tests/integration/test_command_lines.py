"""Values on a command line that no model can be asked for: one line, before anything is read."""

import pytest

from slam_jax.commands import command, export, inspect, plan, reference, report, sample, train


def refusal(main, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    return str(stop.value.code)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--guidance", "nan"], "error: --guidance nan: expected a finite number"),
        (["--guidance=-inf"], "error: --guidance -inf: expected a finite number"),
        (["--strength", "nan"], "error: --strength nan: expected a finite number"),
        (["--count", "10001"], "error: --count 10001: expected at most 10,000"),
        (["--batch", "1" + "0" * 12], "expected at most 2,147,483,647"),
        (["--prompt", "\udc80"], r"error: --prompt '\udc80': expected text in UTF-8"),
        (["--prompt", "a\0b"], r"error: --prompt 'a\x00b': expected text without a NUL"),
        (["--out", "x" * 252 + ".png"], "expected names of at most 255 bytes"),
        (["--out", "a\0.png"], "expected text without a NUL"),
        (["--labels", ""], "error: --labels '': expected labels between commas"),
        (["--out", "/dev/null/x.png"], "error: --out /dev/null/x.png: cannot be written (Not a"),
        (["--out", "/sys/kernel/x/y.png"], "/sys/kernel/x/y.png: cannot be written ("),
    ],
)
def test_a_sample_that_cannot_be_is_refused(arguments, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = refusal(sample.main, "--model", "there/is_none", *arguments)
    assert line in found and "\n" not in found
    assert not list(tmp_path.iterdir())


def test_an_argument_without_dashes_is_named_without_them():
    line = refusal(inspect.main, "x\0y")
    assert line == r"error: source 'x\x00y': expected text without a NUL"


def test_an_empty_name_is_none(capsys):
    assert refusal(sample.main, "--model", "m", "--out", "") == "2"
    assert "--out: expected the name of a file or folder" in capsys.readouterr().err
    # And not all pictures of the current folder.
    assert refusal(reference.main, "--images", "", "--out", "x.npz") == "2"
    assert "--images: expected the name of a file or folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "expected"),
    [("x" * 300, "names of at most 255 bytes"), ("a\0b", "text without a NUL")],
)
def test_a_folder_that_cannot_be_is_refused(name, expected):
    line = refusal(train.main, "--config", "digits", "--workdir", name)
    assert line.startswith("error: --workdir ") and line.endswith(f"expected {expected}")
    line = refusal(report.main, "--workdir", name)
    assert line.startswith("error: --workdir ") and line.endswith(f"expected {expected}")


def test_a_folder_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "file" / "run"
    line = refusal(train.main, "--config", "digits", "--workdir", str(workdir))
    assert line.startswith(f"error: {tmp_path / 'file'}") and "\n" not in line


def test_a_folder_is_tried_before_a_run_is_read(tmp_path):
    line = refusal(export.main, "--workdir", str(tmp_path), "--out", "/dev/null/x")
    assert line == "error: --out /dev/null/x: cannot be written (Not a directory)"
    (tmp_path / "there").mkdir()
    for out in ("there/x", "new/deep/x"):  # and nothing stays of the trial
        line = refusal(export.main, "--workdir", str(tmp_path), "--out", str(tmp_path / out))
        assert "config.json: cannot be read" in line
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


@pytest.mark.parametrize("option", ["--mesh", "--memory"])
def test_an_empty_value_is_none(option):
    line = refusal(plan.main, "--config", "digits", "--no-compile", option, "")
    assert line.startswith(f"error: {option} : expected ")


def test_what_argparse_refuses_is_one_line(capsys):
    assert refusal(sample.main, "--model", "m", "--steps", "x\ny") == "2"
    said = capsys.readouterr().err
    assert said == (
        r"error: --steps: invalid int value: 'x\ny'; slam-jax sample --help says what there is"
        "\n"
    )


def test_help_shows_defaults_that_say_something():
    parser = command.parser_of("name", "What it does.")
    parser.add_argument("--steps", type=int, default=4, help="how many")
    parser.add_argument("--model", required=True, help="which one")
    parser.add_argument("--merge", action="store_true", help="all in one")
    parser.add_argument("--revision", default="", help="of the hub")
    shown = " ".join(parser.format_help().split())
    assert "how many (default: 4)" in shown and shown.count("(default:") == 1
