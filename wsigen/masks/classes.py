"""The classes of nuclei of a model: index in the mask, name, and colour on the screen.

The table belongs to a model's config, not to the code, so that models of other organs may have other classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wsigen.errors import ModelError

MAX_CLASSES = 254


@dataclass(frozen=True)
class NucleusClass:
    """One class: its value in the class plane (1, 2, ...), its name, and its colour as "#rrggbb"."""

    index: int
    name: str
    colour: str

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour as three values in 0..255."""
        return (int(self.colour[1:3], 16), int(self.colour[3:5], 16), int(self.colour[5:7], 16))


@dataclass(frozen=True)
class ClassTable:
    """The classes in the order of their indices 1..n; 0 is background and has no entry.

    Raises:
        ModelError: indices are not 1..n in order, names repeat or are empty, or a colour is not "#rrggbb".
    """

    classes: tuple[NucleusClass, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MAX_CLASSES:
            raise ModelError(f"class table: {len(self.classes)} classes; a model needs 1 to {MAX_CLASSES}")
        indices = [entry.index for entry in self.classes]
        if indices != list(range(1, len(indices) + 1)):
            raise ModelError(f"class table: indices are {indices}; number the classes 1, 2, ... in order")
        names = self.names
        if len(set(names)) < len(names) or not all(names):
            raise ModelError(f"class table: names are {list(names)}; give each class a name of its own")
        for entry in self.classes:
            if not re.fullmatch(r"#[0-9a-fA-F]{6}", entry.colour):
                raise ModelError(f"class table: colour of {entry.name} is {entry.colour!r}; write it as '#rrggbb'")

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[NucleusClass]:
        return iter(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes 1..n."""
        return tuple(entry.name for entry in self.classes)

    @classmethod
    def from_config(cls, entries: Sequence[Mapping[str, Any]]) -> ClassTable:
        """Build the table from a list of {index, name, colour}; raises `ModelError` where a field is missing."""
        try:
            return cls(tuple(NucleusClass(int(e["index"]), str(e["name"]), str(e["colour"])) for e in entries))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"class table: {error!r} in {list(entries)}; give index, name and colour") from None

    def to_config(self) -> list[dict[str, Any]]:
        """The table as `from_config` takes it, ready for JSON."""
        return [asdict(entry) for entry in self.classes]
