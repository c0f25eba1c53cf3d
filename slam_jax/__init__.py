"""SLAM in JAX: distils a diffusion teacher into a student that draws in a few steps."""

__version__ = "0.1.0"
