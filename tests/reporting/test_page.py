"""The page: what stands in it, that it needs nothing else, and who may fail."""

import json
import re
import time
from html.parser import HTMLParser

import pytest
from report_runs import make_workdir, pictures, rows

from slam_jax.__main__ import main
from slam_jax.base.errors import InputError
from slam_jax.drawing.strips import save_strips
from slam_jax.reporting import page
from slam_jax.reporting.record import record_of

RESULTS = [
    {"model": "teacher", "steps": 50, "fd_pixels": 1.25, "label_accuracy": 0.9},
    {"model": "student", "steps": 1, "fd_pixels": 2.5, "label_accuracy": 0.7},
    {"model": "student", "steps": 4, "fd_pixels": 1.5, "label_accuracy": 0.6, "mine": "n/a"},
]


class Texts(HTMLParser):
    """The words of a page, its tables, and what it would load."""

    def __init__(self, html):
        super().__init__()
        self.words, self.tables, self.loaded, self.data = [], [], [], ""
        self._tag = ""
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self._tag, found = tag, dict(attributes)
        self.loaded += [found[name] for name in ("src", "href") if name in found]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        self._tag = "td" if tag == "code" and self.tables and self.tables[-1] else ""

    def handle_data(self, data):
        if self._tag == "script" and data.startswith("{"):
            self.data = data
        elif self._tag not in ("script", "style"):
            self.words.append(data)
            if self._tag in ("td", "th", "code") and self.tables and self.tables[-1]:
                self.tables[-1][-1][-1] += data


def written(workdir):
    return Texts(page.write_page(workdir).read_text())


def write_rows(workdir, rows):
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def finish(workdir):
    summary = {"seconds": 300.0, "peak_memory_gb": 1.5, "results": RESULTS}
    (workdir / "summary.json").write_text(json.dumps(summary))
    teacher = {"path": "some/teacher", "fingerprints": {"denoiser": "0123456789abcdef"}}
    (workdir / "teacher.json").write_text(json.dumps(teacher))
    (workdir / "run.json").write_text(json.dumps(record_of("slam-jax train --config x")))


def test_a_finished_run(tmp_path):
    workdir = make_workdir(tmp_path / "run", training=dict(batch_size=96), seed=17)
    finish(workdir)
    found = written(workdir)
    for said in (
        "finished",
        "slam-jax train --config x",
        "some/teacher",
        "fingerprint of its denoiser 0123456789ab",
        "seed 17",
        "8 x cpu",
        "samples seen 38,400 96 in a step",
        "time 5 min 0 s all of the last start that trained",
        "memory of the host 1.5 GiB",
        "guidance 9 of the teacher; w = 8",
        "steps of the student 1, 4",
    ):
        assert said in found.text, said
    results, method, options = found.tables
    assert results[0] == ["model", "steps", "FD pixels", "label accuracy", "mine"]
    assert results[1:] == [
        ["teacher", "50", "1.250", "0.900", ""],
        ["student", "1", "2.500", "0.700", ""],
        ["student", "4", "1.500", "0.600", "n/a"],
    ]
    assert [row[0] for row in method[1:3]] == ["method.name", "method.w"]
    changed = {row[0]: row[1:3] for row in options[1:]}
    assert changed["training.batch_size"] == ["96", "12"]
    assert changed["evaluation.student_steps"] == ["1, 4", "1, 2, 4, 8"]
    assert "seed" not in changed and "training.optimizer.b1" not in changed


def test_the_share_of_the_evaluation_is_that_of_the_rows(tmp_path):
    """Of a run of 400 steps of 10 examples, 100 a second: 40 s, but for its first row."""
    workdir = make_workdir(tmp_path / "run", training=dict(batch_size=10))
    found = [{**row, "samples_per_second": 100} for row in rows()]
    del found[0]["samples_per_second"]
    for row in found[4::5]:
        row["evaluation_seconds"] = 2.375
    write_rows(workdir, found)
    assert "evaluation 25.0% 9.5 s beside 38 s of training steps" in written(workdir).text
    write_rows(workdir, rows())
    assert " s of training steps" not in written(workdir).text


@pytest.mark.parametrize(("speed", "shown"), [(1053.7, "1,054"), (99.96, "100"), (0.8437, "0.844")])
def test_the_speed_is_written_as_people_write_it(tmp_path, speed, shown):
    workdir = make_workdir(tmp_path / "run")
    write_rows(workdir, [{**row, "samples_per_second": speed} for row in rows()])
    assert f"samples per second {shown} median, in training" in written(workdir).text


def counted(workdir):
    """What the page says of the last ladder, in the first chart of distances, below the table."""
    found = written(workdir)
    data = json.loads(found.data)
    said = re.search(r"Measured (.+?)\. ", found.text)
    chart = next(chart for chart in data["charts"] if chart["title"].startswith("FD"))
    return data["ladders"][-1]["student"][1]["numbers"], chart["note"], said and said[1]


def test_a_distance_says_of_how_many_pictures_it_is(tmp_path):
    """Ladders are of few, the table is of many, and networks see as many as they are told to."""
    workdir = make_workdir(tmp_path / "run", evaluation=dict(samples=2000))
    write_rows(workdir, rows(fd_to_teacher_4=lambda u: 0.25, fid_to_teacher_4=lambda u: 2.5))
    finish(workdir)
    numbers, chart, table = counted(workdir)
    assert re.match(r"of 3 pictures: FD to teacher 0\.2\d+ · FID to teacher 2\.\d+ · at", numbers)
    assert chart == "lower is better; of 3 pictures"
    assert table == "of 2,000 pictures a row"

    networks = dict(samples=2000, pictures=4096, metrics=("fd_to_teacher", "fid_to_teacher"))
    make_workdir(workdir, evaluation=networks)
    write_rows(workdir, rows(fd_to_teacher_4=lambda u: 0.25, fid_to_teacher_4=lambda u: 2.5))
    row = {"model": "student", "steps": 4, "fd_to_teacher": 0.2, "fid_to_teacher": 2.0}
    (workdir / "summary.json").write_text(json.dumps({"results": [row]}))
    numbers, _, table = counted(workdir)
    assert re.fullmatch("of 3 pictures: FD .+; of 4,096 pictures: FID to teacher .+", numbers)
    assert table == "FD to teacher of 2,000 pictures; FID to teacher of 4,096 pictures"


def test_a_ladder_that_shows_fewer_pictures_than_it_measured(tmp_path):
    """Large pictures are shown in part; an older run did not say of how many its numbers are."""
    workdir = make_workdir(tmp_path / "run", ladders=(), evaluation=dict(samples=0))
    drawn = {("teacher", 50): pictures(count=12, size=(80, 80))}
    drawn |= {("student", steps): pictures(count=12, size=(80, 80)) for steps in (1, 4)}
    save_strips(workdir / "samples/step_000400", drawn, tuple("abcdefghijkl"), 20)
    write_rows(workdir, rows(fd_to_teacher_4=lambda u: 0.25))
    finish(workdir)
    numbers, chart, table = counted(workdir)
    assert numbers.startswith("of 12 pictures: FD") and chart.endswith("of 12 pictures")
    assert table == "of 12 pictures a row"
    path = workdir / "samples/step_000400/rows.json"
    older = json.loads(path.read_text())
    del older["pictures"]
    path.write_text(json.dumps(older))
    numbers, chart, table = counted(workdir)
    assert numbers.startswith("FD") and chart == "lower is better" and table is None


def test_the_page_of_a_long_run_is_there_in_a_moment(tmp_path):
    """50,000 rows: it is written at every ladder."""
    workdir = make_workdir(tmp_path / "run", training=dict(steps=1_000_000))
    usual = rows(rmse_to_teacher_4=lambda u: u)[3]
    write_rows(workdir, [{**usual, "step": 20 * i} for i in range(1, 50_001)])
    started = time.process_time()
    page.write_page(workdir)
    assert time.process_time() - started < 3


def test_the_best_of_the_students_steps_is_marked():
    found = page.results_table({"results": RESULTS})
    assert [[best for _, best in row["cells"]] for row in found["rows"]] == [
        *([False, False, False], [False, True, False], [True, False, False])
    ]
    assert page.results_table({}) is None


def test_the_page_needs_nothing_else(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    html = page.write_page(workdir).read_text()
    found = Texts(html)
    assert all(link.startswith(("#", "data:")) for link in found.loaded)
    assert "@import" not in html and not re.search(r"url\((?!data:)", html)
    assert "default-src 'none'" in html
    assert len(html) < 1_000_000


def test_pictures_and_curves_are_in_it(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    data = json.loads(written(workdir).data)
    assert [ladder["step"] for ladder in data["ladders"]] == [100, 200, 300, 400]
    teachers = {ladder["teacher"]["image"] for ladder in data["ladders"]}
    assert len(teachers) == 1  # whose pictures are always the same
    assert len(data["images"]) == 1 + 2 * 4
    assert all(image.startswith("data:image/webp;base64,") for image in data["images"])
    assert (
        data["charts"][0]["title"] == "Loss" and len(data["charts"][0]["curves"][0]["points"]) == 20
    )


def test_texts_of_a_run_are_no_html(tmp_path):
    prompt = "</script><b>&amp; 'a' \"b\""
    workdir = make_workdir(tmp_path / "run", evaluation=dict(prompts=(prompt,)))
    html = page.write_page(workdir).read_text()
    assert "<b>&amp; 'a'" not in html and prompt in Texts(html).text


@pytest.mark.parametrize("metrics", [True, False])
def test_a_run_that_has_only_begun(tmp_path, metrics):
    workdir = make_workdir(tmp_path / "run", ladders=())
    if not metrics:
        (workdir / "metrics.jsonl").unlink()
    found = written(workdir)
    assert f"step {400 if metrics else 0} of 400" in found.text
    assert ("Curves" in found.text) == metrics and "Pictures" not in found.words


def test_the_command_writes_it_again(tmp_path, capsys):
    workdir = make_workdir(tmp_path / "run")
    main(["report", "--workdir", str(workdir)])
    assert capsys.readouterr() == (f"report: {workdir / 'report.html'}\n", "")
    assert (workdir / "report.html").exists()
    with pytest.raises(SystemExit, match=r"config.json: cannot be read"):
        main(["report", "--workdir", str(tmp_path)])


def test_the_command_says_that_a_teacher_is_trained_first(tmp_path, capsys):
    workdir = make_workdir(tmp_path / "run", ladders=())
    (workdir / "teacher").mkdir()
    (workdir / "metrics.jsonl").rename(workdir / "teacher/metrics.jsonl")
    main(["report", "--workdir", str(workdir)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: the run has nothing of a student yet")
    assert line.endswith("trained first and was at step 400; write it again later")
    (workdir / "teacher/metrics.jsonl").unlink()
    main(["report", "--workdir", str(workdir)])
    assert "its first metrics are still to come" in capsys.readouterr().err


def test_a_page_that_fails_says_so_and_no_more(tmp_path, capsys):
    workdir = make_workdir(tmp_path / "run")
    page.try_page(workdir)
    before = (workdir / "report.html").read_text()
    assert capsys.readouterr().err == ""
    (workdir / "samples/step_000400/rows.json").write_text("{")
    with pytest.raises(InputError):
        page.write_page(workdir)
    page.try_page(workdir)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {workdir / 'report.html'}: not written (InputError: ")
    assert (workdir / "report.html").read_text() == before
