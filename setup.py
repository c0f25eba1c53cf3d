"""The packages, which pyproject.toml cannot say: the recipes in configs/ become one of them."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["slam_jax*"]), "slam_jax.configs"],
    package_dir={"slam_jax.configs": "configs"},
)
