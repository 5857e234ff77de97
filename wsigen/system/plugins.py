"""Classes by name: those of this package, from a table, and those that other packages bring as entry points."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from wsigen.errors import ModelError


def class_by_name(what: str, name: str, own: Mapping[str, str], group: str) -> Any:
    """Import the class of a name: "module:Class" in ``own``, else an entry point of a group.

    Raises ModelError, in which ``what`` says what the name is of, for a name that is neither.
    """
    if name in own:
        module, _, attribute = own[name].partition(":")
        return getattr(import_module(module), attribute)
    for entry in entry_points(group=group, name=name):
        return entry.load()
    known = [*own, *sorted(entry.name for entry in entry_points(group=group))]
    raise ModelError(
        f"{what} {name!r}: unknown; there are {', '.join(known)}. Another one comes with the package that brought it, "
        f"as an entry point of {group!r}"
    )
