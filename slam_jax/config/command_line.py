"""The command line of a run: a recipe or config file, and changes of its options."""

import dataclasses
import re
import runpy
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from slam_jax.base.errors import InputError
from slam_jax.base.values import expected_of
from slam_jax.config.describe import help_of_kinds, help_text
from slam_jax.config.options import Config
from slam_jax.config.pretraining import Pretraining
from slam_jax.config.validate import freeze, with_method
from slam_jax.method.registry import METHODS

USAGE = """\
slam-jax {command} --config RECIPE [--workdir DIR] [--resume] [--distributed]
    [--config.KEY=VALUE ...]

  --config       a recipe ({recipes}; some take a size, as sd:tiny), or a Python file with
                 get_config()
  --workdir      folder of the run; default: runs/<config.name>
  --resume       go on with the run in the workdir, if there is one
  --distributed  this is one of several processes, which SLURM, GKE or a TPU pod tell of one
                 another, or else JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID

Options, with the defaults that a recipe changes:
{options}
"""
METHODS_USAGE = """
Other methods, with the options that slam lacks; what the recipe says of those that they share with
its method stays:
{}
"""

# What the recipes of a command describe; those of pretrain have names that end so.
KINDS = {"train": Config, "pretrain": Pretraining}
OF_PRETRAIN = "_teacher"


class Command(NamedTuple):
    """A command line.

    Attributes:
      config: the run, of the class that was asked for.
      workdir: its folder.
      resume: whether it may go on with a run that is there.
      distributed: whether this is one of several processes of the run.
    """

    config: Any
    workdir: Path
    resume: bool
    distributed: bool


def recipes_folder() -> Path:
    """Where the recipes are: in the installed package, or in a clone of the repository."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def recipes(command: str = "") -> list[str]:
    """The names of the recipes: of a command in KINDS, or all."""
    names = (path.stem for path in recipes_folder().glob("*.py") if path.stem != "__init__")
    is_theirs = {"": (True, False), "train": (False,), "pretrain": (True,)}[command]
    return sorted(name for name in names if name.endswith(OF_PRETRAIN) in is_theirs)


def config_file(name: str, command: str = "") -> str:
    """The config file, with its argument after a colon, that a recipe's name or a path means.

    Args:
      name: of a recipe, or a path.
      command: whose recipes are named where there is none; empty: all.

    Raises:
      InputError: there is none.
    """
    path, colon, argument = name.partition(":")
    there = ", ".join(recipes(command))
    if "/" in path or path.endswith(".py"):
        if not Path(path).is_file():
            raise InputError(f"--config {name}: no such file; recipes: {there}")
        return name
    if path not in recipes():
        raise InputError(f"--config {name}: no such recipe, expected {there}")
    return f"{recipes_folder() / path}.py{colon}{argument}"


def read_recipe(name: str, command: str = "") -> ConfigDict:
    """The config of a recipe, such as "digits" or "sd:tiny", or of a file.

    Args:
      name: as it is given.
      command: that it is for; empty: any.

    Raises:
      InputError: there is none, or the file cannot be run; names the line.
    """
    path, colon, argument = config_file(name, command).partition(":")
    try:
        get_config = runpy.run_path(path).get("get_config")
        if colon and callable(get_config) and not signature(get_config).parameters:
            raise InputError(f"{path}: takes no size; leave {colon}{argument} out")
        config = get_config and get_config(*((argument,) if colon else ()))
    except (Exception, SystemExit) as error:  # whatever a file of the user's raises
        said = _said(error)
        shown = said if Path(path).name in said else f"{_place(path, error)}: {said}"
        raise InputError(shown) from error
    if not isinstance(config, ConfigDict):
        found = "there is none" if get_config is None else f"it returns {config!r:.60}"
        raise InputError(f"{path}: expected get_config() that returns a ConfigDict; {found}")
    return config


def _place(path: str, error: BaseException) -> str:
    """A config file, and the line of it at which an error came up."""
    frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1] if frames else None
    return f"{path}, line {line}" if line else path


def _said(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, SyntaxError):
        return error.msg
    if isinstance(error, AttributeError | KeyError):
        # ml_collections: the unknown key in quotes, then a line with the nearest valid one; at
        # times as the text of a text.
        text = re.sub(r"\\n|\\'|'", " ", str(error.args[0] if error.args else error))
        text = re.sub(r" does not exist and cannot be added.*", "", text, flags=re.DOTALL)
        text = " ".join(text.split()).removeprefix("Key ").strip('" ')
        text = re.sub(r' Did you mean "(\S+)" instead of .*', r"; did you mean \1?", text)
        return f"the config has no option {text}"
    if isinstance(error, flags.UnrecognizedFlagError):
        return (
            f"--{error.flagname}: no such option; those of the config begin with --config., and "
            "--help lists all"
        )
    if isinstance(error, SystemExit):
        return f"it ends the process ({error.code})"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns what ml_collections and absl raise into one line."""
    try:
        yield
    except (AttributeError, KeyError, flags.Error, OSError) as error:
        raise InputError(_said(error)) from error


def parse(argv: list[str], name: str = "train") -> Command:
    """Reads the command line.

    Args:
      argv: behind the command's name.
      name: of the command, one of KINDS.

    Raises:
      InputError: an unknown flag, an unreadable config file, an unknown key, a wrong value.
      SystemExit: help was asked for, and is printed.
    """
    kind = KINDS[name]
    has_method = any(field.name == "method" for field in dataclasses.fields(kind))
    if {"-h", "--help"} & {*argv}:
        texts = dict(recipes=", ".join(recipes(name)), options=help_text(kind()))
        print(USAGE.format(command=name, **texts))
        if has_method:
            print(METHODS_USAGE.format(help_of_kinds(METHODS, kind().method, "config.method")))
        sys.exit(0)
    with _refusals():
        recipe, method, command = _chosen([f"slam-jax {name}", *argv], has_method)
        values = flags.FlagValues()
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        for flag in ("resume", "distributed"):
            flags.DEFINE_bool(flag, False, "", flag_values=values)
        rest = command[1:]
        if recipe is not None:
            chosen = read_recipe(recipe, name).to_dict()
            _check_kind(recipe, chosen, name, kind)
            if has_method:  # on which depends what options there are
                of_recipe = chosen.get("method", {"name": kind().method.name})
                chosen["method"] = with_method(of_recipe, method)
            config = ConfigDict(chosen)
            config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=command)
            rest = values(command)[1:]
        if recipe is None or rest:
            raise InputError(
                f"expected --config RECIPE ({', '.join(recipes(name))}) or --config FILE; got "
                f"{' '.join(rest) or 'neither'}; slam-jax {name} --help has all options"
            )
        config = freeze(values.config, kind)
    workdir = Path(values.workdir or Path("runs") / config.name)
    if expected := expected_of(workdir):
        raise InputError(f"--workdir {str(workdir)[:80]!r}: expected {expected}")
    return Command(config, workdir, values.resume, values.distributed)


def _check_kind(recipe: str, chosen: dict[str, Any], name: str, kind: type) -> None:
    """Refuses a recipe that is one of another command.

    Raises:
      InputError: it is; says of which.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    for other, options in KINDS.items():
        theirs = {field.name for field in dataclasses.fields(options)}
        if other != name and not chosen.keys() <= known and chosen.keys() <= theirs:
            raise InputError(f"--config {recipe}: is for slam-jax {other}, not for slam-jax {name}")


def _chosen(command: list[str], has_method: bool) -> tuple[str | None, str | None, list[str]]:
    """The recipe, the method where it is another one than the recipe's, and the command without
    these two."""
    values = flags.FlagValues()
    values.set_gnu_getopt()  # a value of an option that is not known here ends nothing
    for name in ("config", "config.method.name")[: 1 + has_method]:
        flags.DEFINE_string(name, None, "", flag_values=values)
    rest = values(command, known_only=True)
    return values["config"].value, values["config.method.name"].value if has_method else None, rest
