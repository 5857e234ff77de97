"""What a writer of outlines gets, and what it does: the contract of the formats of this room."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from wsigen.masks.classes import ClassTable, NucleusClass
from wsigen.masks.source import MaskSource

_NAMESPACE = uuid.UUID("6f0b6a0e-5b1e-5d0a-9f55-3a6d0c1f4e77")


def identifier_of(name: str) -> str:
    """The UUID of an object that is called so in the mask: the same mask gives the same file."""
    return str(uuid.uuid5(_NAMESPACE, name))


@dataclass(frozen=True)
class Nucleus:
    """One nucleus: its id in the mask, its class, and its polygons as rings (n, 2) int64 along pixel edges, in px."""

    identifier: int
    kind: NucleusClass
    polygons: list[list[np.ndarray]]
    area: int


class OutlineWriter(ABC):
    """Writes nuclei and tissue regions to a file; a context manager that completes the file."""

    def __init__(self, path: Path, mask: MaskSource, classes: ClassTable) -> None:
        self.path, self.mask, self.classes = path, mask, classes

    @abstractmethod
    def add(self, nuclei: list[Nucleus]) -> None:
        """Write some nuclei."""

    @abstractmethod
    def add_regions(self, polygons: list[list[np.ndarray]]) -> None:
        """Write tissue regions, where the format has a place for them."""

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
