"""Every option of a config: what is refused, what may change on the way, what is said of it."""

import dataclasses
import json
import math

import pytest

from slam_jax.base.errors import InputError
from slam_jax.config.describe import describe, help_text
from slam_jax.config.options import (
    Config,
    Optimizer,
    StudentOptions,
    Training,
    default_config,
)
from slam_jax.config.pretraining import Pretraining
from slam_jax.config.validate import first_change, freeze, to_json
from slam_jax.method.registry import METHODS
from slam_jax.method.slam import Slam

OPTIONS = {found.key: found.default for found in describe(Config()) if found.default is not None}
GROUPS = [found.key for found in describe(Config()) if found.default is None]

# What may be another one when a run goes on: nothing that its weights depend on. Of teacher.path
# and data.source, what is found there is compared.
FREE = {
    "config.wandb_project",
    *("config.mesh.data", "config.mesh.fsdp", "config.execution.attention"),
    *(key for key in OPTIONS if key.startswith("config.evaluation.")),
    *("config.teacher.path", "config.teacher.revision"),
    *("config.data.source", "config.data.data_dir", "config.data.index"),
    *("config.data.max_rejects", "config.data.workers", "config.data.teacher_batch"),
    *(
        f"config.{training}.{name}"
        for training in ("training", "teacher.training")
        for name in (
            *("accumulation", "remat", "log_every", "sample_every", "checkpoint_every"),
            *(
                "checkpoint_minutes",
                "keep_checkpoints",
                "keep_best",
                "best_metric",
                "max_skipped",
                "patience",
            ),
        )
    ),
}
# By the type of a default: values of no such type.
WRONG = {
    int: [1.5, "1", True, None, (1,)],
    float: ["1", True, None, (1.0,), math.nan, math.inf, -math.inf],
    str: [1, True, None, ("a",)],
    bool: [1, 0.0, "True", None],
    dict: [5, "a", None],
}
WRONG_ITEMS = {int: ["1", 1.5, True, None], str: [1, None]}
FACTS = {"at_least": -1, "above": 0, "at_most": 1, "below": 0}  # how far from a bound is too far


def changed(key, value):
    """The default config as nested dicts, with another value."""
    values = dataclasses.asdict(Config())
    group, names = values, key.split(".")[1:]
    for name in names[:-1]:
        group = group[name]
    group[names[-1]] = value
    return values


def field_of(key):
    options, names = Config(), key.split(".")[1:]
    for name in names[:-1]:
        options = getattr(options, name)
    return next(f for f in dataclasses.fields(options) if f.name == names[-1])


def wrong_values(key):
    """Values that an option cannot have, by its type and its range."""
    default, facts = OPTIONS[key], field_of(key).metadata
    if isinstance(default, tuple):
        item = type(default[0]) if default else str
        yield from (5, None, "ab", *((value,) for value in WRONG_ITEMS[item]))
    else:
        yield from WRONG[type(default)]
    for name in FACTS.keys() & facts.keys():
        value = type(default)(facts[name]) if not isinstance(default, tuple) else facts[name]
        value += FACTS[name]
        yield (value,) if isinstance(default, tuple) else value
    if "one_of" in facts:
        yield "nonsense"


@pytest.mark.parametrize("key", OPTIONS)
def test_a_value_of_another_type_or_out_of_range_is_refused_by_name(key):
    for value in wrong_values(key):
        with pytest.raises(InputError) as caught:
            freeze(changed(key, value))
        told = value[0] if isinstance(value, tuple) and value else value
        message = str(caught.value)
        assert message.startswith((f"{key} = {value!r}, expected", f"{key} = {told!r}, expected"))
        assert "\n" not in message


@pytest.mark.parametrize("root", [Config, Pretraining, *METHODS.values()])
def test_every_number_has_a_least_and_a_most(root):
    for found in describe(root()):
        first = found.default[:1] if isinstance(found.default, tuple) else (found.default,)
        if {*map(type, first)} <= {int, float} and first:
            assert ("at least" in found.values) or ("above" in found.values), found.key
            assert ("at most" in found.values) or ("below" in found.values), found.key


@pytest.mark.parametrize("method", METHODS.values())
def test_no_number_of_a_method_may_be_nan_or_infinite(method):
    floats = [field.name for field in dataclasses.fields(method) if field.type is float]
    assert "w" in floats
    for name in floats:
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(ValueError, match=rf"^{name} = -?(nan|inf), expected a finite"):
                method(**{name: value})


@pytest.mark.parametrize("group", GROUPS)
def test_groups_and_names_are_those_there_are(group):
    for value in (5, None, "x"):
        with pytest.raises(InputError, match=rf"^{group} = {value!r}, expected a group"):
            freeze(changed(group, value))
    with pytest.raises(InputError, match=rf"^{group}\.qqq: no such option; valid keys: "):
        freeze(changed(f"{group}.qqq", 1))
    first = next(key for key in OPTIONS if key.startswith(f"{group}.")).rsplit(".")[-1]
    with pytest.raises(InputError, match=rf"^{group}\.{first}x: no such option; did you mean "):
        freeze(changed(f"{group}.{first}x", 1))


@pytest.mark.parametrize("name", ["dmd", "", 5, None])
def test_a_method_that_does_not_exist_is_refused_with_those_there_are(name):
    with pytest.raises(
        InputError, match=rf"^config.method.name = {name!r}, expected one of slam, "
    ):
        freeze(changed("config.method.name", name))


def test_another_method_brings_its_own_options(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Other(Slam):
        name: str = "other"
        strength: float = 0.5

    monkeypatch.setitem(METHODS, "other", Other)
    values = dataclasses.asdict(Config())
    values["method"] = {"name": "other", "strength": 2, "w": 3}
    config = freeze(values)
    assert config.method == Other(strength=2.0, w=3.0)
    assert freeze(json.loads(to_json(config))) == config
    values["method"] = {"name": "slam", "strength": 2}
    with pytest.raises(InputError, match=r"^config\.method\.strength: no such option"):
        freeze(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training.optimizer.warmup_steps": 1000},
            "training.optimizer.warmup_steps = 1000, expec",
        ),
        (
            {"training.keep_best": 1, "training.log_every": 7},
            "training.checkpoint_every = 500, exp",
        ),
        (
            {"teacher.training.sample_every": 5},
            "teacher.training.sample_every = 5, expected 0: a t",
        ),
        (
            {"teacher.training.best_metric": "fd"},
            "teacher.training.best_metric = 'fd', expected lo",
        ),
        ({"teacher.training.remat": "full"}, "teacher.training.remat = 'full', expected none: it"),
        ({"mesh.data": 0}, "mesh.data = 0, expected -1 or at least 1"),
        ({"evaluation.student_steps": ()}, "evaluation.student_steps = (), expected one or more"),
        ({"evaluation.teacher_steps": []}, "evaluation.teacher_steps = (), expected one or more"),
        ({"name": "a/b"}, "name = 'a/b', expected letters, digits and underscores"),
        ({"data.source": ""}, "data.source = '', expected digits, photographs"),
        ({"data.resolution": 100}, "data.resolution = 100, expected a positive multiple of 8"),
        (
            {"method.gamma": "paired"},
            "method.gammas_per_subpath = 1, expected 2 or more with gamma",
        ),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(changes, message):
    values = dataclasses.asdict(Config())
    for key, value in changes.items():
        *names, last = key.split(".")
        group = values
        for name in names:
            group = group[name]
        group[last] = value
    with pytest.raises(InputError) as caught:
        freeze(values)
    assert str(caught.value).startswith(f"config.{message}")


def test_a_config_goes_through_json():
    training = Training(steps=7, optimizer=Optimizer(learning_rate=1e-3))
    config = dataclasses.replace(Config(), training=training, method=Slam(w=2.0))
    assert freeze(json.loads(to_json(config))) == config
    assert freeze(default_config()) == Config()


def test_what_may_change_when_a_run_goes_on():
    recorded = json.loads(to_json(Config()))
    assert first_change(recorded, Config()) is None
    free = set()
    for key, default in OPTIONS.items():
        other = json.loads(json.dumps(changed(key, "another")))
        if (change := first_change(other, Config())) is None:
            free.add(key)
        else:
            here = json.loads(json.dumps(default))
            assert change == f"{key} is {here!r} here and 'another' there"
    assert free == FREE
    assert {found.key for found in describe(Config()) if found.free} - set(GROUPS) == FREE


def test_a_part_of_a_config_is_compared_where_it_stands():
    teacher = Config().teacher
    recorded = json.loads(to_json(teacher))
    recorded["training"]["steps"], recorded["training"]["log_every"] = 7, 1
    told = "config.teacher.training.steps is 1000 here and 7 there"
    assert first_change(recorded, teacher, "config.teacher") == told


def test_every_option_is_described_once():
    def keys(values, path):
        for name, value in values.items():
            key = f"{path}.{name}"
            yield from keys(value, key) if key in GROUPS else [key]

    assert list(OPTIONS) == list(keys(dataclasses.asdict(Config()), "config"))
    text = help_text(Config())
    for found in describe(Config()):
        assert found.doc and "\n" not in found.doc
        heading = f"--{found.key}={found.default!r}\n" if found.key in OPTIONS else f"{found.key}: "
        assert text.count(heading) == 1
        assert found.values in text
    values = {found.key: found.values for found in describe(Config())}
    assert values["config.method.sigma"] == "one of linear, paper"
    assert values["config.training.ema"] == "a number at least 0 and below 1"
    assert values["config.training.best_metric"] == ""


def test_a_run_that_began_before_an_option_existed_had_its_default():
    old = json.loads(to_json(Config()))
    del old["student"], old["method"]["w"]
    assert first_change(old, Config()) is None
    changed = Config(student=StudentOptions("lora"), method=Slam(conditioning="snr"))
    assert (
        first_change(old, changed)
        == "config.method.conditioning is 'snr' here and 'embedding' there"
    )
    old["method"]["conditioning"] = "snr"
    assert first_change(old, changed) == "config.student.kind is 'lora' here and 'full' there"
    assert first_change(old, Config(method=Slam(conditioning="snr", w=3.0))) == (
        "config.method.w is 3.0 here and 8.0 there"
    )
