"""The command line of a run: recipes, files, changed options; and each refusal in one line."""

import sys
from pathlib import Path

import pytest

from slam_jax.base.errors import InputError
from slam_jax.config.command_line import Command, config_file, parse, recipes
from slam_jax.config.describe import describe
from slam_jax.config.options import Config
from slam_jax.method.lcm import Lcm
from slam_jax.method.pcm import Pcm
from slam_jax.method.registry import METHODS
from slam_jax.method.slam_literal import SlamLiteral

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = [
    "digits",
    "digits_paper",
    "emoji",
    "emoji_flow",
    "emoji_flow_teacher",
    "emoji_teacher",
    "sd",
    "sd21",
    "sd21_v",
    "sd35",
    "sd_lora",
    "sd_slam",
    "sdxl",
    "sdxl_lora",
]
TEACHERS = ["emoji_flow_teacher", "emoji_teacher"]  # of slam-jax pretrain


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Recipes are found from any folder, in a new process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # where the last one was read


def test_the_recipes_are_the_files_of_configs():
    assert recipes() == NAMES == sorted(path.stem for path in CONFIGS.glob("*.py"))
    assert recipes("pretrain") == TEACHERS
    assert recipes("train") == [name for name in NAMES if name not in TEACHERS]


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_a_config(name):
    own = ["--config.data.source=photographs"] * name.startswith("sd")
    command = parse(["--config", name, *own], "pretrain" if name in TEACHERS else "train")
    assert command.config.name == name
    assert command == Command(command.config, Path("runs") / name, False, False)


def test_a_recipe_takes_a_size_and_a_file_is_a_recipe_too():
    tiny = parse(["--config=sd:tiny"])
    assert tiny.config.name == "tiny_sd" and tiny.config.training.steps == 30
    assert parse(["--config", f"{CONFIGS}/sd.py:tiny"]) == tiny
    assert config_file("sd:tiny") == f"{CONFIGS / 'sd'}.py:tiny"
    Path("mine.py").write_text(
        (CONFIGS / "digits.py").read_text().replace('"digits"\n', '"mine"\n', 1)
    )
    assert parse(["--config", "mine.py"]).config.name == "mine"


def test_options_are_changed_in_the_order_given():
    command = parse(
        [
            *("--config", "digits", "--config.method.w=3", "--config.method.w=4"),
            *("--config.evaluation.student_steps=(1,2)", "--config.data.flip=False"),
            *("--config.teacher.network.block_out_channels=(8,)", "--workdir", "there"),
            *("--resume", "--distributed", "--config.training.optimizer.schedule=linear"),
        ]
    )
    config = command.config
    assert command[1:] == (Path("there"), True, True)
    assert (config.method.w, config.evaluation.student_steps) == (4.0, (1, 2))
    assert config.teacher.network["block_out_channels"] == (8,)
    assert config.training.optimizer.schedule == "linear"


@pytest.mark.parametrize("words", ["--config.method.name=pcm", "--config.method.name pcm"])
def test_the_method_is_changed_and_shared_options_stay(words):
    """The recipe of the digits has w = 2 and SLAM's own options, which PCM lacks."""
    arguments = [*words.split(), "--config", "digits", "--config.method.phases=8"]
    config = parse(
        ["--config.training.steps", "9", *arguments, "--config.method.huber_c=0.5"]
    ).config
    assert config.method == Pcm(w=2.0, phases=8, huber_c=0.5)
    assert config.training.steps == 9
    recipe = parse(["--config", "digits"]).config
    assert config.training.optimizer == recipe.training.optimizer
    assert parse(["--config", "digits", "--config.method.name=slam"]).config == recipe
    assert parse(["--config", "digits", "--config.method.name=lcm"]).config.method == Lcm(w=2.0)
    literal = parse(["--config", "digits", "--config.method.name=slam_literal"]).config.method
    assert literal == SlamLiteral(w=2.0)


def test_a_file_that_gives_a_part_of_a_method_leaves_the_rest_to_the_command_line():
    text = (CONFIGS / "digits.py").read_text()
    Path("mine.py").write_text(
        text.replace(
            "    return config", "    config.method = dict(name='lcm', w=3.0)\n    return config"
        )
    )
    command = parse(["--config", "mine.py", "--config.method.distance=l2"])
    assert command.config.method == Lcm(w=3.0, distance="l2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "",
            "expected --config RECIPE (digits, digits_paper, emoji, emoji_flow, sd, sd21,",
        ),
        ("", "got neither; slam-jax train --help has all options"),
        ("--config emoji_teacher", "is for slam-jax pretrain, not for slam-jax train"),
        ("--config digits more", "got more"),
        (
            "--config nothing",
            "--config nothing: no such recipe, expected digits, digits_paper, emoji, ",
        ),
        ("--config=nothing:tiny", "--config nothing:tiny: no such recipe, expected digits"),
        ("--config missing.py", "--config missing.py: no such file; recipes: digits, digits_paper"),
        ("--config missing.py", "digits_paper, emoji, emoji_flow, sd, sd21,"),
        ("--config no/folder", "--config no/folder: no such file; recipes: digits"),
        ("--config digits:full", "digits.py: takes no size; leave :full out"),
        ("--config sd:huge", "sd.py:huge: expected full or tiny"),
        ("--config sd", "config.data.source = '', expected digits, photographs"),
        ("--config digits --config.method.gama=one", "option gama; did you mean gamma?"),
        ("--config digits --config.metod.gamma=one", "option metod; did you mean method?"),
        ("--config digits --config.unlikeany=one", "the config has no option unlikeany"),
        ("--config digits --config.method.w=x", "config.method.w"),
        (
            "--config digits --config.method.w=nan",
            "config.method.w = nan, expected a finite number",
        ),
        ("--config digits --config.training.steps=2.5", "config.training.steps"),
        ("--config digits --config.method.name=dmd", "config.method.name = 'dmd', expected one of"),
        ("--config digits --config.method.name=lcm --config.method.gamma=one", "gamma"),
        ("--config digits --config.method.phases=4", "phases"),
        ("--config digits --config.method.name", "Missing value for flag --config.method.name"),
        ("--config.method.w=1", "expected --config RECIPE (digits, "),
        ("--config digits --workdirs=x", "--workdirs: no such option"),
        ("--config digits --training.steps=3", "those of the config begin with --config."),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(arguments, message):
    with pytest.raises(InputError) as caught:
        parse(arguments.split())
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "def get_config():\n    raise ValueError('the key of\\nthe universe')",
            ", line 2: the key of",
        ),
        ("def get_config():\n    return 1 / 0", ", line 2: division by zero"),
        ("\nimport no_such_module", ", line 2: No module named 'no_such_module'"),
        ("def get_config(:", ", line 1: invalid syntax"),
        (b"\x8f\x00", ": "),
        (
            "from slam_jax.config.options import default_config\n"
            "def get_config():\n    default_config().no_such = 3",
            ", line 3: the config has no option no_such",
        ),
        ("raise SystemExit(0)", ", line 1: it ends the process (0)"),
        ("", ": expected get_config() that returns a ConfigDict; there is none"),
        (
            "get_config = lambda: 3",
            ": expected get_config() that returns a ConfigDict; it returns 3",
        ),
        (
            "def get_config(size):\n    pass",
            ": get_config() missing 1 required positional argument",
        ),
    ],
)
def test_a_file_that_cannot_be_run_is_named_with_its_line(content, message):
    parse(["--config", "digits"])  # of which nothing is left over for the next file
    Path("mine.py").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        parse(["--config", "mine.py"])
    assert str(caught.value).startswith(f"mine.py{message}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_has_recipes_and_every_option(flag, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(["--config", "digits", flag])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert ", ".join(recipes("train")) in text and TEACHERS[0] not in text
    for found in describe(Config()):
        assert found.key in text and found.doc in text
    assert "config.method.name=pcm\n  --config.method.phases=4\n" in text
    for name in METHODS:
        assert name == "slam" or f"config.method.name={name}\n" in text
