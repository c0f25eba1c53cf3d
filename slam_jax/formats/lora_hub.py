"""LoRAs on the hub: which file of a repository is meant, and what belongs to it."""

import glob
from pathlib import Path

from slam_jax.base.errors import InputError
from slam_jax.formats import hub
from slam_jax.formats.diffusers_folder import HUB_ID
from slam_jax.formats.lora_file import FILE
from slam_jax.formats.lora_header import CONFIG_FILE, PEFT_FILE

SUFFIX = ".safetensors"
# What may stand beside a file: peft's alpha, and how a student was made and draws.
BESIDE = (CONFIG_FILE, "slam.json", "scheduler/scheduler_config.json")
NAMED = 8  # files that a message names


def is_on_hub(name: str) -> bool:
    """Whether a name that is no file here can be owner/name, or owner/name/FILE.safetensors."""
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not HUB_ID.fullmatch(f"{owner}/{repository}"):
        return False
    if not file:
        return not name.endswith(SUFFIX)
    return name.endswith(SUFFIX) and not Path(owner).exists()  # else a file here is meant


def fetch_lora(name: str, revision: str = "") -> Path:
    """The safetensors file of a LoRA on the hub; what belongs to it is fetched too.

    Args:
      name: "owner/name", or "owner/name/FILE.safetensors".
      revision: branch, tag or commit; "" is the main branch.

    Raises:
      InputError: it has no such file, or several and none is chosen; or the hub does not give it.
    """
    owner, repository, *parts = name.split("/")
    name, chosen = f"{owner}/{repository}", "/".join(parts)
    names = hub.file_names(name, revision)
    files = [file for file in names if file.endswith(SUFFIX)]
    there = ", ".join(files[:NAMED]) or "none"
    if len(files) > NAMED:
        there += f" and {len(files) - NAMED} more"
    if chosen and chosen not in files:
        raise InputError(f"{name}: has no {chosen}; its {SUFFIX} files: {there}")
    if not chosen:
        known = [file for file in (FILE, PEFT_FILE) if file in files] or files
        if len(known) != 1:
            raise InputError(
                f"{name}: expected one {SUFFIX} file, it has {there}; {name}/FILE{SUFFIX} chooses"
            )
        chosen = known[0]
    folder = chosen.rpartition("/")[0]
    beside = [f"{folder}/{file}" if folder else file for file in BESIDE]
    wanted = [chosen, *(file for file in beside if file in names)]
    snapshot = hub.fetch(name, revision, [glob.escape(file) for file in wanted])
    return snapshot / chosen
