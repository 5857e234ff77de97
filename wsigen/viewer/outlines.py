"""An overlay of outlines: GeoJSON and whatever else `wsigen mask import` reads as polygons, drawn as they are.

Outlines may overlap, lie in one another and have any class; nothing is rasterised beyond the tile that is asked for.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import shapely
from PIL import Image, ImageDraw

from wsigen.errors import MaskError
from wsigen.masks.classes import ClassTable, NucleusClass
from wsigen.masks.importers.class_maps import UNCLASSIFIED
from wsigen.masks.importers.outlines import OutlineSet, OutlineSpool
from wsigen.masks.importers.sniffing import open_source
from wsigen.masks.importers.sources import OutlineSource, damage_is_one_line
from wsigen.masks.origin import Origin
from wsigen.system.reporting import Reporter, silent
from wsigen.viewer.overlays import Drawing, Found, Marks, Overlay, _bounded

MOST_DRAWN = 20_000  # polygons of a tile; of more the middles are marked
SMALLEST = 3.0  # pixels on the screen of a polygon's longer side; below that its middle is marked
LINE = 2
MOST_CLASSES = 64
# For classes that the model has no colour for; told apart by all common kinds of colour vision as far as eight go.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#bbbbbb")


class OutlineOverlay(Overlay):
    """The outlines of a file, in pixels of level 0 of a slide. Raises MaskError for a file that is none."""

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        mpp: float | None,
        table: ClassTable,
        progress: Reporter = silent,
        bounds: tuple[int, int] | None = None,
        origin: Origin = Origin.AUTO,
    ) -> None:
        """bounds: corner of the slide's bounds, where it states them. origin: which corner outlines count from."""
        self.name, self.mpp = path.name, mpp
        self.width, self.height = size
        self._folder = tempfile.TemporaryDirectory(prefix="wsigen-view-")
        outlines, from_bounds = self._read(path, progress)
        self.offset = origin.offset(bounds, from_bounds)  # in pixels of the slide
        self._outlines = outlines.moved(*self.offset)
        self._polygons = np.flatnonzero(self._outlines.polygon_object >= 0)
        if not len(self._polygons):
            raise MaskError(f"{path}: holds no outlines with an area; give polygons")
        self._tree = shapely.STRtree(shapely.box(*self._outlines.bounds[self._polygons].T))
        self.classes, self._class_of_name = _classes(self._outlines.names, table)
        objects = np.unique(self._outlines.polygon_object[self._polygons])
        kinds = self._class_of_name[self._outlines.object_name[objects]]
        self.counts = tuple(np.bincount(kinds, minlength=len(self.classes) + 1)[1:].tolist())

    def _read(self, path: Path, progress: Reporter) -> tuple[OutlineSet, bool]:
        """The outlines of a file, and whether its format counts from a slide's bounds."""
        source = open_source(path, None, None)
        if not isinstance(source, OutlineSource):
            raise MaskError(f"{path}: is a label image; make a mask of it first: wsigen mask import {path}")
        spool = OutlineSpool(Path(self._folder.name))
        with damage_is_one_line(path, source.format):
            for item in source.objects(progress):
                spool.add(item)
        return spool.finish(), source.from_bounds

    def close(self) -> None:
        """Remove what was spooled."""
        self._folder.cleanup()

    def marks(self, level: int, x: int, y: int, width: int, height: int, drawing: Drawing) -> Marks:
        """Polygons, large ones first; where they are many or tiny, their middles."""
        scale = 2**level
        image = Image.new("L", (width, height))
        found = self._within(x * scale, y * scale, (x + width) * scale, (y + height) * scale)
        bounds = self._outlines.bounds[found]
        large = (bounds[:, 2:] - bounds[:, :2]).max(1, initial=0) >= SMALLEST * scale
        drawn = found[large]
        if len(drawn) > MOST_DRAWN:
            drawn = drawn[np.argsort(-self._outlines.area[drawn], kind="stable")][:MOST_DRAWN]
        draw = ImageDraw.Draw(image)
        for polygon in drawn[np.argsort(-self._outlines.area[drawn], kind="stable")].tolist():
            self._draw(draw, polygon, (x, y), scale, drawing)
        classes = np.array(image)
        small = np.setdiff1d(found, drawn)
        middles = (self._outlines.bounds[small, :2] + self._outlines.bounds[small, 2:]) / (2 * scale) - (x, y)
        at = middles.astype(np.int64)
        inside = ((at >= 0) & (at < (width, height))).all(1)
        classes[at[inside, 1], at[inside, 0]] = self._kinds(small[inside])
        return Marks(classes, np.full(classes.shape, 255, np.uint8))

    def _within(self, left: float, top: float, right: float, bottom: float) -> np.ndarray:
        return np.sort(self._polygons[self._tree.query(shapely.box(left, top, right, bottom))])

    def _kinds(self, polygons: np.ndarray) -> np.ndarray:
        outlines = self._outlines
        return self._class_of_name[outlines.object_name[outlines.polygon_object[polygons]]].astype(np.uint8)

    def _rings(self, polygon: int) -> list[np.ndarray]:
        rings, starts = self._outlines.polygon_rings, self._outlines.ring_vertices
        every = (
            np.asarray(self._outlines.vertices[starts[ring] : starts[ring + 1]])
            for ring in range(rings[polygon], rings[polygon + 1])
        )
        return [ring for ring in every if len(ring) >= 3]

    def _draw(
        self, draw: ImageDraw.ImageDraw, polygon: int, corner: tuple[int, int], scale: int, drawing: Drawing
    ) -> None:
        kind = int(self._kinds(np.array([polygon]))[0])
        for index, ring in enumerate(self._rings(polygon)):
            points = [(float(px), float(py)) for px, py in ring / scale - corner - 0.5]  # pixels are counted at middles
            if drawing == "outline":
                draw.line([*points, points[0]], fill=kind, width=LINE)
            else:
                draw.polygon(points, fill=kind if index == 0 else 0)

    def find(self, x: int, y: int) -> Found | None:
        """The smallest polygon around the middle of a pixel."""
        around = self._within(x + 0.5, y + 0.5, x + 0.5, y + 0.5)
        for polygon in around[np.argsort(self._outlines.area[around], kind="stable")].tolist():
            outer, *holes = self._rings(polygon)
            shape = shapely.Polygon(outer, holes)
            if not shape.is_valid:
                shape = shape.buffer(0)
            if shape.contains(shapely.Point(x + 0.5, y + 0.5)):
                number = int(self._outlines.polygon_object[polygon]) + 1
                rings = _bounded([ring.tolist() for ring in (outer, *holes)])
                return Found(int(self._kinds(np.array([polygon]))[0]), number, float(shape.area), rings)
        return None


def _classes(names: tuple[str, ...], table: ClassTable) -> tuple[tuple[NucleusClass, ...], np.ndarray]:
    """Classes by name in the model's colours where it knows them, and the class index of each name.

    Beyond `MOST_CLASSES` the rest are one class.
    """
    known = {entry.name.casefold(): entry.colour for entry in table}
    kept = names if len(names) <= MOST_CLASSES else (*names[: MOST_CLASSES - 1], "other")
    entries, spare = [], 0
    for index, name in enumerate(kept, 1):
        colour = known.get(name.casefold())
        if colour is None:
            colour, spare = COLOURS[spare % len(COLOURS)], spare + 1
        entries.append(NucleusClass(index, "unclassified" if name in ("", UNCLASSIFIED) else name, colour))
    return tuple(entries), np.minimum(np.arange(len(names)), len(kept) - 1) + 1
