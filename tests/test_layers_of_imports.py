"""Imports go strictly downwards, foreign libraries stay where they belong, importing does no work.

A module may import from a lower layer, or from its own layer where that makes no cycle. A new
module has to be given a layer here.
"""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    {
        "artefact_draw",
        "checksums",
        "compile_cache",
        "errors",
        "files",
        "keys",
        "lookout",
        "processes",
        "schedule",
        "sharding",
        "runtime",
        "models.attention",
        "models.execution",
        "models.layers",
        "models.norms",
        "models.published_config",
        "models.remat",
    },
    {
        "solver",
        "models.unet",
        "models.vae",
        "models.clip",
        "models.functional",
        "models.convert",
        "models.folder",
        "models.folder_write",
        "models.hub",
        "models.tokenizer",
        "models.weight_files",
        "models.weights",
        "models.saved",
        "checkpoint",
        "checkpoint_files",
        "data.batches",
        "data.digits",
        "data.examples",
        "data.image_folder",
        "data.image_text",
        "data.images",
        "data.metadata",
        "data.photographs",
        "data.prepared",
        "data.prepared_write",
        "data.rejects",
        "data.shards",
        "data.tar_index",
        "data.tar_scan",
        "data.tar_shards",
        "data.tfds_examples",
        "data.views",
        "data.workers",
        "metrics",
        "out_folder",
        "pictures",
    },
    {
        "loss",
        "sampler",
        "models.pipeline",
        "models.digits_pipeline",
        "models.sd_pipeline",
        "models.load",
        "draw",
    },
    {
        "config",
        "freeze",
        "train",
        "metric_log",
        "need",
        "loop",
        "workdir",
        "distill",
        "evaluate",
        "sample",
        "sources",
        "encode",
        "prepare",
        "data.__main__",
        "student",
        "artefact",
        "export",
        "check",
        "check_unet",
        "torch_check",
        "jobs.job",
        "jobs.digits",
        "jobs.digits_teacher",
        "jobs.text_to_image",
    },
    {"main", "plan", "replay"},
)
LAYER_OF = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}
# Who may import what; a name with a dot at its end stands for a whole folder.
OWNERS = {
    "flax": ("models.",),
    "orbax": ("checkpoint", "checkpoint_files"),
    "grain": ("data.",),
    "array_record": ("data.prepared", "data.prepared_write"),
    "fsspec": ("data.shards",),
    "braceexpand": ("data.shards",),
    "tensorflow_datasets": ("data.tfds_examples",),
    "safetensors": ("models.weights",),
    "sklearn": ("data.", "metrics"),
    "PIL": ("data.", "pictures", "artefact_draw"),
    "skimage": ("data.",),
    "optax": ("train",),
    "torch": ("torch_check",),
    "diffusers": ("torch_check",),
    "transformers": ("models.tokenizer", "torch_check"),
    "huggingface_hub": ("models.hub",),
    "tensorflow": (),
}


def module_name(path):
    return ".".join(path.relative_to(ROOT / "slam_jax").with_suffix("").parts)


PATHS = {module_name(path): path for path in sorted((ROOT / "slam_jax").rglob("*.py"))}
MODULES = sorted(name for name in PATHS if not name.endswith("__init__"))


def imported_names(name):
    """Absolute dotted names that a module imports anywhere in it; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(PATHS[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name):
    """Modules of this package that a module imports, by their names in LAYERS."""
    for imported in imported_names(name):
        if imported.split(".")[0] == "slam_jax" and imported != "slam_jax.__version__":
            parts = imported.split(".")[1:]
            candidates = [".".join(parts[:length]) for length in (2, 1)]
            found = next((c for c in candidates if c in PATHS), None)
            assert found, f"{name} imports {imported}, which is no module of the package"
            yield found


def test_every_module_has_a_layer():
    assert sorted(LAYER_OF) == MODULES
    assert sum(map(len, LAYERS)) == len(LAYER_OF)


@pytest.mark.parametrize("name", MODULES)
def test_no_import_goes_up(name):
    above = {other for other in own_imports(name) if LAYER_OF[other] > LAYER_OF[name]}
    assert not above


def test_there_are_no_cycles():
    graph = {name: set(own_imports(name)) for name in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert sorted(order) == MODULES
    assert len(graph["main"]) > 5  # the imports were found at all


def test_only_the_programs_see_the_config():
    users = {name for name in MODULES if "config" in own_imports(name)}
    assert users
    assert users <= LAYERS[3] | LAYERS[4]


@pytest.mark.parametrize("library", OWNERS)
def test_foreign_libraries_stay_where_they_belong(library):
    users = {n for n in MODULES if any(i.split(".")[0] == library for i in imported_names(n))}
    strangers = {
        user
        for user in users
        if not any(
            user.startswith(owner) if owner.endswith(".") else user == owner
            for owner in OWNERS[library]
        )
    }
    assert not strangers
    assert bool(users) == bool(OWNERS[library])


def test_packages_are_empty():
    for name in PATHS.keys() - set(MODULES):
        assert not list(imported_names(name)), name


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
