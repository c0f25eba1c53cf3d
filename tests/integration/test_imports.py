"""Imports go strictly downwards, foreign libraries stay where they belong, importing does no work.

A module may import from its own folder, where that makes no cycle, and from the folders above its
own in FOLDERS. A module at the top of the package may import from all of them.
"""

import ast
import graphlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "base",
    "method",
    "models",
    "parallel",
    "formats",
    "data",
    "config",
    "families",
    "features",
    "training",
    "drawing",
    "evaluation",
    "reporting",
    "recipes",
    "serving",
    "commands",
)
# Who may import what: folders and modules.
OWNERS = {
    "flax": ("models", "formats"),
    "orbax": ("training",),
    "grain": ("data",),
    "array_record": ("data",),
    "fsspec": ("data",),
    "braceexpand": ("data",),
    "tensorflow_datasets": ("data",),
    "ml_collections": ("api", "config"),
    "safetensors": ("formats",),
    "sklearn": ("data", "drawing"),
    "resvg_py": ("data",),
    "PIL": (
        "data",
        "drawing",
        "evaluation.parts",
        "features",
        "commands.inspect",
        "serving.artifact_draw",
    ),
    "skimage": ("data",),
    "optax": ("training",),
    "torch": ("formats.torch_file", "serving.stock_networks", "serving.stock_pipeline"),
    "diffusers": ("serving.stock_networks", "serving.stock_pipeline"),
    "peft": ("serving.stock_networks",),
    "transformers": ("formats.tokenizer", "serving.stock_pipeline"),
    "huggingface_hub": ("formats.hub",),
    "jinja2": ("reporting",),
    "wandb": ("training.wandb_log",),
    "gradio": ("serving.playground_page",),
    "tensorflow": (),
}


def module_name(path):
    return ".".join(path.relative_to(ROOT / "slam_jax").with_suffix("").parts)


PATHS = {module_name(path): path for path in sorted((ROOT / "slam_jax").rglob("*.py"))}
MODULES = sorted(name for name in PATHS if not name.endswith("__init__"))


@cache
def imported_names(name):
    """Absolute dotted names that a module imports anywhere in it; `from a import b` gives a.b."""
    found = []
    for node in ast.walk(ast.parse(PATHS[name].read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def own_imports(name):
    """Modules of this package that a module imports."""
    for imported in imported_names(name):
        if imported.startswith("slam_jax.") and imported != "slam_jax.__version__":
            parts = imported.split(".")[1:]
            candidates = [".".join(parts[:length]) for length in (3, 2, 1)]
            found = next((c for c in candidates if c in PATHS), None)
            assert found, f"{name} imports {imported}, which is no module of the package"
            yield found


def test_every_folder_has_its_place():
    folders = {p.name for p in (ROOT / "slam_jax").iterdir() if (p / "__init__.py").exists()}
    assert folders == set(FOLDERS)


@pytest.mark.parametrize("name", [name for name in MODULES if "." in name])
def test_no_import_goes_up(name):
    place = FOLDERS.index(name.split(".")[0])
    above = {
        other
        for other in own_imports(name)
        if "." not in other or FOLDERS.index(other.split(".")[0]) > place
    }
    assert not above


def test_there_are_no_cycles():
    graph = {name: set(own_imports(name)) for name in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert sorted(order) == MODULES
    assert len(graph["recipes.run"]) > 5  # the imports were found at all


@pytest.mark.parametrize("library", OWNERS)
def test_foreign_libraries_stay_where_they_belong(library):
    users = {n for n in MODULES if any(i.split(".")[0] == library for i in imported_names(n))}
    strangers = {
        user
        for user in users
        if not any(user == owner or user.startswith(f"{owner}.") for owner in OWNERS[library])
    }
    assert not strangers
    assert bool(users) == bool(OWNERS[library])


def test_importing_does_no_work(tmp_path):
    """No output, no warning, no file, and JAX has not looked for devices: it still takes orders."""
    names = ["slam_jax." + name for name in MODULES]
    code = f"""
import importlib
for name in {names}:
    importlib.import_module(name)
import jax
jax.config.update("jax_num_cpu_devices", 3)  # an error once a backend has started
assert jax.device_count() == 3
"""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**inherited, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
