"""Runs slam-jax check and reads what it prints."""

from slam_jax.commands import check


def run(capsys, *arguments):
    """(status by check, facts by check, exit code)."""
    code = 0
    try:
        check.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    parts = {rest[:19].strip(): (status, rest[19:]) for status, rest in rows}
    assert len(parts) == len(rows) or arguments.count("--lora") > 1
    assert {status for status, _ in parts.values()} <= {"ok", "FAIL", "skipped"}
    statuses = {name: status for name, (status, _) in parts.items()}
    assert bool(code) == ("FAIL" in statuses.values()) or not rows
    return statuses, {name: facts for name, (_, facts) in parts.items()}, code
