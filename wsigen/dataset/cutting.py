"""Cut patches with labels from slides and their masks, write them in a layout, and list them in a manifest."""

from __future__ import annotations

import csv
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
from scipy import ndimage

from wsigen.dataset.layouts import LAYOUTS, Layout, Patch
from wsigen.dataset.regions import Place, SplitBy, default_region, parse_split, places
from wsigen.errors import DataError, SlideError
from wsigen.masks.classes import ClassTable
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow
from wsigen.system.folders import is_empty, temporary_beside
from wsigen.system.reporting import Reporter, silent

MANIFEST = "manifest.csv"
MIN_NUCLEUS_PIXELS = 4  # what the border of a patch leaves of a nucleus, below it, is background


@dataclass(frozen=True)
class DatasetSettings:
    """How patches are cut.

    patch: side in px (None: the layout's). stride: px from one to the next (None: the side). region: side of a region
    of the split in px (None: up to 2,048, smaller on small slides). split: shares of the sides. split_by: "region" or
    "slide". min_nuclei: patches with fewer are left out. seed: of the split.
    """

    layout: str
    patch: int | None = None
    stride: int | None = None
    region: int | None = None
    split: str = "train=0.8,val=0.2"
    split_by: SplitBy = "region"
    min_nuclei: int = 1
    seed: int = 0


@dataclass(frozen=True)
class DatasetReport:
    """What was written: patches and nuclei on each side, and patches left out for want of nuclei."""

    patches: dict[str, int]
    nuclei: dict[str, int]
    empty: int


def write_dataset(
    slides: Sequence[str | os.PathLike[str]],
    masks: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    classes: ClassTable,
    settings: DatasetSettings,
    overwrite: bool = False,
    progress: Reporter = silent,
) -> DatasetReport:
    """Write training patches of `slides`, each with the mask of its size, into the new folder `out`.

    Raises DataError, SlideError or MaskError for a layout or split that makes no sense, a mask that does not fit its
    slide, or an `out` that is in the way. The folder appears when it is whole.
    """
    target = Path(out)
    if settings.layout not in LAYOUTS:
        raise DataError(f"layout {settings.layout!r} is not known; there are {', '.join(LAYOUTS)}")
    if len(slides) != len(masks) or not slides:
        raise DataError(f"{len(slides)} slides and {len(masks)} masks: give a --mask for each slide, in their order")
    _check_target(target, overwrite)
    kind = LAYOUTS[settings.layout]
    side = settings.patch or kind.default_patch
    shares = parse_split(settings.split)
    sources = [_Source(Path(slide), Path(mask), classes) for slide, mask in zip(slides, masks)]
    sizes = [source.size for source in sources]
    region = settings.region or default_region(sizes, side)
    every = list(places(sizes, side, settings.stride or side, region, shares, settings.split_by, settings.seed))
    kept = [place for place in _with_nuclei(every, sources, side, settings.min_nuclei, progress)]
    if not kept:
        raise DataError(f"no patch holds {settings.min_nuclei} nuclei; lower --min-nuclei or check the mask")
    counts = {name: sum(place.split == name for place in kept) for name in shares}
    with temporary_beside(target, DataError) as folder:
        partial = folder / "dataset"
        partial.mkdir()
        nuclei = _write_patches(kept, sources, kind(partial, classes, counts, side), side, classes, progress)
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
    return DatasetReport(counts, nuclei, len(every) - len(kept))


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise DataError(f"{target}: the folder {target.parent} does not exist; create it first")
    if not target.exists() or (target.is_dir() and is_empty(target)):
        return
    if not overwrite:
        raise DataError(f"{target}: exists and is not empty; choose another folder or overwrite it")
    if not (target / MANIFEST).is_file():
        raise DataError(f"{target}: holds no {MANIFEST}, so it is no such data set; choose another folder")


class _Source:
    """A slide and its mask."""

    def __init__(self, slide: Path, mask: Path, classes: ClassTable) -> None:
        self.path = slide
        self.mask = SlideMask.open(mask, len(classes))
        try:
            self.slide = openslide.OpenSlide(slide)
        except (openslide.OpenSlideError, FileNotFoundError):
            raise SlideError(f"{slide}: is missing or no slide that OpenSlide can read; check its path") from None
        self.size = (self.mask.width, self.mask.height)
        if self.slide.dimensions != self.size:
            of_mask, of_slide = (f"{w} x {h} px" for w, h in (self.size, self.slide.dimensions))
            raise DataError(
                f"{mask}: is {of_mask} and the slide {slide.name} {of_slide}; give the mask that the slide was painted "
                "from (a resampled one lies beside it)"
            )

    def labels(self, x: int, y: int, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes (side, side) uint8 and ids int32, 1.. in reading order; without slivers of nuclei at the border."""
        window = self.mask.read(x, y, side, side)
        ids = _numbered(window)
        sizes = np.bincount(ids.reshape(-1))
        kept = sizes >= MIN_NUCLEUS_PIXELS
        kept[0] = False
        renumbered = np.where(kept, np.cumsum(kept), 0).astype(np.int32)[ids]
        return np.where(renumbered > 0, window.classes, 0).astype(np.uint8), renumbered

    def picture(self, x: int, y: int, side: int) -> np.ndarray:
        """RGB (side, side, 3) uint8."""
        try:
            return np.asarray(self.slide.read_region((x, y), 0, (side, side)))[..., :3]
        except openslide.OpenSlideError as error:
            raise SlideError(f"{self.path}: is damaged at ({x}, {y}) ({error}); write or copy it again") from None


def _numbered(window: MaskWindow) -> np.ndarray:
    """Ids 1.. of the nuclei of a window: those of the mask, else 4-connected components of a class."""
    if window.instances is not None:
        ids = np.where(window.classes > 0, window.instances, 0)
        return np.unique(np.append(ids.reshape(-1), 0), return_inverse=True)[1][:-1].reshape(ids.shape)
    numbered = np.zeros(window.shape, np.int64)
    for kind in np.unique(window.classes[window.classes > 0]):
        components, _ = ndimage.label(window.classes == kind)
        numbered = np.where(components > 0, components + numbered.max(), numbered)
    return numbered


def _with_nuclei(
    every: Sequence[Place], sources: Sequence[_Source], side: int, least: int, progress: Reporter
) -> Iterator[Place]:
    for index, place in enumerate(every):
        _, ids = sources[place.slide].labels(place.x, place.y, side)
        if ids.max() >= least:
            yield place
        progress("looking for nuclei", (index + 1) / len(every))


def _write_patches(
    kept: Sequence[Place],
    sources: Sequence[_Source],
    layout: Layout,
    side: int,
    classes: ClassTable,
    progress: Reporter,
) -> dict[str, int]:
    nuclei = Counter[str]()
    header = ["file", "split", "slide", "region", "x", "y", "width", "height", "mpp", *classes.names]
    with open(layout.folder / MANIFEST, "w", newline="", encoding="utf-8") as file:
        manifest = csv.writer(file)
        manifest.writerow(header)
        for index, place in enumerate(kept):
            source = sources[place.slide]
            labels, ids = source.labels(place.x, place.y, side)
            name = f"{_plain(source.path.name)}_{place.slide}_x{place.x}_y{place.y}"
            patch = Patch(name, place.split, source.picture(place.x, place.y, side), labels, ids)
            where = layout.add(patch)
            kinds = Counter(patch.types().values())
            nuclei[place.split] += kinds.total()
            counts = [kinds[entry.index] for entry in classes]
            scale = source.mask.mpp or ""
            row = [where, place.split, source.path.name, place.region, place.x, place.y, side, side, scale, *counts]
            manifest.writerow(row)
            progress("writing patches", (index + 1) / len(kept))
    layout.finish()
    return dict(nuclei)


def _plain(name: str) -> str:
    """A file name without its ending, in characters that every file system takes."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name.partition(".")[0]) or "slide"
