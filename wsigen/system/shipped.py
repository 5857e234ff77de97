"""Files of defaults that ship with the package."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path


def shipped_config(name: str) -> Traversable:
    """A file of configs/, such as "render.toml", as it ships with the package."""
    try:
        return resources.files("wsigen.configs").joinpath(name)
    except ModuleNotFoundError:  # run from a checkout, as python -m wsigen in it does: configs/ stands beside wsigen/
        return Path(__file__).parents[2] / "configs" / name
