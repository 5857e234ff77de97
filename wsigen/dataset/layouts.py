"""Folders of patches as the loaders of HoVer-Net, CoNIC, PanNuke, StarDist and COCO expect them.

A layout is told how many patches each side will get, then given them one by one; arrays are written through memory
maps, so memory does not grow with the set. Arrays hold numbers and text only: no loader needs `allow_pickle`.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from wsigen.errors import DataError
from wsigen.masks.classes import ClassTable
from wsigen.masks.exporters.coco import annotation, categories
from wsigen.masks.outline import trace_bitmap

# PanNuke's channels, and where our classes go: it does not part inflammatory cells.
PANNUKE_CHANNELS = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")
PANNUKE_OF = {
    **{"neutrophil": 1, "lymphocyte": 1, "plasma": 1, "eosinophil": 1},
    **{"connective": 2, "epithelial": 4},
}
CONIC_CLASSES = ("neutrophil", "epithelial", "lymphocyte", "plasma", "eosinophil", "connective")


@dataclass(frozen=True)
class Patch:
    """One patch: name, side of the split, RGB (S, S, 3) uint8, classes (S, S) uint8, ids (S, S) int32 from 1 on."""

    name: str
    split: str
    rgb: np.ndarray
    classes: np.ndarray
    ids: np.ndarray

    def types(self) -> dict[int, int]:
        """Class of each id."""
        ids, first = np.unique(self.ids, return_index=True)
        classes = self.classes.reshape(-1)[first]
        return {int(i): int(c) for i, c in zip(ids, classes) if i}


class Layout(ABC):
    """Writes patches into `folder`. counts: patches on each side. side: of a patch, px."""

    default_patch = 256

    def __init__(self, folder: Path, classes: ClassTable, counts: Mapping[str, int], side: int) -> None:
        self.folder, self.classes, self.counts, self.side = folder, classes, counts, side

    @abstractmethod
    def add(self, patch: Patch) -> str:
        """Write a patch; returns where it is, relative to the folder."""

    @abstractmethod
    def finish(self) -> None:
        """Write what comes last."""


class HoverNetLayout(Layout):
    """SPLIT/NAME.npy, (S, S, 5) int32: RGB, id, class, as `extract_patches.py` writes for training with types.

    540 px is what HoVer-Net's dataloader crops its 270 or 256 px from. `type_info.json` names and colours the classes.
    """

    default_patch = 540

    def add(self, patch: Patch) -> str:
        """One array a patch."""
        target = self.folder / patch.split / f"{patch.name}.npy"
        target.parent.mkdir(exist_ok=True)
        planes = [patch.rgb.astype(np.int32), patch.ids[..., None], patch.classes[..., None].astype(np.int32)]
        np.save(target, np.concatenate(planes, 2), allow_pickle=False)
        return str(target.relative_to(self.folder))

    def finish(self) -> None:
        """Names and colours of the classes."""
        info = {"0": ["background", [0, 0, 0]]} | {str(e.index): [e.name, list(e.rgb)] for e in self.classes}
        (self.folder / "type_info.json").write_text(json.dumps(info, indent=1), encoding="utf-8")


class _Arrays(Layout):
    """Layouts of one big array for each side."""

    def __init__(self, folder: Path, classes: ClassTable, counts: Mapping[str, int], side: int) -> None:
        super().__init__(folder, classes, counts, side)
        self._at = dict.fromkeys(counts, 0)
        self._open: dict[str, list[np.memmap]] = {}

    def _array(self, path: Path, count: int, *shape: int, dtype: type) -> np.memmap:
        path.parent.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(path, "w+", dtype, (count, self.side, self.side, *shape))

    def _next(self, split: str) -> int:
        self._at[split] += 1
        return self._at[split] - 1

    def finish(self) -> None:
        """Write the arrays through."""
        for arrays in self._open.values():
            for array in arrays:
                array.flush()


class ConicLayout(_Arrays):
    """SPLIT/images.npy (N, S, S, 3) uint8, labels.npy (N, S, S, 2) uint16 (id, class), counts.csv, patch_info.csv."""

    def __init__(self, folder: Path, classes: ClassTable, counts: Mapping[str, int], side: int) -> None:
        super().__init__(folder, classes, counts, side)
        if tuple(classes.names) != CONIC_CLASSES:
            raise DataError(f"layout conic: has the classes {', '.join(CONIC_CLASSES)}, the model {classes.names}")
        self._rows: dict[str, list[tuple[str, list[int]]]] = {split: [] for split in counts}

    def add(self, patch: Patch) -> str:
        """A row of both arrays and both tables."""
        split = patch.split
        if split not in self._open:
            count = self.counts[split]
            self._open[split] = [
                self._array(self.folder / split / "images.npy", count, 3, dtype=np.uint8),
                self._array(self.folder / split / "labels.npy", count, 2, dtype=np.uint16),
            ]
        at = self._next(split)
        images, labels = self._open[split]
        images[at] = patch.rgb
        labels[at] = np.stack([patch.ids, patch.classes], 2)
        # The challenge counts the nuclei of the patch's middle 224 px; here all are counted, as its name says.
        kinds = list(patch.types().values())
        self._rows[split].append((patch.name, [kinds.count(entry.index) for entry in self.classes]))
        return f"{split}/images.npy[{at}]"

    def finish(self) -> None:
        """Write the tables."""
        super().finish()
        for split, rows in self._rows.items():
            if rows:
                _write_csv(self.folder / split / "counts.csv", list(self.classes.names), [r[1] for r in rows])
                _write_csv(self.folder / split / "patch_info.csv", ["patch_info"], [[r[0]] for r in rows])


class PanNukeLayout(_Arrays):
    """A fold for each side: images/FOLD/images.npy, types.npy, masks/FOLD/masks.npy (N, S, S, 6) with ids by channel.

    Channels: neoplastic, inflammatory, connective, dead, epithelial, background (1 where nothing else is).
    """

    def __init__(self, folder: Path, classes: ClassTable, counts: Mapping[str, int], side: int) -> None:
        super().__init__(folder, classes, counts, side)
        unknown = [name for name in classes.names if name not in PANNUKE_OF]
        if unknown:
            raise DataError(f"layout pannuke: has no channel for {', '.join(unknown)}")
        self._channel = [0, *(PANNUKE_OF[name] for name in classes.names)]
        self._fold = {split: f"fold{number}" for number, split in enumerate(counts, 1)}

    def add(self, patch: Patch) -> str:
        """A row of images, masks and types."""
        split, fold = patch.split, self._fold[patch.split]
        if split not in self._open:
            count, root = self.counts[split], self.folder / fold
            self._open[split] = [
                self._array(root / "images" / fold / "images.npy", count, 3, dtype=np.uint8),
                self._array(root / "masks" / fold / "masks.npy", count, 6, dtype=np.int32),
            ]
            np.save(root / "images" / fold / "types.npy", np.full(count, "Colon"), allow_pickle=False)
        at = self._next(split)
        images, masks = self._open[split]
        images[at] = patch.rgb
        planes = np.zeros((self.side, self.side, 6), np.int32)
        channel = np.array(self._channel)[patch.classes]
        for number in range(5):
            planes[..., number] = np.where((patch.classes > 0) & (channel == number), patch.ids, 0)
        planes[..., 5] = patch.classes == 0
        masks[at] = planes
        return f"{fold}/images/{fold}/images.npy[{at}]"


class StarDistLayout(Layout):
    """SPLIT/images/NAME.tif (RGB), SPLIT/masks/NAME.tif (uint16 ids), SPLIT/classes.json {NAME: {id: class}}."""

    def __init__(self, folder: Path, classes: ClassTable, counts: Mapping[str, int], side: int) -> None:
        super().__init__(folder, classes, counts, side)
        self._types: dict[str, dict[str, dict[int, int]]] = {split: {} for split in counts}

    def add(self, patch: Patch) -> str:
        """Two files, and an entry of the classes."""
        for name, pixels in (("images", patch.rgb), ("masks", patch.ids.astype(np.uint16))):
            target = self.folder / patch.split / name / f"{patch.name}.tif"
            target.parent.mkdir(parents=True, exist_ok=True)
            photometric = "rgb" if name == "images" else "minisblack"
            tifffile.imwrite(target, pixels, compression="zlib", photometric=photometric, metadata=None)
        self._types[patch.split][patch.name] = patch.types()
        return f"{patch.split}/images/{patch.name}.tif"

    def finish(self) -> None:
        """Write the classes."""
        for split, types in self._types.items():
            if types:
                (self.folder / split / "classes.json").write_text(json.dumps(types), encoding="utf-8")


class CocoLayout(Layout):
    """SPLIT/NAME.png and annotations/instances_SPLIT.json."""

    def __init__(self, folder: Path, classes: ClassTable, counts: Mapping[str, int], side: int) -> None:
        super().__init__(folder, classes, counts, side)
        self._images: dict[str, list[dict[str, object]]] = {split: [] for split in counts}
        self._annotations: dict[str, list[dict[str, object]]] = {split: [] for split in counts}

    def add(self, patch: Patch) -> str:
        """A picture and its annotations."""
        import pyvips

        target = self.folder / patch.split / f"{patch.name}.png"
        target.parent.mkdir(exist_ok=True)
        pyvips.Image.new_from_array(patch.rgb, interpretation="srgb").pngsave(str(target), keep="none")
        images, annotations = self._images[patch.split], self._annotations[patch.split]
        number = len(images) + 1
        images.append({"id": number, "file_name": target.name, "width": self.side, "height": self.side})
        for identifier, kind in patch.types().items():
            pixels = patch.ids == identifier
            rows, columns = np.nonzero(pixels)
            top, left = int(rows.min()), int(columns.min())
            part = pixels[top : rows.max() + 1, left : columns.max() + 1]
            polygons = [[ring.astype(np.int64) for ring in rings] for rings in trace_bitmap(part, left, top)]
            annotations.append(annotation(len(annotations) + 1, number, kind, polygons, len(rows)))
        return f"{patch.split}/{target.name}"

    def finish(self) -> None:
        """Write the annotations."""
        (self.folder / "annotations").mkdir(exist_ok=True)
        for split, images in self._images.items():
            if images:
                data = {
                    "images": images,
                    "annotations": self._annotations[split],
                    "categories": categories(self.classes),
                }
                target = self.folder / "annotations" / f"instances_{split}.json"
                target.write_text(json.dumps(data, separators=(",", ":")), encoding="utf-8")


LAYOUTS: dict[str, type[Layout]] = {
    "hovernet": HoverNetLayout,
    "conic": ConicLayout,
    "pannuke": PanNukeLayout,
    "stardist": StarDistLayout,
    "coco": CocoLayout,
}


def _write_csv(path: Path, header: list[str], rows: Sequence[Sequence[object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
