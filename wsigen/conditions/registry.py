"""Conditions by name: those of this package, and those that other packages bring as entry points.

A package that is installed beside wsigen adds a condition with an entry point of the group "wsigen.conditions", whose
name is the condition's and whose value is its class. Nothing is imported before a model names it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from wsigen.conditions.contract import Condition, TensorSpec
from wsigen.errors import ModelError
from wsigen.system.plugins import class_by_name

if TYPE_CHECKING:
    from wsigen.models.config import ModelConfig

GROUP = "wsigen.conditions"
CONDITIONS = {
    "mask": "wsigen.conditions.mask:Mask",
    "tissue": "wsigen.conditions.tissue:Tissue",
    "context": "wsigen.conditions.context:Context",
    "stain": "wsigen.conditions.stain:Stain",
    "density": "wsigen.conditions.density:Density",
}


@cache
def _class_of(name: str) -> type[Condition]:
    return class_by_name("condition", name, CONDITIONS, GROUP)


def conditions_of(config: ModelConfig) -> tuple[Condition, ...]:
    """The conditions of a model, in the order of its configuration. Raises ModelError for a name that is unknown."""
    return tuple(_class_of(_checked(name))(config) for name in config.conditions)


def _checked(name: str) -> str:
    """The name of a condition or of a tensor; ModelError unless a setting and a weight can be called so."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ModelError(f"condition {name!r}: a name has letters, digits, - and _ alone; choose another one")
    return name


def specs_of(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """The tensors that a model's network is given, in order; the plane of guidance follows the other planes."""
    from wsigen.conditions.guidance import PRESENT

    specs = [spec for condition in conditions_of(config) for spec in condition.specs if _checked(spec.name)]
    return (*specs, PRESENT)


def source_of(config: ModelConfig) -> str:
    """The kind of source that a model paints from: "mask" or "density", say. Raises ModelError unless it is one."""
    kinds = sorted({condition.source for condition in conditions_of(config) if condition.source})
    if len(kinds) != 1:
        raise ModelError(
            f"model {config.name!r}: its conditions are read from {kinds or 'nothing'}, not from one source"
        )
    return kinds[0]
