"""Bad input of every kind, drawn at random: one line that names the file or the key, soon, and
nothing is left behind.

One line is one on stderr, apart from notes and progress (`refused.ASIDE`).
"""

import random

import digits_runs
import pytest
from bad_cases import KINDS, NUMBERS, Models, listing
from refused import DRAWN, ended, faults

DAY, NIGHT = 8, 75  # cases of each of eight kinds


@pytest.fixture(scope="module")
def models(teachers, made_once):
    run = made_once("finished_digits", digits_runs.launch)
    return Models(teachers["sd15"], run / "export", run)


def found_wrong(kind, index, folder, models):
    """What is wrong with the refusal of a case; the seed decides which it is."""
    folder.mkdir()
    case = KINDS[kind](random.Random(f"{kind} {index}"), folder, models)
    before = listing(folder)
    found = ended(case.argv)
    wrong = faults(found, [*case.named, *([DRAWN, "--step 77"] if case.harmless else [])])
    if left := [name for name, size in listing(folder).items() if before.get(name) != size]:
        wrong.append(f"left {left[:5]}")
    shown = f"{kind} {index}, {case.what}: {wrong}; said {found.lines[:1]}"
    return [ascii(shown)] if wrong else []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("first", "count"),
    [
        pytest.param(0, DAY, id="day", marks=pytest.mark.slow),
        pytest.param(DAY, NIGHT - DAY, id="night", marks=pytest.mark.nightly),
    ],
)
def test_bad_input_is_refused_in_one_line(kind, first, count, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found_wrong(kind, "first", tmp_path / "first", models)  # imports what the others need
    wrong = []
    for index in range(first, first + count):
        wrong += found_wrong(kind, index, tmp_path / str(index), models)
    assert not wrong, "\n".join(wrong)


def test_the_numbers_are_those_of_both_configs_and_of_all_methods():
    keys = " ".join(NUMBERS)
    for part in ("config.training.steps", "config.tokens.length", "name=pcm config.method.phases"):
        assert part in keys
    assert len(NUMBERS) > 90
