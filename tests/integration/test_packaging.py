"""What `pip install .` brings: all of the package, its recipes, its command and what it imports."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("slam_jax", "configs", "tests", "benchmarks", "launch")
FILES = ("pyproject.toml", "setup.py", "requirements.txt", "README.md", "LICENSE")
# jax.export imports it, and jax does not ask for it.
ASKED_FOR_BY_OTHERS = {"flatbuffers"}
# torch, diffusers and peft are asked for by name where a user wants to compare with them, or read
# what torch wrote; etils comes with tensorflow-datasets, jaxlib with jax.
NO_REQUIREMENTS = {"torch", "diffusers", "peft", "etils", "jaxlib"}


def run(*command, folder, path=""):
    environment = {**os.environ, "PYTHONPATH": str(path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments, folder):
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, folder=folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the tree, so that nothing of an earlier build gets into it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, folder / "tree")
    (folder / "empty").mkdir()
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    pip("wheel", *options, folder / "tree", folder=folder / "empty")
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_package_and_recipes_and_nothing_else(wheel):
    package = {str(p.relative_to(ROOT)) for p in (ROOT / "slam_jax").rglob("*.py")}
    recipes = {f"slam_jax/configs/{p.name}" for p in (ROOT / "configs").glob("*.py")}
    assert len(package) > 50 and "slam_jax/configs/digits.py" in recipes
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    # Its template and what that inlines.
    page = {
        str(p.relative_to(ROOT))
        for p in (ROOT / "slam_jax/reporting").rglob("*.*")
        if p.suffix != ".pyc"
    }
    assert {f"slam_jax/reporting/report.{end}" for end in ("html.j2", "css", "js")} <= page
    assert held == package | recipes | page | {"slam_jax/py.typed"}


def test_installed_it_runs_without_the_repository(wheel, tmp_path):
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    pip("install", "--quiet", "--no-deps", "--target", installed, wheel, folder=empty)
    where = "import slam_jax; print(slam_jax.__file__)"
    found = run(sys.executable, "-c", where, folder=empty, path=installed)
    assert found.strip() == str(installed / "slam_jax/__init__.py")
    text = run(sys.executable, "-m", "slam_jax", "--help", folder=empty, path=installed)
    assert text.startswith("usage: slam-jax ") and "train" in text
    script = installed / "bin/slam-jax"
    assert run(sys.executable, script, "--help", folder=empty, path=installed) == text
    assert not list(empty.iterdir())


def test_python_alone_is_enough_for_all_tests_but_those_in_a_browser():
    """`make test` adds nothing to pytest's own options; CI installs Chromium and runs both."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert options["addopts"][-2:] == ["-m", "not nightly and not browser"]
    commands = {}
    for target in ("test", "test-fast", "test-browser", "test-all"):
        plan = run("make", "--dry-run", target, folder=ROOT)
        (commands[target],) = (line for line in plan.splitlines() if "-m pytest" in line)
    assert " -m " not in commands["test"].replace("-m pytest", "")
    assert '-m "not slow and not nightly and not browser"' in commands["test-fast"]
    assert commands["test-browser"].endswith("-m browser")
    assert commands["test-all"].endswith('-m ""')
    ci = (ROOT / ".ci/run").read_text().splitlines()
    places = [ci.index(line) for line in ("make lint", "make test", "make test-browser")]
    assert places == sorted(places) and any("install" in line for line in ci[: places[0]])
    assert "- run: .ci/run" in (ROOT / ".github/workflows/ci.yml").read_text()


def imported_distributions():
    """Names of what the package imports anywhere, as in requirements, Python's own left out."""
    modules = set()
    for path in (ROOT / "slam_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add((node.module or "").split(".")[0])
    modules -= {"slam_jax", "__future__"} | sys.stdlib_module_names
    distributions = packages_distributions()
    return {plain(distributions.get(module, [module])[0]) for module in modules}


def plain(name):
    return name.lower().replace("-", "_")


def named(lines):
    found = (re.match(r"[\w-]+", line) for line in lines)
    return {plain(name[0]) for name in found if name}


def test_requirements_are_what_the_package_imports():
    core = named((ROOT / "requirements.txt").read_text().splitlines())
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    tfds = {"tensorflow_datasets"}
    assert tfds <= named(extras["tfds"]) and named(extras["eval"]) <= core
    imported = imported_distributions() - NO_REQUIREMENTS
    assert named(extras["wandb"]) == {"wandb"} and "resvg_py" in named(extras["emoji"])
    assert named(extras["playground"]) == {"gradio"}
    assert imported == core - ASKED_FOR_BY_OTHERS | tfds | {"wandb", "resvg_py", "gradio"}
