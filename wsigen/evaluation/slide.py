"""``wsigen evaluate slide``: a slide against its mask, and its seams, stain and near-copies, as a report folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from wsigen.errors import MaskError, SettingsError, SlideError
from wsigen.evaluation.distances import frechet_distance, kernel_distance
from wsigen.evaluation.features import describe
from wsigen.evaluation.fidelity import FidelityScores, Found, Matching, find_nuclei, instances_of, match
from wsigen.evaluation.material import real_patches
from wsigen.evaluation.memorisation import SHIPPED_INDEX, WINDOW, TrainingIndex
from wsigen.evaluation.report import Report, Section
from wsigen.evaluation.seams import SeamScores, seam_scores
from wsigen.evaluation.slides import SlidePixels
from wsigen.evaluation.stain import StainStatistics
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow
from wsigen.models.stain import TISSUE_MIN_OD, optical_density
from wsigen.networks.measuring import FEATURES, SEGMENTER, FeatureNetwork, SegmentationNetwork
from wsigen.rendering.records import record_of
from wsigen.system.devices import choose_device
from wsigen.system.reporting import Reporter, silent
from wsigen.system.text_files import read_text

TILE = 384  # px of a tile's core
HALO = 64  # px around it: a nucleus is seen whole by the tile that holds its centre
LEAST_TISSUE = 0.5  # share of a patch, for distances, stain and near-copies
NUCLEI_FILE = "nuclei.csv"


@dataclass(frozen=True)
class SlideEvaluation:
    """What to evaluate and how; see the options of the command."""

    slide: Path
    mask: Path
    out: Path
    window: int | None = None  # None: from the record beside the slide
    overlap: int | None = None
    control: Path | None = None  # a real slide, for its seams on the same grid
    data: Path | None = None  # a training folder, for real patches
    segmenter: str = SEGMENTER
    features: str = FEATURES
    index: Path | None = None  # None: the one that ships, where the features are those that ship
    sites: int = 2000
    count: int = 1000
    seed: int = 0
    device: str = "auto"
    overwrite: bool = False


def evaluate_slide(settings: SlideEvaluation, progress: Reporter = silent) -> Report:
    """Measure and write the report; return it. Raises a WsigenError where input cannot be used."""
    device = torch.device(choose_device(settings.device).device)
    window, overlap = painted_grid(settings.slide, settings.window, settings.overlap)
    segmenter = SegmentationNetwork.from_pretrained(settings.segmenter).to(device)
    names = segmenter.config.classes.names
    with SlidePixels(settings.slide) as slide, SlideMask.open(settings.mask, len(names)) as mask:
        if (slide.width, slide.height) != (mask.width, mask.height):
            raise MaskError(
                f"{settings.mask}: {mask.width} x {mask.height} px, the slide is {slide.width} x {slide.height}; give "
                "the mask that it was painted from (NAME_mask.tif where it was resampled)"
            )
        command = {"slide": settings.slide.name, "mask": settings.mask.name, "window": window, "overlap": overlap}
        report = Report(settings.out, f"{settings.slide.name} against its mask", command, settings.overwrite)
        report.add(_fidelity(settings, slide, mask, segmenter, device, report, progress))
        report.add(_seams(settings, slide, window, overlap))
        index = settings.index or (SHIPPED_INDEX if settings.features == FEATURES else None)
        if settings.data is not None or index is not None:
            network = FeatureNetwork.from_pretrained(settings.features).to(device)
            if settings.data is not None:
                for section in _against_real(settings, slide, network, device):
                    report.add(section)
            if index is not None:
                report.add(_near_copies(settings, slide, TrainingIndex.load(index), network, device))
    return report


def painted_grid(slide: Path, window: int | None, overlap: int | None) -> tuple[int, int]:
    """Window and overlap that a slide was painted with: as given, else from the record beside it."""
    if window is not None and overlap is not None:
        return window, overlap
    record = record_of(slide)
    try:
        paint = json.loads(read_text(record))["paint"]
        return window or int(paint["window"]), int(paint["overlap"]) if overlap is None else overlap
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{record}: no record of a render beside the slide; give --window and --overlap") from error


def _tiles(width: int, height: int) -> list[tuple[int, int]]:
    return [(x, y) for y in range(0, height, TILE) for x in range(0, width, TILE)]


def _fidelity(
    settings: SlideEvaluation,
    slide: SlidePixels,
    mask: SlideMask,
    network: SegmentationNetwork,
    device: torch.device,
    report: Report,
    progress: Reporter,
) -> Section:
    """Score tile by tile against the mask, and against the mask of another place; write a line a nucleus."""
    names = network.config.classes.names
    painted, floor = FidelityScores(len(names)), FidelityScores(len(names))
    tiles = _tiles(slide.width, slide.height)
    shift = (round(0.382 * slide.width), round(0.382 * slide.height))  # not half: masks may repeat themselves
    area = (slide.mpp or network.config.mpp) ** 2
    nuclei = 0
    with (report.folder / NUCLEI_FILE).open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(
            ["id", "class", "name", "x", "y", "area_px", "area_um2", "found_iou", "found_class", "found_name"]
        )
        for number, (x, y) in enumerate(tiles):
            progress("nuclei", number, len(tiles))
            core = (x, y, min(TILE, slide.width - x), min(TILE, slide.height - y))
            found = _clipped(find_nuclei(network, _read_around(slide, x, y)[None], device)[0], slide, x, y)
            elsewhere = ((x + shift[0]) % slide.width, (y + shift[1]) % slide.height)
            for scores, (left, top) in ((painted, (x, y)), (floor, elsewhere)):
                there = _mask_around(mask, left, top)
                ids = instances_of(there.classes) if there.instances is None else there.instances.astype(np.int64)
                inside = np.s_[HALO : HALO + core[3], HALO : HALO + core[2]]
                scores.add_pixels(there.classes[inside], found.plane[inside])
                matching = _within(match(there.classes, ids, found), core[2], core[3])
                scores.add_matching(matching)
                if scores is floor:
                    continue
                for nucleus in matching.nuclei:
                    nuclei += 1
                    lines.writerow(
                        [
                            nucleus.id if there.instances is not None else nuclei,
                            nucleus.kind,
                            names[nucleus.kind - 1],
                            f"{nucleus.x - HALO + x:.1f}",
                            f"{nucleus.y - HALO + y:.1f}",
                            nucleus.area,
                            f"{nucleus.area * area:.2f}",
                            f"{nucleus.iou:.3f}",
                            nucleus.found_kind,
                            names[nucleus.found_kind - 1] if nucleus.found_kind else "",
                        ]
                    )
        progress("nuclei", len(tiles), len(tiles))
    rows = []
    for row, other in zip(painted.rows(names), floor.rows(names)):
        rows.append(row | {f"shuffled {key}": other[key] for key in ("dice", "pq", "count error")})
    return Section(
        "fidelity",
        "Mask fidelity",
        "What a segmentation network reads from the slide, against its mask; *shuffled*: against the mask of another "
        f"place, the floor. The ceiling, real pictures, is in the report of `wsigen evaluate patches`. {NUCLEI_FILE} "
        "has a line for each nucleus.",
        rows,
    )


def _read_around(slide: SlidePixels, x: int, y: int) -> np.ndarray:
    """Tile and halo (TILE + 2 HALO, same, 3); reflected outside the slide, as the mask is."""
    left, top = max(0, x - HALO), max(0, y - HALO)
    right, bottom = min(slide.width, x + TILE + HALO), min(slide.height, y + TILE + HALO)
    pixels = slide.read(left, top, right - left, bottom - top)
    pads = ((top - y + HALO, y + TILE + HALO - bottom), (left - x + HALO, x + TILE + HALO - right), (0, 0))
    return np.pad(pixels, pads, mode="symmetric")


def _mask_around(mask: SlideMask, x: int, y: int) -> MaskWindow:
    """The mask of tile and halo; background outside the slide, where a reflected nucleus would count twice."""
    side = TILE + 2 * HALO
    left, top = max(0, x - HALO), max(0, y - HALO)
    right, bottom = min(mask.width, x + TILE + HALO), min(mask.height, y + TILE + HALO)
    inside = mask.read(left, top, right - left, bottom - top)
    place = np.s_[top - y + HALO : bottom - y + HALO, left - x + HALO : right - x + HALO]
    classes = np.zeros((side, side), np.uint8)
    classes[place] = inside.classes
    if inside.instances is None:
        return MaskWindow(classes)
    ids = np.zeros((side, side), np.uint32)
    ids[place] = inside.instances
    return MaskWindow(classes, ids)


def _clipped(found: Found, slide: SlidePixels, x: int, y: int) -> Found:
    """Finds of tile and halo without what lies outside the slide."""
    rows = np.arange(y - HALO, y + TILE + HALO)
    columns = np.arange(x - HALO, x + TILE + HALO)
    real = ((rows >= 0) & (rows < slide.height))[:, None] & ((columns >= 0) & (columns < slide.width))
    return Found(np.where(real, found.instances, 0), found.classes, np.where(real, found.plane, np.uint8(0)))


def _within(matching: Matching, width: int, height: int) -> Matching:
    """Only what has its centre in the tile's core: every nucleus of the slide counts in one tile."""

    def inside(x: float, y: float) -> bool:
        return HALO <= x < HALO + width and HALO <= y < HALO + height

    return Matching(
        [nucleus for nucleus in matching.nuclei if inside(nucleus.x, nucleus.y)],
        [find for find in matching.unmatched if inside(find[1], find[2])],
    )


def _seams(settings: SlideEvaluation, slide: SlidePixels, window: int, overlap: int) -> Section:
    def scores(of: SlidePixels) -> SeamScores:
        return seam_scores(of.read, of.width, of.height, window, overlap, settings.sites, settings.seed)

    painted = scores(slide)
    rows, notes = painted.rows("painted slide"), [f"{painted.sites:,} sites of 64 px along borders."]
    if settings.control is not None:
        with SlidePixels(settings.control) as real:
            control = scores(real)
        rows += control.rows("real slide")
        notes.append(f"Real slide {settings.control.name}: {control.sites:,} sites on the same grid.")
    says = (
        "Pixels at the borders of windows against pixels at the same place in JPEG's blocks nearby. 1 is no seam for "
        "ratios, 0.5 for the AUC; *low* and *high* hold 95 % of bootstraps. A Laplacian ratio below 1 is blur."
    )
    return Section("seams", "Seams", says, rows, notes)


def tissue_patches(slide: SlidePixels, side: int, count: int, seed: int) -> np.ndarray:
    """Up to ``count`` patches (N, side, side, 3) uint8 that show tissue, from random places of a grid."""
    columns, rows = slide.width // side, slide.height // side
    order = np.random.default_rng(seed).permutation(columns * rows)

    def found() -> Iterator[np.ndarray]:
        for place in order:
            patch = slide.read(int(place % columns) * side, int(place // columns) * side, side, side)
            if (optical_density(patch).mean(2) > TISSUE_MIN_OD).mean() >= LEAST_TISSUE:
                yield patch

    patches = list(islice(found(), count))
    if len(patches) < 2:
        raise SlideError(f"{slide.path}: fewer than two patches of {side} px show tissue")
    return np.stack(patches)


def _against_real(
    settings: SlideEvaluation, slide: SlidePixels, network: FeatureNetwork, device: torch.device
) -> list[Section]:
    assert settings.data is not None
    painted = tissue_patches(slide, WINDOW, settings.count, settings.seed)
    real = real_patches(settings.data, "val", WINDOW, settings.count, device, settings.seed).patches.images
    real = real[(optical_density(real).mean(3) > TISSUE_MIN_OD).mean((1, 2)) >= LEAST_TISSUE]
    size = min(len(painted), len(real) // 2)
    order = np.random.default_rng(settings.seed).permutation(len(real))
    of_painted = describe(network, painted[:size], device).features
    first, second = (describe(network, real[order[k * size : (k + 1) * size]], device).features for k in range(2))
    row = {
        "N": size,
        "patch, px": WINDOW,
        "resize": "none",
        "Fréchet": frechet_distance(of_painted, first),
        "floor": frechet_distance(first, second),
        "KID x 1000": 1000 * kernel_distance(of_painted, first)[0],
    }
    says = "Tissue patches of the slide against held-out real ones, of other masks: layout counts too, not looks alone."
    stain = StainStatistics.of(painted).rows(StainStatistics.of(real))
    return [
        Section("distances", "Distances", says, [row]),
        Section("stain", "Stain", "Optical density over tissue by colour channel.", stain),
    ]


AUDIT_SAYS = (
    "A near-copy lies nearer to a training patch, in features, than all but 1 % of real patches that were held out "
    "from training do: 1 % is what real tissue gives."
)


@dataclass(frozen=True)
class Audit:
    """Near-copies of training patches among the patches of a slide."""

    patches: int
    share: float  # of near-copies
    held_out_share: float  # the same of real held-out patches
    median: float  # distance to the nearest training patch
    held_out_median: float

    def row(self) -> dict[str, object]:
        """A row of a table."""
        return {
            "patches": self.patches,
            "share of near-copies": self.share,
            "of real held-out patches": self.held_out_share,
            "median distance": self.median,
            "of real held-out": self.held_out_median,
        }


def _near_copies(
    settings: SlideEvaluation, slide: SlidePixels, index: TrainingIndex, network: FeatureNetwork, device: torch.device
) -> Section:
    section = Section("memorisation", "Near-copies", AUDIT_SAYS)
    try:
        section.rows = [audit(slide, index, network, device, settings.count, settings.seed).row()]
    except SlideError as error:  # too little tissue: the rest of the report stands
        section.notes = [f"{error}."]
    return section


def audit(
    slide: SlidePixels, index: TrainingIndex, network: FeatureNetwork, device: torch.device, count: int, seed: int
) -> Audit:
    """Look up a slide's patches in the index of training patches.

    Raises SettingsError where index and network do not fit, SlideError where the slide shows too little tissue.
    """
    if index.network != network.config.name or index.features.shape[1] != network.config.channels[-1]:
        raise SettingsError(f"the index was made with {index.network}, not {network.config.name}; give that network")
    distance, _ = index.nearest(network, tissue_patches(slide, index.window, count, seed), device)
    return Audit(
        len(distance),
        float((distance < index.near).mean()),
        float((index.held_out < index.near).mean()),
        float(np.median(distance)),
        float(np.median(index.held_out)),
    )
