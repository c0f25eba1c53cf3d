"""What the playground draws is what its command lines draw; what it refuses; what it compiles."""

import dataclasses
import io
import shlex
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from doc_pages import PAGES, blocks
from helpers import refusal
from PIL import Image
from small_digits import PIPELINE

from slam_jax.commands import playground as command
from slam_jax.commands import sample
from slam_jax.families.family import Model
from slam_jax.method.lcm import Lcm
from slam_jax.recipes.student import load
from slam_jax.serving import playground, playground_page
from slam_jax.serving.playground import Artist, Wish


def parsed(module, words):
    """The arguments that a command's parser makes of words."""
    read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run", lambda _, parser, argv: read.append(parser.parse_args(argv)))
        module.main([str(word) for word in words])
    return read[0]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.fixture(scope="module")
def artists(exported, teachers):
    """A student and its teacher, as the command loads them."""
    words = ["--model", exported, "--teacher", teachers["sd15"], "--teacher-guidance", "3"]
    arguments = parsed(command, words)
    model = load(arguments.model, command.load_options(arguments))
    student = Artist(model, command.sample_options(arguments), 1.0, "float32")
    return student, command.read_teacher(arguments, model)[0]


@pytest.fixture(scope="module")
def student(artists):
    return artists[0]


@pytest.fixture(scope="module")
def digits():
    params = PIPELINE.init(PIPELINE.network, jax.random.key(0))
    return Artist(Model(PIPELINE, {}, params, None), ["--model", "digits"], 1.0, "float32")


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "a photograph.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def drawn_by_command(line, folder, monkeypatch):
    """The pixels of the picture that a line of the page draws."""
    monkeypatch.chdir(folder)
    program, name, *arguments = shlex.split(line)
    assert (program, name) == ("slam-jax", "sample")
    sample.main(arguments)
    return pixels((folder / "picture.png").read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["a cat", "--steps 'of' a \"house\" $HOME"])
def test_the_command_line_draws_the_same_picture(student, tmp_path, monkeypatch, prompt):
    drawn = student.draw(Wish(prompt, steps=1, seed=3))
    expected = drawn_by_command(drawn.command, tmp_path, monkeypatch)
    np.testing.assert_array_equal(pixels(drawn.png), expected)
    assert drawn.seconds > 0 and drawn.cut == "" and expected.std() > 1


@pytest.mark.slow
def test_it_goes_on_from_a_picture_as_the_command_does(student, photograph, monkeypatch):
    drawn = student.draw(Wish("a cat", 1, 3, photograph, 0.6))
    expected = drawn_by_command(drawn.command, photograph.parent, monkeypatch)
    np.testing.assert_array_equal(pixels(drawn.png), expected)
    assert np.any(pixels(student.draw(Wish("a cat", 1, 3)).png) != expected)


@pytest.mark.slow
def test_the_teacher_draws_as_its_command_does(artists, tmp_path, monkeypatch):
    drawn = artists[1].draw(Wish("a cat", 2, 3))
    expected = drawn_by_command(drawn.command, tmp_path, monkeypatch)
    np.testing.assert_array_equal(pixels(drawn.png), expected)
    assert "--guidance 3.0" in drawn.command


def test_options_that_load_the_model_are_in_the_line():
    words = "--model M --revision v1 --variant fp16 --method lcm --width 64 --height 32"
    words += " --lora A:0.5 --lora=-B --dtype bfloat16 --allow-unused --guidance 2"
    ours = parsed(command, words.split())
    theirs = vars(parsed(sample, command.sample_options(ours)))
    common = vars(ours).keys() & theirs.keys() - {"steps", "seed", "prompt"}
    assert len(common) == 10
    assert {name: theirs[name] for name in common} == {n: vars(ours)[n] for n in common}


def test_the_lines_of_the_documentation_are_understood():
    lines = [line for page in PAGES for code in blocks(page, "bash") for line in code.splitlines()]
    served = [line for line in lines if line.startswith("slam-jax playground ")]
    assert len(served) >= 2
    for line in served:
        command.check_options(parsed(command, [*shlex.split(line)[2:], "--port", free_port()]))


def test_each_program_is_made_once(student, monkeypatch):
    made, make = [], playground.make_sampler

    def counted(model, settings):
        made.append(settings.steps)
        return make(model, settings)

    monkeypatch.setattr(playground, "make_sampler", counted)
    artist = Artist(student.model, [], 1.0, "float32")
    assert artist.compiles(Wish("a bird", 1))
    with ThreadPoolExecutor(2) as pool:
        wishes = [Wish("a cat", 1), Wish("a dog", 1), Wish("a cat", 1, 5), Wish("a cat", 1)]
        drawn = [pixels(d.png) for d in pool.map(artist.draw, wishes)]
    assert made == [1] and not artist.compiles(Wish("a bird", 1))
    assert artist.compiles(Wish("a bird", 2)) and made == [1, 2]
    np.testing.assert_array_equal(drawn[0], drawn[3])
    assert all(np.any(drawn[0] != other) for other in drawn[1:3])


def test_one_thread_at_a_time_reads_prompts(digits, monkeypatch):
    """Tokenizers of transformers mix up the lengths that several threads ask for."""
    read, inside, most = type(PIPELINE).prompts, [], []

    def slowly(pipeline, texts):
        inside.append(texts)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return read(pipeline, texts)

    monkeypatch.setattr(type(PIPELINE), "prompts", slowly)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(digits.draw, [Wish("3", 1)] * 3))
    assert most == [1, 1, 1]


def test_what_is_refused_in_a_line_and_drawn_after(digits):
    expected = pixels(digits.draw(Wish("3", 1)).png)
    assert refusal(digits.draw, Wish("cat", 1)).startswith("prompt 'cat': this model draws")
    assert "without a NUL" in refusal(digits.draw, Wish("3\0", 1))
    assert refusal(digits.draw, Wish("3", 5000)).startswith("--steps")
    assert not digits.takes_images
    np.testing.assert_array_equal(pixels(digits.draw(Wish("3", 1)).png), expected)


def test_a_teacher_in_the_place_of_a_student_is_told(digits, tmp_path, monkeypatch, capsys):
    """On the page and by the command: it draws with a guidance, and needs more steps."""
    few, enough = digits.draw(Wish("3", 1)), digits.draw(Wish("3", 25))
    assert few.teacher == (
        "by a teacher, with guidance 1; teachers need more steps than 1, 25 to 50"
    )
    assert enough.teacher == "by a teacher, with guidance 1"
    *_, (_, said, _) = playground_page.show(digits, Wish("3", 1))
    assert said.endswith(f" ms for 1 step {few.teacher}")
    lcm = Artist(dataclasses.replace(digits.model, method=Lcm()), [], 1.0, "float32")
    assert lcm.draw(Wish("3", 1)).teacher == ""

    for model, line in (
        (digits.model, f"note: drawn {few.teacher} (--guidance, --steps)\n"),
        (lcm.model, ""),
    ):
        monkeypatch.setattr(sample, "load", lambda *_, model=model: model)
        words = [
            "--model",
            "any",
            "--labels",
            "3",
            "--steps",
            "1",
            "--out",
            str(tmp_path / "a.png"),
        ]
        sample.main([*words, *["--guidance", "1"] * (not model.is_student)])
        assert "".join(x for x in capsys.readouterr().err.splitlines(True) if "note" in x) == line


def test_an_upload_that_is_no_picture_is_named_without_its_folder(student, tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    line = refusal(student.draw, Wish("a cat", 1, 0, tmp_path / "broken.png", 0.5))
    assert line.startswith("broken.png: cannot be read as a picture")
    assert str(tmp_path) not in line


def test_damaged_weights_are_refused(digits):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, digits.model.params)
    artist = Artist(dataclasses.replace(digits.model, params=broken), [], 1.0, "float32")
    assert "not finite" in refusal(artist.draw, Wish("3", 1))


def refused(arguments):
    with pytest.raises(SystemExit) as stop:
        command.main(["--model", "/nowhere", *arguments])
    assert "\n" not in stop.value.code
    return stop.value.code


def test_without_gradio_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(command.os, "environ", dict(command.os.environ))
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert refused(["--port", str(free_port())]).endswith("pip install 'slam_jax[playground]'")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        line = refused(["--port", str(port)])
    assert line.startswith(f"error: --host 127.0.0.1 --port {port}: ") and "choose another" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps 0: expected 1 or more"),
        (["--seed", "-1"], "--seed -1"),
        (["--queue", "0"], "--queue 0: expected 1 or more"),
        (["--port", "70000"], "--port 70000: expected at most 65,535"),
        (["--teacher-steps", "0"], "--teacher-steps 0"),
        (["--host", "no host"], "--host no host --port 7860"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments, message):
    assert message in refused(arguments)
