"""A stage: one canvas that one model paints from one source, resolved and checked before anything is touched.

A slide that is rendered from a mask is one stage. A slide without a mask is two: the picture of a mask is painted from
a layout, and the slide from what the picture shows. The tasks of a stage wait for what they need of the stage below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wsigen.config import RenderSettings
from wsigen.models.config import ModelConfig
from wsigen.models.stain import StainStyle
from wsigen.painting.cluster import Machine
from wsigen.painting.estimate import Projection, project
from wsigen.painting.grid import BlockGrid, Rectangle, WindowGrid, usual_blend
from wsigen.painting.scheduler import plan_blocks
from wsigen.painting.spec import PaintSpec, run_record


def canvas_beside(out: Path) -> Path:
    """Where the canvas store of a slide or mask lies unless another folder is chosen."""
    return out.with_name(out.name + ".canvas")


@dataclass(frozen=True, kw_only=True)
class StagePlan(ABC):
    """What painting a canvas takes.

    Attributes:
        out: the file to write.
        config: configuration of the model.
        spec: all settings that decide pixels.
        grid: the windows of the slide.
        machine: devices and versions of what will paint.
        workers: processes.
        model_sha256: hash of the model's configuration and weights.
        source_sha256: hash of the content that is painted from.
        occupied: windows that may hold more than glass, bool (rows, columns).
        scheduler: address or client of a Dask cluster, or None.
        canvas_folder: folder of the canvas, or None for the one beside the file.
        rect: the part that is written, in px of level 0; None: the whole slide.
    """

    out: Path
    config: ModelConfig
    spec: PaintSpec
    grid: WindowGrid
    machine: Machine
    workers: int
    model_sha256: str
    source_sha256: str
    occupied: np.ndarray = field(compare=False)
    scheduler: Any = None
    canvas_folder: Path | None = None
    rect: Rectangle | None = None

    @property
    def canvas(self) -> Path:
        """Folder of the canvas store: beside what is written unless another one is chosen."""
        return self.canvas_folder or canvas_beside(self.out)

    @property
    def part(self) -> Rectangle:
        """What is written."""
        return self.rect or Rectangle(0, 0, self.grid.width, self.grid.height)

    @property
    def width(self) -> int:
        """Width of what is written, px."""
        return self.part.width

    @property
    def height(self) -> int:
        """Height of what is written, px."""
        return self.part.height

    @property
    def painted_part(self) -> Rectangle | None:
        """What has to be painted for that; None: all of it."""
        return self.rect

    @cached_property
    def blocks(self) -> BlockGrid:
        """Blocks of the canvas: single windows where only a part is painted, so that nothing else is."""
        return BlockGrid(self.grid, 1) if self.rect else plan_blocks(self.grid, self.spec, self.workers)

    @cached_property
    def projection(self) -> Projection:
        """What painting will need."""
        needed = self.occupied
        if self.painted_part is not None:
            needed = np.zeros_like(needed)
            for i, j in self.grid.closure(self.painted_part):
                needed[j, i] = self.occupied[j, i]
        remote = self.scheduler is not None
        return project(self.spec, self.config, self.blocks, needed, self.workers, remote=remote)

    @property
    def run(self) -> dict[str, Any]:
        """All that decides the pixels, see `run_record`."""
        extra = {"back_ends": self.machine.back_ends}
        return run_record(self.spec, self.source_sha256, self.model_sha256, extra, self.machine.environment)

    @abstractmethod
    def describe(self) -> list[str]:
        """Lines for people."""


def paint_spec(
    source: Path,
    model: Path,
    config: ModelConfig,
    style: StainStyle,
    mpp: float,
    settings: RenderSettings,
    machine: Machine,
    conditions: tuple[tuple[str, Any], ...] = (),
) -> PaintSpec:
    """What painting from ``source`` takes: the settings, else the model's own, else defaults."""
    device, batch_size = machine.device, settings.batch_size
    overlap = config.overlap if settings.overlap is None else settings.overlap
    blend = usual_blend(overlap) if settings.blend is None else settings.blend
    steps = settings.steps or config.num_inference_steps
    return PaintSpec(
        source=str(source.resolve()),
        model=str(model),
        style=style,
        mpp=mpp,
        seed=settings.default("seed"),
        sampler=config.sampler_for(steps, settings.sampler),
        num_inference_steps=steps,
        guidance_scale=config.guidance(settings.guidance_scale).scale,
        window=settings.window or config.window,
        overlap=overlap,
        blend=blend if config.product.blends else 0,
        batch_size=settings.default("batch_size")[device.device] if batch_size is None else batch_size,
        device=device.device,
        dtype=device.dtype,
        conditions=conditions,
    )


def machine_of(settings: RenderSettings) -> Machine:
    """What will paint: this machine, or the workers of a cluster."""
    if settings.dask_scheduler is None:
        return Machine.here(settings.device, settings.dtype)
    return Machine.of_cluster(settings.dask_scheduler, settings.device, settings.dtype)
