"""What a page shows: a slide or a mask's slide in the making, another one to compare it with, and overlays.

Everything is opened and checked before the server starts; a request names pictures by short fixed names, never by path.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsigen.config import RenderSettings
from wsigen.errors import MaskError, SettingsError, SlideError
from wsigen.masks.importers.report import counted_from_bounds
from wsigen.masks.importers.sniffing import open_source
from wsigen.masks.origin import Origin
from wsigen.masks.slide_mask import MOST_CLASSES, SlideMask
from wsigen.models.config import ModelConfig
from wsigen.models.registry import DEFAULT_MODEL, load_config
from wsigen.painting.on_demand import CACHE_BYTES
from wsigen.rendering.plan import MaskFacts, plan_render
from wsigen.system.reporting import Reporter, silent
from wsigen.viewer.live.mask import ReadMask, read_mask
from wsigen.viewer.live.slide import LiveSlide
from wsigen.viewer.outlines import OutlineOverlay
from wsigen.viewer.overlays import MaskOverlay, Overlay
from wsigen.viewer.saving import SaveJob, slide_path
from wsigen.viewer.tiles import SlideTiles

SAME_ASPECT = 0.01


@dataclass(frozen=True)
class SceneSettings:
    """What `wsigen view` was asked for."""

    path: Path  # a slide, or a mask whose slide is painted
    overlay: Path | None = None  # a mask, or outlines in GeoJSON and the like
    origin: Origin = Origin.AUTO  # which corner of the slide the outlines of an overlay are counted from
    compare: Path | None = None  # another slide
    out: Path | None = None  # where "Save as slide" writes
    lossless: bool = False  # PNG instead of JPEG tiles
    render: RenderSettings = field(default_factory=RenderSettings)
    cache_bytes: int = CACHE_BYTES


@dataclass(frozen=True)
class Place:
    """Where something lies on the first picture: pixels of it at the corner, and to one pixel of its own."""

    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0


class Scene:
    """All that is open. Threads may share it; close it when done."""

    def __init__(self, settings: SceneSettings) -> None:
        self.settings = settings
        self.token = secrets.token_hex(4)  # keeps the browser from showing tiles of an earlier run
        self.slides: dict[str, SlideTiles] = {}
        self.places: dict[str, Place] = {}
        self.live: LiveSlide | None = None
        self._overlays: dict[str, Overlay] = {}
        self.saving: SaveJob | None = None
        self.notes: list[str] = []  # for whoever opened it

    @property
    def overlays(self) -> dict[str, Overlay]:
        """Overlays by name; the mask of a slide in the making follows its file."""
        of_live: dict[str, Overlay] = {"mask": self.live.view.overlay} if self.live else {}
        return of_live | self._overlays

    def close(self) -> None:
        """Stop painting and saving, close all files."""
        if self.saving is not None:
            self.saving.stop()
            self.saving.join()
        if self.live is not None:
            self.live.close()
        for slide in self.slides.values():
            slide.close()
        for overlay in self._overlays.values():
            overlay.close()

    def add_overlay(self, name: str, overlay: Overlay, place: Place) -> None:
        """Lay an overlay over the first picture."""
        self._overlays[name], self.places[name] = overlay, place

    def save(self) -> SaveJob:
        """Begin to render what is being looked at. Raises SettingsError if that cannot be."""
        assert self.live is not None
        if self.saving is not None and self.saving.running:
            raise SettingsError(f"{self.saving.out.name} is being saved; wait, or stop it")
        plan, live = self.live.view.plan, self.live
        out = slide_path(plan, self.settings.out)
        if out.exists():
            raise SettingsError(f"{out.name} exists; move it away first, or change what is asked in the page")

        def ended() -> None:
            live.paused_around = False

        live.paused_around = True
        self.saving = SaveJob(plan, out, live.view.settings, ended)
        return self.saving

    def describe(self) -> dict[str, Any]:
        """The scene as plain JSON."""
        return {
            "token": self.token,
            "tiles": "png" if self.settings.lossless else "jpg",
            "pictures": ([self._live_picture()] if self.live is not None else [])
            + [self._picture(name, tiles) for name, tiles in self.slides.items()],
            "overlays": [self._overlay(name, overlay) for name, overlay in self.overlays.items()],
        }

    def _picture(self, name: str, tiles: SlideTiles) -> dict[str, Any]:
        info = tiles.info
        facts = {key: info.provenance[key] for key in ("model", "style", "seed", "steps") if key in info.provenance}
        return {
            "id": name, "name": info.path.name, "kind": "slide", "levels": tiles.levels, "mpp": info.mpp,
            "objective": info.objective_power, "synthetic": info.synthetic, "facts": facts,
            "place": vars(self.places.get(name, Place())),
        }  # fmt: skip

    def _live_picture(self) -> dict[str, Any]:
        assert self.live is not None
        plan = self.live.view.plan
        return {
            "id": "live", "name": plan.mask.name, "kind": "live", "levels": self.live.levels, "mpp": plan.spec.mpp,
            "objective": plan.config.objective_power, "synthetic": True, "facts": {"model": plan.config.name},
            "place": vars(Place()), "generation": self.live.view.generation,
            "form": self.live.form.describe(),
            "device": plan.machine.device.description,
        }  # fmt: skip

    def _overlay(self, name: str, overlay: Overlay) -> dict[str, Any]:
        return {
            "id": name, "name": overlay.name, "levels": overlay.levels, "mpp": overlay.mpp,
            "revision": overlay.revision, "place": vars(self.places.get(name, Place())),
            "classes": [
                {"index": entry.index, "name": entry.name, "colour": entry.colour, "count": count}
                for entry, count in zip(overlay.classes, overlay.counts, strict=True)
            ],
        }  # fmt: skip


def open_scene(settings: SceneSettings, progress: Reporter = silent) -> Scene:
    """Open everything; raises a WsigenError that names what to mend, with nothing left open."""
    scene = Scene(settings)
    try:
        config = load_config(settings.render.model or DEFAULT_MODEL)
        if is_mask(settings.path):
            _open_live(scene, config, progress)
        else:
            scene.slides["slide"] = SlideTiles(settings.path)
        if settings.compare is not None:
            _open_other(scene, settings.compare)
        if settings.overlay is not None:
            _open_overlay(scene, settings.overlay, config, progress)
    except BaseException:
        scene.close()
        raise
    return scene


def is_mask(path: Path) -> bool:
    """Whether a file is a slide mask, told from its header. Raises SlideError if there is no such file."""
    if not path.exists():
        raise SlideError(f"{path}: no such file; give a slide or a mask")
    try:
        SlideMask.open(path, MOST_CLASSES).close()
    except MaskError:
        return False
    return True


def _open_live(scene: Scene, config: ModelConfig, progress: Reporter) -> None:
    settings = scene.settings
    read = read_mask(settings.path, config, progress)
    plan = plan_render(settings.path, settings.out, settings.render, read.facts)
    scene.live = LiveSlide(plan, read, settings.render, settings.cache_bytes)


def _open_other(scene: Scene, path: Path) -> None:
    if is_mask(path):
        raise SettingsError(f"--compare {path}: is a mask; give it as --overlay, the page compares slide and mask")
    other = SlideTiles(path)
    scene.slides["other"] = other
    first = scene.describe()["pictures"][0]
    size, mpp = (other.info.width, other.info.height), other.info.mpp
    scene.places["other"] = _place(path, (*first["levels"][0], first["mpp"]), (*size, mpp))


def _open_overlay(scene: Scene, path: Path, config: ModelConfig, progress: Reporter) -> None:
    first = scene.describe()["pictures"][0]
    width, height = first["levels"][0]
    if not path.exists():
        raise MaskError(f"{path}: no such file; give a mask or outlines (GeoJSON)")
    if is_mask(path):
        read: ReadMask = read_mask(path, config, progress)
        facts: MaskFacts = read.facts
        overlay: Overlay = MaskOverlay(path, config.classes, facts.summary, read.chart)
        painted_part = scene.slides["slide"].info.provenance.get("rect") if "slide" in scene.slides else None
        if painted_part and (overlay.width, overlay.height) != (width, height):
            x, y, *_ = (int(part) for part in painted_part.split())
            place = Place(-x, -y)
        else:
            place = _place(path, (width, height, first["mpp"]), (overlay.width, overlay.height, overlay.mpp))
    else:
        open_source(path, None, None)  # says at once what is wrong with a file of no known format
        overlay = _outlines(scene, path, (width, height), first["mpp"], config, progress)
        place = Place()
    scene.add_overlay("overlay", overlay, place)


def _outlines(
    scene: Scene, path: Path, size: tuple[int, int], mpp: float | None, config: ModelConfig, progress: Reporter
) -> OutlineOverlay:
    bounds = scene.slides["slide"].info.bounds if "slide" in scene.slides else None
    if scene.settings.origin is Origin.BOUNDS and bounds is None:
        raise SettingsError(f"--origin bounds: {scene.settings.path} states no bounds; leave it out")
    overlay = OutlineOverlay(
        path, size, mpp, config.classes, progress, None if bounds is None else bounds[:2], scene.settings.origin
    )
    if overlay.offset != (0, 0):
        scene.notes.append(counted_from_bounds("outlines", overlay.offset))
    return overlay


def _place(path: Path, first: tuple[int, int, float | None], other: tuple[int, int, float | None]) -> Place:
    """Lay a picture (width, height, mpp) over the first one: by its size, or else by its scale."""
    across, along = first[0] / other[0], first[1] / other[1]
    if abs(across / along - 1) <= SAME_ASPECT:
        return Place(scale=across)
    if first[2] and other[2]:
        return Place(scale=other[2] / first[2])
    raise SettingsError(
        f"{path}: {other[0]} x {other[1]} pixels do not fit the slide's {first[0]} x {first[1]}, and no scale says how "
        "they lie; give a file of the same slide"
    )
