"""What a LoRA file says of alpha other than by arrays: in its header, or in a file beside it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from slam_jax.base.errors import InputError
from slam_jax.base.json_file import parse_json, read_json

METADATA = "lora_adapter_metadata"  # diffusers' key
PEFT_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"  # peft's


@dataclass(frozen=True)
class Header:
    """What is said of all layers, in peft's form.

    Attributes:
      path: of the LoRA file.
      facts: what is said; empty where there is nothing.
      place: where, in words.
    """

    path: Path
    facts: dict[str, Any]
    place: str

    def alpha(self, part: str, layer: str, rank: int) -> tuple[float, bool]:
        """Of a layer, r where nothing is said; and whether something is.

        Raises:
          InputError: it is no number.
        """
        prefixes = ("unet.", "transformer.") if part == "denoiser" else (f"{part}.",)
        facts = dict(self.facts)
        for prefix in prefixes:
            facts = {k.removeprefix(prefix): v for k, v in facts.items()}
        patterns = facts.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise InputError(f"{self.path}: alpha_pattern is no object; get the file again")
        name = next((p for p in patterns if _fits(p, layer)), None)  # the first, as in peft
        alpha = facts.get("lora_alpha", rank) if name is None else patterns[name]
        alpha = finite_number(self.path, "lora_alpha", alpha)
        said = name is not None or "lora_alpha" in facts
        return alpha * rank**0.5 if facts.get("use_rslora") else alpha, said


def read_header(path: Path) -> Header:
    """What the header says, or for a file of peft adapter_config.json beside it.

    Raises:
      InputError: it is damaged.
    """
    with safe_open(path, framework="np") as file:
        text = (file.metadata() or {}).get(METADATA, "")
    beside = path.with_name(CONFIG_FILE)
    if not text and path.name == PEFT_FILE and beside.exists():
        return Header(path, read_json(beside, "get it again"), CONFIG_FILE)
    try:
        facts = parse_json(text or "{}")
    except ValueError as error:
        raise InputError(f"{path}: {METADATA} in its header is no JSON; get it again") from error
    return Header(path, facts if isinstance(facts, dict) else {}, "the header")


def finite_number(path: Path, name: str, value: Any) -> float:
    """A number.

    Raises:
      InputError: it is none, or not finite.
    """
    try:
        number = float(np.asarray(value).item())
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise InputError(f"{path}: {name} is no finite number; get the file again")
    return number


def _fits(pattern: str, layer: str) -> bool:
    """Whether a pattern of peft, a regular expression, is the end of a layer's path."""
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", layer) is not None
    except re.error:
        return False
