"""Sub-Path Linear Approximation in JAX: distil a diffusion teacher into a student that draws in
1 to 8 steps."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "distill", "evaluate", "load", "sample", "slam_loss"]

if TYPE_CHECKING:
    from slam_jax.api import distill, evaluate, load, sample
    from slam_jax.method.slam import slam_loss

_HOME: dict[str, str] = dict.fromkeys(("distill", "evaluate", "load", "sample"), "slam_jax.api")
_HOME["slam_loss"] = "slam_jax.method.slam"


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Imports a public function when it is asked for: `import slam_jax` alone costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'slam_jax' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
