"""The recipes of `configs/` go into the wheel, as `vae_attn/configs`; all else: pyproject.toml."""

from setuptools import find_namespace_packages, setup

RECIPES = "vae_attn.configs"

setup(
    packages=[*find_namespace_packages(include=["vae_attn*"]), RECIPES],
    package_dir={RECIPES: "configs"},
)
