"""Which class of ours a class of theirs is: built-in maps by name, TOML files, and single pairs.

A map takes the class names or numbers of a source (compared without regard to case) to a class of the model, to
"tissue" (the object is a region of the tissue plane) or to "skip" (it is left out, and counted). What no map knows is
unknown: the import lists it and stops, unless told to skip it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsigen.errors import MaskError
from wsigen.system.text_files import read_text

SKIP, TISSUE_REGION = -1, -2
UNCLASSIFIED = "unclassified"
MAX_MAP_BYTES = 1 << 20

# Spellings of the six classes that occur in QuPath projects and in published tables.
_SYNONYMS = {
    "neutrophil": ("neutrophils", "neutrophil granulocyte"),
    "epithelial": ("epithelium", "epithelial cell", "epithelial cells"),
    "lymphocyte": ("lymphocytes",),
    "plasma": ("plasma cell", "plasma cells", "plasmacyte"),
    "eosinophil": ("eosinophils", "eosinophil granulocyte"),
    "connective": ("connective tissue", "connective tissue cell", "connective-tissue-cell"),
}
# HoVer-Net calls type 0 "nolabe": a nucleus that it found and did not classify; CellViT calls it "Background".
_NO_LABEL = {"0": "skip", "nolabe": "skip", "background": "skip"}
_LIZARD = {
    **_NO_LABEL,
    "1": "neutrophil",
    "2": "epithelial",
    "3": "lymphocyte",
    "4": "plasma",
    "5": "eosinophil",
    "6": "connective",
}
# Where a source is coarser than the model, the most frequent class of ours stands for the group: inflammatory cells of
# colon are mostly lymphocytes, spindle-shaped cells are connective.
BUILT_IN: dict[str, dict[str, str]] = {
    "lizard": _LIZARD,
    "conic": _LIZARD,
    # The four groups that HoVer-Net trains on; `consep-full` has the seven types of the published files.
    "consep": {
        **_NO_LABEL,
        **{"1": "connective", "2": "lymphocyte", "3": "epithelial", "4": "connective"},
        **{"other": "connective", "misc": "connective", "inflammatory": "lymphocyte"},
        **{"epithelial": "epithelial", "spindle-shaped": "connective", "spindle": "connective"},
    },
    "consep-full": {
        **_NO_LABEL,
        **{"1": "connective", "2": "lymphocyte", "3": "epithelial", "4": "epithelial"},
        **{"5": "connective", "6": "connective", "7": "connective"},
    },
    # Also the classes of HoVer-Net and CellViT models trained on PanNuke; their numbers begin with 1.
    "pannuke": {
        **_NO_LABEL,
        **{"1": "epithelial", "2": "lymphocyte", "3": "connective", "4": "skip", "5": "epithelial"},
        **{"neoplastic": "epithelial", "neopla": "epithelial", "neoplastic cells": "epithelial"},
        **{"inflammatory": "lymphocyte", "inflam": "lymphocyte", "connective": "connective", "connec": "connective"},
        **{"dead": "skip", "dead cells": "skip", "necros": "skip", "epithelial": "epithelial"},
        **{"no-neo": "epithelial", "non-neoplastic epithelial": "epithelial"},
    },
    "monusac": {
        **_NO_LABEL,
        **{"1": "epithelial", "2": "lymphocyte", "3": "skip", "4": "neutrophil"},
        **{"epithelial": "epithelial", "lymphocyte": "lymphocyte", "macrophage": "skip", "neutrophil": "neutrophil"},
    },
}
ALIASES = {"hovernet": "pannuke", "cellvit": "pannuke"}


@dataclass(frozen=True)
class ClassMap:
    """What becomes of a source's classes: names in lower case -> class 1..n, `SKIP` or `TISSUE_REGION`."""

    entries: Mapping[str, int] = field(default_factory=dict)

    def resolve(self, name: str) -> int | None:
        """Class 1..n, `SKIP`, `TISSUE_REGION`, or None where nothing says.

        A derived class of QuPath ("Immune cells: CD3: CD8") falls back on the nearest class that it is derived from
        ("Immune cells: CD3", then "Immune cells").
        """
        key = _key(name)
        while key not in self.entries:
            key, separator, _ = key.rpartition(": ")
            if not separator:
                return None
        return self.entries[key]


def _key(name: str) -> str:
    """A class name as it is compared: without regard to case, and to spaces around the colons of derived classes."""
    return ": ".join(part.strip() for part in name.lower().split(":"))


def class_name(value: Any) -> str:
    """Name of a class in any of QuPath's forms: a map with its name or names, plain text, or a map as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, dict):
        names = value.get("names")
        value = ": ".join(str(name) for name in names) if isinstance(names, list) else value.get("name")
    return value.strip() or UNCLASSIFIED if isinstance(value, str) else UNCLASSIFIED


def class_map(classes: Sequence[str], given: Sequence[str] = (), built_in: Sequence[str] = ()) -> ClassMap:
    """Build the map of an import.

    Args:
        classes: names of the model's classes 1..n.
        given: what the user names, later ones first: names of built-in maps, TOML files (`"their class" = "ours"`, at
            the top or under [classes]), pairs `THEIRS=OURS`. OURS may be a name, a number, "skip" or "tissue".
        built_in: built-in maps that the format itself implies; everything given comes before them.

    Raises `MaskError` for a map that is not known or cannot be read, or a class that the model does not have.
    """
    # A number is a class of ours only where a map or the format says so.
    entries = {name.lower(): index for index, name in enumerate(classes, 1)}
    for name, spellings in _SYNONYMS.items():
        if name in entries:
            entries |= dict.fromkeys(spellings, entries[name])
    entries |= {"tissue": TISSUE_REGION, "ignore*": SKIP}  # QuPath names ignored classes with a star
    for source in (*built_in, *given):
        for theirs, ours in _load(source).items():
            entries[_key(theirs)] = _ours(source, ours, classes)
    return ClassMap(entries)


def _load(source: str) -> Mapping[str, str]:
    name = ALIASES.get(source.lower(), source.lower())
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = Path(source)
    if path.suffix.lower() == ".toml":
        return _load_toml(path)
    theirs, separator, ours = source.rpartition("=")
    if separator and theirs.strip() and ours.strip():
        return {theirs: ours}
    known = ", ".join([*BUILT_IN, *ALIASES])
    raise MaskError(f"class map {source!r}: not known; give one of {known}, a .toml file, or THEIRS=OURS")


def _load_toml(path: Path) -> Mapping[str, str]:
    try:
        if path.stat().st_size > MAX_MAP_BYTES:
            raise MaskError(f"{path}: {path.stat().st_size} bytes are too many for a class map; name the right file")
        data = tomllib.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise MaskError(
            f'{path}: cannot be read as TOML ({error}); write lines such as "Tumor" = "epithelial"'
        ) from None
    table = data.get("classes", data)
    if not isinstance(table, dict) or not all(isinstance(ours, str | int) for ours in table.values()):
        raise MaskError(f'{path}: is no class map; write lines such as "Tumor" = "epithelial" under [classes]')
    return {theirs: str(ours) for theirs, ours in table.items()}


def _ours(source: str, ours: str, classes: Sequence[str]) -> int:
    wanted = ours.strip().lower()
    if wanted in ("skip", "tissue"):
        return SKIP if wanted == "skip" else TISSUE_REGION
    names = [name.lower() for name in classes]
    if wanted in names:
        return names.index(wanted) + 1
    if wanted.isdecimal() and 1 <= int(wanted) <= len(classes):
        return int(wanted)
    raise MaskError(
        f"class map {source!r}: {ours!r} is no class; the model has {', '.join(classes)}, or skip, or tissue"
    )
