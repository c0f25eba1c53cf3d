"""Published models: folders in the layout of diffusers, local or fetched from the Hugging Face hub.

    model_index.json                  the pipeline's class, and that of each component
    unet/config.json                  and so in vae, text_encoder and, for SDXL, text_encoder_2
    unet/diffusion_pytorch_model.safetensors           and so in vae
    text_encoder/model.safetensors                     and so in text_encoder_2
    scheduler/scheduler_config.json
    tokenizer/tokenizer_config.json   with vocab.json and merges.txt, or with tokenizer.json

Stable Diffusion 3 has transformer/ in place of unet/, and text_encoder_3 and tokenizer_3, of T5.

Weights may come as a variant ("fp16": diffusion_pytorch_model.fp16.safetensors) and in shards
(diffusion_pytorch_model.safetensors.index.json lists them).
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import read_json
from slam_jax.formats import convert, hub, safetensors, weight_files
from slam_jax.formats.hub import first_line
from slam_jax.formats.model_index import (
    COMPONENTS,
    HINT,
    OPTIONAL,
    STEMS,
    TOKENIZERS,
    WITHOUT_T5,
    class_of,
    hint_of,
    read_index,
)
from slam_jax.formats.tokenizer import Tokenizer, load_tokenizer
from slam_jax.models import functional
from slam_jax.models.functional import Params

# What comes of this project in the place of an owner on the hub.
OURS = {
    "assets": "a clone of slam_jax has it; run the command there",
    "runs": "a run that is finished leaves it",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
NAMED = 3  # keys that a message names before it says "..."


@dataclass(frozen=True)
class Folder:
    """Where a model is, and what was asked for.

    Attributes:
      path: the local folder, or the hub's snapshot in the cache.
      name: as the user wrote it.
      revision: the commit of a hub's snapshot; "" for a local folder.
      variant: of the weights, such as "fp16"; "" is none.
    """

    path: Path
    name: str
    revision: str = ""
    variant: str = ""


def resolve(path: str, revision: str = "", variant: str = "", weights: bool = True) -> Folder:
    """Finds a model; fetches it if it is a hub id and no folder here has that name.

    Args:
        path: a folder, or "owner/name" of a model on the hub.
        revision: a hub model's branch, tag or commit; "" is its main branch.
        variant: of the weights, such as "fp16"; "" is none.
        weights: whether they are to be fetched from the hub too.

    Raises:
        InputError: neither a folder nor an id, or the hub does not give it.
    """
    if not re.fullmatch(r"\w*", variant):
        raise InputError(f'variant {variant!r}: expected one word such as "fp16", or ""')
    local = Path(path).expanduser()
    if path and local.is_dir():
        if revision:
            raise InputError(
                f"{path}: a local folder has no revision {revision!r}; leave the revision empty"
            )
        return Folder(local, path, "", variant)
    if path and local.is_file():
        raise InputError(
            f"{path}: a file, expected a diffusers folder; diffusers turns a single file into one: "
            "StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)"
        )
    if not HUB_ID.fullmatch(path):
        raise InputError(f"{path!r}: no such folder, and not a hub id of the form owner/name")
    if local.parts[0] in OURS:
        raise InputError(f"{path}: no such folder; {OURS[local.parts[0]]}")
    snapshot = hub.fetch(path, revision, _patterns(variant, weights))
    return Folder(snapshot, path, snapshot.name, variant)


def _patterns(variant: str, weights: bool) -> list[str]:
    """What to fetch of a repository: configurations, tokenizers, safetensors of the variant."""
    patterns = ["model_index.json", "slam.json", "scheduler/scheduler_config.json"]
    for tokenizer in TOKENIZERS:
        patterns += [f"{tokenizer}/*.json", f"{tokenizer}/*.txt"]
    dot, shard = f".{variant}" if variant else "", "-?????-of-?????"
    endings = [f"{dot}.safetensors", f"{dot}{shard}.safetensors", f"{shard}{dot}.safetensors"]
    endings += [f".safetensors.index{dot}.json", f".safetensors{dot}.index.json"]
    for component, stem in STEMS.items():
        patterns.append(f"{component}/config.json")
        if weights:
            patterns += [f"{component}/{stem}{ending}" for ending in dict.fromkeys(endings)]
    return patterns


def read_model_index(folder: Folder) -> dict[str, Any]:
    """Contents of model_index.json, whose classes are known ones.

    Raises:
        InputError: no such file, or a pipeline or component that is not supported, by its name.
    """
    return read_index(folder.path / "model_index.json")


def read_config(folder: Folder, component: str) -> dict[str, Any]:
    """Contents of a component's config.json, or of scheduler_config.json.

    Raises:
        InputError: no such file, or it is not JSON.
    """
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    return read_json(folder.path / component / name, hint_of(component))


def read_params(
    folder: Folder,
    component: str,
    module_class: type[nnx.Module],
    config: Any,
    dtype: Any = jnp.float32,
    place: Callable[[np.ndarray], Any] = lambda array: array,
) -> Params:
    """A component's parameters, numpy arrays unless `place` makes others of them.

    Args:
        component: one of STEMS.
        module_class, config: the module that the parameters are for.
        dtype: of the result.
        place: what to do with each converted array before the next one is read, such as putting
            it on a device.

    Raises:
        InputError: no weights of the folder's variant, or they are not those of the module.
    """
    path = _find_weights(folder, component)
    arrays = safetensors.open_arrays(path)
    not_those = f"the weights are not those of {component}/config.json"
    abstract = functional.abstract_params(module_class, config)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), abstract)
    try:
        params, missing, extra = convert.from_torch(arrays, abstract, place)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: {error}; {not_those}") from error
    kinds = (("missing", missing), ("not expected", extra))
    if wrong := [f"{len(keys)} keys {kind} ({_some(keys)})" for kind, keys in kinds if keys]:
        raise InputError(f"{path}: {', '.join(wrong)}; {not_those}")
    return params


def _some(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    return ", ".join([*names[:NAMED], *(["..."] if len(names) > NAMED else [])])


def _find_weights(folder: Folder, component: str) -> Path:
    try:
        return weight_files.find(folder.path / component, STEMS[component], folder.variant)
    except InputError as error:
        # In the cache is what was fetched, and not all that the hub has.
        fetched = f" ({folder.name} was fetched for variant {folder.variant!r})"
        what = f"; {WITHOUT_T5}" if component in OPTIONAL else ""
        raise InputError(f"{error}{fetched if folder.revision else ''}{what}") from error


def fingerprints(folder: Folder) -> dict[str, str]:
    """A cheap identity of each part, "unet", "scheduler", "tokenizer" ...: equal for copies.

    Of the weights a sample is read, not all.

    Raises:
        InputError: a part is missing or cannot be read.
    """
    # What of the index changes the pictures; its other keys are notes.
    index = read_model_index(folder)
    zeros = index.get("force_zeros_for_empty_prompt", False)
    parts = {"empty prompt": "zeros" if zeros else "encoded"}
    for name in [*COMPONENTS, "scheduler"]:
        is_left_out = name in OPTIONAL and class_of(index.get(name)) is None
        if is_left_out or not (where := folder.path / name).is_dir():
            continue
        digest = hashlib.sha256()
        endings = (".json", ".txt") if name.startswith("tokenizer") else ("config.json",)
        for file in sorted(path for path in where.iterdir() if path.name.endswith(endings)):
            digest.update(f"{file.name}\n".encode() + file.read_bytes())
        if name in STEMS:
            arrays = safetensors.open_arrays(_find_weights(folder, name))
            digest.update(arrays.fingerprint().encode())
        parts[name] = digest.hexdigest()
    return parts


def read_tokenizer(folder: Folder, component: str) -> Tokenizer:
    """The tokenizer in the subfolder "tokenizer" or "tokenizer_2".

    Raises:
        InputError: a file is missing or broken.
    """
    where = folder.path / component
    length = read_json(where / "tokenizer_config.json", HINT).get("model_max_length")
    if not isinstance(length, int) or not 2 < length < 100_000:
        raise InputError(
            f"{where / 'tokenizer_config.json'}: model_max_length is {length}, expected the "
            "number of tokens that the text encoder takes, such as 77"
        )
    if not (where / "tokenizer.json").is_file():
        # transformers would make do without them, with a vocabulary of three tokens.
        for name in ("vocab.json", "merges.txt"):
            if not (where / name).is_file():
                raise InputError(f"{where / name}: missing, and there is no tokenizer.json either")
    tokenizer = _loaded(where, length, "CLIP")
    if (where / "vocab.json").is_file():  # to which transformers would add what it lacks
        there = read_json(where / "vocab.json", HINT)
        for token in (tokenizer.backend.bos_token, tokenizer.backend.eos_token):
            if token not in there:
                raise InputError(f"{where / 'vocab.json'}: lacks {token}; {HINT}")
    return tokenizer


def read_t5_tokenizer(folder: Folder, component: str, length: int) -> Tokenizer:
    """The tokenizer in the subfolder "tokenizer_3", for texts of so many tokens.

    Raises:
        InputError: a file is missing or broken.
    """
    where = folder.path / component
    for name in ("tokenizer_config.json", "tokenizer.json"):
        read_json(where / name, WITHOUT_T5)
    return _loaded(where, length, "T5")


def _loaded(where: Path, length: int, kind: str) -> Tokenizer:
    try:
        tokenizer = load_tokenizer(where, length, kind)
        tokenizer([""])  # which some of what is wrong shows only in
        return tokenizer
    # The tokenizers library raises bare Exceptions.
    except Exception as error:
        raise InputError(f"{where}: not a {kind} tokenizer ({first_line(error)})") from error
