"""SLAM in JAX: sub-path linear approximation, which distils a diffusion teacher into a few-step
student."""
