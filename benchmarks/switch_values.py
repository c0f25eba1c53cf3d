"""The switches that switches.py measures: each value that is not the default."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
from ours import Setup

from slam_jax.models import remat
from slam_jax.models.execution import ATTENTION, Execution


@dataclass(frozen=True)
class Switch:
    """One value that is not the default.

    Attributes:
      name: of the option.
      value: the other one.
      default: what it is compared with.
      setup: how a model is computed with it, from how it is without.
      batch: the training batch with it, from that without.
      on: "train_step", "sampler" or both.
      same: whether losses are the same.
      note: for the table.
      platform: that it needs; empty: any.
    """

    name: str
    value: str
    default: str
    setup: Callable[[Setup], Setup] = lambda setup: setup
    batch: str = "moments"
    on: tuple[str, ...] = ("train_step",)
    same: bool = True
    note: str = ""
    platform: str = ""


def switches(default: Setup) -> list[Switch]:
    """All of them; what is the default depends on the device."""
    usual, both = Execution().attention, ("train_step", "sampler")
    found = [
        Switch(
            "execution.attention",
            value,
            usual,
            partial(replace, execution=Execution(value)),
            on=both,
            platform={"cudnn": "gpu", "splash": "tpu"}.get(value, ""),
        )
        for value in ATTENTION
        if value != usual
    ]
    found += [
        Switch("latents", "encoded in each step", "prepared", batch="images"),
        Switch("text embeddings", "prepared", "computed in each step", batch="embeddings"),
    ]
    for count in (2, 4):
        found.append(
            Switch(
                "method.gammas_per_subpath",
                str(count),
                "1",
                partial(_with_gammas, count=count),
                same=False,
                note=f"{count} losses of each sub-path",
            )
        )
    found += [
        Switch("training.remat", name, "none", partial(replace, remat=name))
        for name in remat.REMAT
        if name != "none"
    ]
    other = "bfloat16" if default.dtype == "float32" else "float32"
    every = partial(replace, dtype=other, vae_dtype=other)
    note = "emulated" if jax.default_backend() == "cpu" else ""
    found.append(Switch("precision", other, default.dtype, every, on=both, note=note))
    for network in ("teacher", "target", "student"):
        one = partial(replace, **{f"{network}_dtype": other})
        found.append(Switch(f"precision of the {network}", other, default.dtype, one, note=note))
    return found


def _with_gammas(setup: Setup, count: int) -> Setup:
    return replace(setup, method=replace(setup.method, gammas_per_subpath=count))
