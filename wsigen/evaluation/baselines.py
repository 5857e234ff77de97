"""``wsigen study seams``: ways to paint an area larger than a window, at equal numbers of network calls.

One area of a mask is painted by each method with one model, seed and stain style, and the seams are measured on the
same grid. Pixels are compared as they are stored: uint8, without JPEG.

- *context, blended*: as wsigen renders. Stages of windows, each told what its neighbours are already, and blended over
  narrow bands that two windows paint without knowing of each other.
- *context, cut*: the same without the bands. Windows are told all of the overlap but its margin, and cut where it ends.
- *independent*: windows that know nothing of each other, cut at the same places.
- *feathered*: the same windows, blended linearly over their overlap: two different pictures on top of each other.
- *MultiDiffusion* (Bar-Tal et al. 2023): windows that overlap by half, whose predictions are averaged at every step. As
  each pixel takes part in four of them, equal calls are fewer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from wsigen.choices import SEAM_METHODS
from wsigen.conditions.context import context_tensors, from_uint8, to_uint8
from wsigen.conditions.contract import ConditionBatch, WindowBatch
from wsigen.conditions.guidance import PRESENT, present_plane
from wsigen.diffusion.gaussian import PredictionType, to_x0
from wsigen.diffusion.noise import coordinate_normals
from wsigen.diffusion.samplers import Sampler
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import SettingsError
from wsigen.evaluation.material import PAINT_BATCH, load_painter
from wsigen.evaluation.report import Report, Section
from wsigen.evaluation.seams import seam_scores
from wsigen.masks.conditions import read_surroundings
from wsigen.masks.slide_mask import SlideMask
from wsigen.networks.denoise import denoise, model_sampler
from wsigen.networks.denoiser import Denoiser
from wsigen.networks.guided import GuidedNetwork
from wsigen.painting.blending import Mosaic
from wsigen.painting.grid import STAGE_PARITIES, STAGES, Axis, Rectangle, Window, WindowGrid, usual_blend
from wsigen.system.devices import choose_device

Pair = tuple[Tensor, Tensor]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Area:
    """A square area on the device, as large as whole windows need it: as windows have them.

    It begins ``margin`` px before the slide, as its windows do; ``size`` px from there on are wanted along each axis.
    """

    conditions: ConditionBatch  # of the whole area; known and context are clear glass
    white: Tensor  # glass white where glass, 0 elsewhere, in [-1, 1]
    glass: Tensor  # known as glass: float 0 or 1
    margin: int
    size: int

    @property
    def side(self) -> int:
        """Pixels along a side."""
        return self.glass.shape[-1]


class AreaPainter:
    """Paints one area by any method; counts the windows that went through the network, times steps."""

    def __init__(self, model: Denoiser, area: Area, window: int, overlap: int, steps: int, seed: int) -> None:
        self.model, self.area, self.window, self.overlap = model, area, window, overlap
        self.steps, self.seed, self.calls = steps, seed, 0
        self.calls_a_step = model.config.guidance().calls
        self.schedule = NoiseSchedule.from_name(model.config.schedule, model.config.schedule_steps)
        self.device = area.glass.device

    def paint(self, method: str) -> np.ndarray:
        """Paint by one of SEAM_METHODS: (H, W, 3) uint8, from the slide's first pixel on."""
        self.calls = 0
        ways: dict[str, Callable[[], Tensor]] = {
            "context, blended": partial(self._in_stages, usual_blend(self.overlap)),
            "context, cut": self._in_stages,
            "independent": partial(self._in_stages, sees=False),
            "feathered": self._feathered,
            "MultiDiffusion": self._jointly,
        }
        kept = slice(self.area.margin, self.area.margin + self.area.size)
        return to_uint8(ways[method]())[0, kept, kept].cpu().numpy()

    def sampler(self, steps: int) -> Sampler:
        """The model's sampler."""
        return model_sampler(self.model.config, self.schedule, steps)

    def _places(self, stride: int) -> list[tuple[int, int]]:
        last = self.area.side - self.window
        starts = sorted({*range(0, last + 1, stride), last})  # the grid's own stride ends there
        return [(x, y) for y in starts for x in starts]

    def _cut(self, whole: Tensor, places: list[tuple[int, int]]) -> Tensor:
        parts = [whole[..., y : y + self.window, x : x + self.window] for x, y in places]
        return torch.cat(parts).contiguous(memory_format=torch.channels_last)

    def _conditions_of(self, places: list[tuple[int, int]]) -> ConditionBatch:
        """Conditions of windows at ``places``, with clear glass for all that is known."""
        return self.area.conditions.map(
            lambda part: self._cut(part, places) if part.ndim == 4 else part.expand(len(places), -1)
        )

    def _windows(self, places: list[tuple[int, int]], context: Tensor, known: Tensor) -> Tensor:
        """Paint windows at ``places``, each told what ``known`` (1, 1, H, W) says of ``context``: (n, 3, W, W)."""
        sampler, painted = self.sampler(self.steps), []
        batch = PAINT_BATCH[self.device.type]
        for start in range(0, len(places), batch):
            part = places[start : start + batch]
            there = self._cut(known, part)
            conditions = self._conditions_of(part).replaced(context=self._cut(context, part) * there, known=there)
            x, y = (torch.tensor([place[axis] for place in part], device=self.device) for axis in (0, 1))

            def noise(step: int, x: Tensor = x, y: Tensor = y) -> Tensor:
                return coordinate_normals(self.seed, x, y, self.window, self.window, step, device=self.device)

            def fresh(step: int, noise: Callable[[int], Tensor] = noise) -> Tensor:
                return noise(step + 1)

            painted.append(denoise(self.model, self.schedule, sampler, conditions, noise(0), fresh))
            self.calls += len(part) * self.steps * self.calls_a_step
        return torch.cat(painted)

    def _in_stages(self, blend: int = 0, sees: bool = True) -> Tensor:
        """Paint the windows of a grid stage by stage, with ``sees`` each given what is final of its neighbours."""
        grid = WindowGrid(self.area.size, self.area.size, self.window, self.overlap, blend)
        held: dict[Window, np.ndarray] = {}
        for stage, parities in enumerate(STAGE_PARITIES):
            windows = [window for window in grid.windows() if window.parity in parities]
            places = [(i * grid.stride, j * grid.stride) for i, j in windows]
            context, known = self._final(grid, held, stage if sees else 0)
            for window, pixels in zip(windows, to_uint8(self._windows(places, context, known)) if places else ()):
                held[window] = pixels.cpu().numpy()[grid.held_within(window)]
        return self._final(grid, held)[0]

    def _final(self, grid: WindowGrid, held: dict[Window, np.ndarray], stages_below: int = STAGES) -> Pair:
        """What is known of the area before a stage: pixels (1, 3, H, W), and where, (1, 1, H, W) float 0 or 1."""
        area = self.area
        mosaic = Mosaic(grid, Rectangle(-area.margin, -area.margin, area.side, area.side), stages_below)
        for window in mosaic.windows:
            mosaic.add(window, held[window])
        pixels, known = (torch.from_numpy(part[None]).to(self.device) for part in (mosaic.rgb, mosaic.known))
        context = torch.where(area.glass > 0, area.white, from_uint8(pixels) * known[:, None])
        return context, torch.maximum(area.glass, known[:, None].float())

    def _feathered(self) -> Tensor:
        places = self._places(self.window - self.overlap)
        rise = (torch.arange(self.window, device=self.device) + 0.5) / max(1, self.overlap)
        ramp = torch.minimum(rise, rise.flip(0)).clamp(max=1)
        return self._averaged(places, self._windows(places, self.area.white, self.area.glass), ramp[:, None] * ramp)

    def _averaged(self, places: list[tuple[int, int]], windows: Tensor, weight: Tensor) -> Tensor:
        total, weights = torch.zeros_like(self.area.white), torch.zeros_like(self.area.glass)
        for (x, y), pixels in zip(places, windows):
            place = np.s_[..., y : y + self.window, x : x + self.window]
            total[place] += pixels * weight
            weights[place] += weight
        return torch.where(self.area.glass > 0, self.area.white, total / weights.clamp(min=1e-6))

    @torch.inference_mode()
    def _jointly(self) -> Tensor:
        side = self.area.side
        places = self._places(self.window // 2)
        usual = len(self._places(self.window - self.overlap))
        sampler = self.sampler(max(1, round(self.steps * usual / len(places))))
        zero = torch.zeros(1, dtype=torch.long, device=self.device)

        def noise(step: int) -> Tensor:
            return coordinate_normals(self.seed, zero, zero, side, side, step, device=self.device)

        x, state = noise(0), sampler.init_state()
        for index, timestep in enumerate(sampler.timesteps):
            data = self._averaged(places, self._predictions(places, x, timestep), torch.ones(1, 1, device=self.device))
            fresh = noise(index + 1) if sampler.steps[index].noise > 0 else None
            x, state = sampler.step(index, x, data.clamp(-1, 1), fresh, state)
        return x

    def _predictions(self, places: list[tuple[int, int]], x: Tensor, timestep: float) -> Tensor:
        """Data predictions of all windows at x_t."""
        found = []
        kind = cast(PredictionType, self.model.config.prediction)
        batch = PAINT_BATCH[self.device.type]
        for start in range(0, len(places), batch):
            part = places[start : start + batch]
            noisy, t = self._cut(x, part), torch.full((len(part),), timestep, device=self.device)
            network = GuidedNetwork(self.model, self._conditions_of(part))
            found.append(to_x0(kind, network(noisy, timestep).mean.float(), noisy, t, self.schedule))
            self.calls += len(part) * self.calls_a_step
        return torch.cat(found)


def read_area(mask: SlideMask, model: Denoiser, size: int, window: int, overlap: int, device: torch.device) -> Area:
    """Read the upper left area of a mask, at least ``size`` px or as large as it is, in the model's default style."""
    axis = Axis(min(size, mask.width, mask.height), window, overlap)
    side = (axis.count - 1) * axis.stride + window
    config = model.config
    around = read_surroundings(mask, axis.origin(0), axis.origin(0), side, side, mask.mpp or config.mpp)
    read = {
        name: torch.from_numpy(np.ascontiguousarray(plane)).to(device)[None] for name, plane in around.arrays.items()
    }
    windows = WindowBatch(read, torch.full((1, 2), axis.origin(0), device=device), side, torch.float32)
    style, glass = config.style(), torch.zeros((1, side, side), dtype=torch.bool, device=device)
    tensors: dict[str, Tensor] = {}
    for condition in model.conditions:
        tensors |= condition.of_windows(windows) | condition.of_slide(
            style if condition.name == "stain" else None, device, torch.float32
        )
        found = condition.glass(windows)
        glass = glass if found is None else glass | found
    white = torch.tensor(style.glass_rgb, dtype=torch.uint8, device=device).expand(1, side, side, 3)
    tensors |= context_tensors(white, glass)
    tensors["known"] = tensors["known"].float()
    tensors[PRESENT.name] = present_plane(tensors["known"])
    return Area(ConditionBatch(tensors), tensors["context"], tensors["known"], axis.margin, axis.length)


def study_seams(
    mask: Path,
    out: Path,
    model: str,
    *,
    size: int = 2048,
    overlap: int | None = None,
    methods: Sequence[str] = (),
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Paint by each of ``methods``, measure the seams, and write the report with pictures of the same place.

    ``methods`` are some of SEAM_METHODS; none stands for all. ``overlap`` is that of windows in px; None takes the
    model's.
    """
    methods = methods or SEAM_METHODS
    choice = choose_device(device)
    painter = load_painter(model, choice)
    config = painter.config
    window, overlap = config.window, config.overlap if overlap is None else overlap
    if size < 2 * window:
        raise SettingsError(f"--size {size}: give {2 * window} px or more, two windows of model {config.name}")
    WindowGrid(size, size, window, overlap)  # refuses overlaps that are none
    with SlideMask.open(mask, len(config.classes)) as opened:
        area = read_area(opened, painter, size, window, overlap, torch.device(choice.device))
    command = {"mask": mask.name, "model": config.name, "size": area.size, "window": window, "overlap": overlap}
    report = Report(out, "Ways to paint an area larger than a window", command, overwrite)
    work = AreaPainter(painter, area, window, overlap, steps or config.num_inference_steps, seed)
    rows, pictures = [], []
    for number, method in enumerate(methods):
        pixels = work.paint(method)
        scores = seam_scores(_reader(pixels), pixels.shape[1], pixels.shape[0], window, overlap)
        row: dict[str, object] = {"method": method, "network calls": work.calls}
        for entry in scores.rows(method):
            low, high, name = entry["low"], entry["high"], str(entry["statistic"])
            row[name] = entry["value"]
            if low is not None:
                row[f"{name}, 95 %"] = f"{low:.2f} to {high:.2f}"
        rows.append(row)
        corner = max(0, min(window - overlap, len(pixels) - window))
        part = pixels[corner : corner + window, corner : corner + window]
        pictures.append(report.picture(method.lower().replace(", ", "-"), part))
        progress("methods", number + 1, len(methods))
    says = (
        "1 is no seam for ratios, 0.5 for the AUC. A Laplacian ratio below 1 is blur at borders; for MultiDiffusion, "
        "which has its own windows, look at the pictures. They show where four windows meet."
    )
    report.add(Section("seams", "Seams", says, rows, pictures=pictures))
    return report


def _reader(pixels: np.ndarray) -> Callable[[int, int, int, int], np.ndarray]:
    return lambda x, y, w, h: pixels[y : y + h, x : x + w]
