"""What the engine costs beside the network: scheduling, scaling over processes, stages of a render, the pyramid.

    python benchmarks/engine.py                      # all of it on this machine
    python benchmarks/engine.py --quick              # the same in a minute or two, smaller
    python benchmarks/engine.py --only render --device cuda --size 32768 --workers 2

scheduling: one million windows whose tasks do nothing, through Dask and two worker processes. scaling: a render with
one worker and with two. render: mask to .svs, with the time by stage and the share that the device was idle. pyramid:
102,400 x 102,400 pixels of which 1 % is textured, encoded.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from wsigen.errors import WsigenError
from wsigen.masks.demo.mask import demo_mask as demo_whole
from wsigen.masks.demo.mask import write_demo_mask
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask
from wsigen.models.config import ModelConfig
from wsigen.models.registry import DEFAULT_MODEL, find_model
from wsigen.painting.canvas import Canvas
from wsigen.painting.cluster import open_executor
from wsigen.painting.dask_cluster import DaskExecutor
from wsigen.painting.grid import BlockGrid, WindowGrid
from wsigen.painting.process_worker import Job
from wsigen.painting.scheduler import Run, TaskScheduler
from wsigen.painting.slide_worker import TaskResult
from wsigen.painting.spec import PaintSpec, run_record
from wsigen.painting.tasks import Task
from wsigen.rendering.job import RenderResult, render
from wsigen.slides.metadata import SlideMetadata
from wsigen.slides.pyramid import constant
from wsigen.slides.svs import write_svs_panels

PANEL = 3584
DRAWN = 4096  # side of the demo tissue that larger masks are copies of
GLASS = (243, 242, 244)


def paint_nothing(windows: int) -> TaskResult:
    """A task of the null model."""
    return TaskResult(windows)


class NullExecutor:
    """A cluster whose tasks do nothing, and whose workers open no slide."""

    live = False

    def __init__(self, executor: DaskExecutor, layout: BlockGrid) -> None:
        self._painters, self._layout = executor, layout
        self.capacity, self.lanes = executor.capacity, executor.lanes

    def prepare(self, job: Job) -> None:
        """Nothing to open."""

    def submit(self, job: Job, task: Task, priority: int) -> Any:
        """Start a task that returns at once."""
        windows = sum(len(self._layout.windows(*chunk)) for chunk in task.chunks)
        key = f"null-{task.key}"
        return self._painters.client.submit(paint_nothing, windows, key=key, priority=-priority, pure=False)

    def counts(self, job: Job) -> tuple[int, int]:
        """Unknown."""
        return 0, 0

    def check(self) -> None:
        """Pass it on."""
        self._painters.check()


def scheduling(folder: Path, quick: bool) -> dict[str, Any]:
    """Overhead of a window when nothing is painted: planning, submitting, collecting."""
    side = 256 if quick else 1000
    config = ModelConfig.load(find_model(DEFAULT_MODEL))
    spec = PaintSpec(source="none", model="none", style=config.style(), mpp=0.5)
    layout = BlockGrid(WindowGrid(side * 224, side * 224), 8)
    canvas = Canvas.create(folder / "null.canvas", layout, run_record(spec, "", ""))
    started = time.perf_counter()
    run = Run(canvas, spec)
    planned = time.perf_counter()
    with open_executor("cpu", 2) as executor:
        assert isinstance(executor, DaskExecutor)
        opened = time.perf_counter()
        engine = TaskScheduler(NullExecutor(executor, layout))
        engine.add(run)
        while not run.finished:
            engine.step()
        ended = time.perf_counter()
    windows, tasks = run.progress.painted, len(run.plan.tasks)
    return {
        "windows": windows,
        "tasks": tasks,
        "plan_s": planned - started,
        "schedule_s": ended - opened,
        "ms_per_task": 1e3 * (ended - opened) / tasks,
        "us_per_window": 1e6 * (ended - opened + planned - started) / windows,
    }


def rendered(folder: Path, mask: Path, workers: int, settings: dict[str, Any]) -> tuple[RenderResult, float]:
    """One render, and its seconds."""
    started = time.perf_counter()
    result = render(mask, folder / f"w{workers}.svs", workers=workers, overwrite=True, **settings)
    return result, time.perf_counter() - started


def demo_mask(folder: Path, size: int) -> Path:
    """A mask of demo tissue, written once; above 4,096 px of copies of one that large, since drawing takes a while."""
    path = folder / f"demo{size}.tif"
    if path.exists():
        return path
    if size <= DRAWN:
        write_demo_mask(path, size, size, 0)
        return path
    drawn = demo_whole(DRAWN, DRAWN, 0)
    assert drawn.instances is not None and drawn.tissue is not None
    highest, across = int(drawn.instances.max()), -(-size // DRAWN)

    def bands() -> Iterator[MaskWindow]:
        for row in range(across):
            rows = slice(0, min(DRAWN, size - row * DRAWN))
            classes, instances, tissue = (
                np.tile(plane[rows], (1, across))[:, :size] for plane in (drawn.classes, drawn.instances, drawn.tissue)
            )
            copy = row * across + np.arange(size, dtype=np.uint32) // DRAWN
            yield MaskWindow(classes, np.where(instances > 0, instances + copy * highest, 0).astype(np.uint32), tissue)

    write_slide_mask(path, size, size, 0.5, bands(), True, True)
    return path


def scaling(folder: Path, size: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Windows a second of the painting with one worker and with two."""
    rates = {}
    for workers in (1, 2):
        result, seconds = rendered(folder, demo_mask(folder, size), workers, settings)
        rates[workers] = {"windows_per_s": result.painted / result.timings["painting"], "seconds": seconds}
    return {"size": size, "workers": rates, "speed_up": rates[2]["windows_per_s"] / rates[1]["windows_per_s"]}


def whole_render(folder: Path, masks: Path, size: int, workers: int, settings: dict[str, Any]) -> dict[str, Any]:
    """From mask to .svs by stage; ``masks`` is where the mask lies or is to lie."""
    result, seconds = rendered(folder, demo_mask(masks, size), workers, settings)
    gigapixels = result.width * result.height / 1e9
    return {
        "size": size,
        "workers": workers,
        "windows": result.windows,
        "through_model": result.painted,
        "seconds": seconds,
        "seconds_per_gigapixel": seconds / gigapixels,
        "stages": result.timings,
        "end_to_end_over_device": seconds * workers / max(result.timings["device"], 1e-9),
        "peak_rss_gib": peak_rss_gib(),
    }


def pyramid(folder: Path, quick: bool) -> dict[str, Any]:
    """Encode a slide of which 1 % is textured, and a smaller one that is so everywhere."""
    small, large = (7168, 25600) if quick else (25088, 102_400)
    return {
        name: json.loads(_in_process("--encode", str(side), str(share), str(folder / "p.svs")))
        for name, side, share in (("sparse", large, 0.01), ("dense", small, 1.0))
    }


def encode(side: int, share: float, path: Path) -> dict[str, Any]:
    """Encode side x side pixels, of which ``share`` of the panels are textured; run in a process of its own."""
    noise = np.random.default_rng(0).integers(0, 40, (PANEL, PANEL, 3), dtype=np.uint8)
    texture = (noise.astype(np.uint16) + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + 90).astype(np.uint8)

    def read(x: int, y: int, width: int, height: int) -> np.ndarray:
        textured = np.random.default_rng([x, y]).random() < share
        return texture[:height, :width].copy() if textured else constant(GLASS, height, width)

    started = time.perf_counter()
    write_svs_panels(path, side, side, read, SlideMetadata(0.5, 20), panel=PANEL, jpeg_quality=87, overwrite=True)
    seconds = time.perf_counter() - started
    return {
        "side": side,
        "seconds": seconds,
        "gigapixels_per_s": side**2 / seconds / 1e9,
        "cpu_seconds": time.process_time(),
        "file_gb": path.stat().st_size / 1e9,
        "peak_rss_gib": peak_rss_gib(),
    }


def _in_process(*arguments: str) -> str:
    run = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return run.stdout


def peak_rss_gib() -> float:
    """The most memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@click.command()
@click.option("--quick", is_flag=True, help="Smaller in everything.")
@click.option("--only", multiple=True, type=click.Choice(["scheduling", "scaling", "render", "pyramid"]))
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--size", type=int, help="Side of the rendered slide, px. [default: 1500, quick 600]")
@click.option("--workers", default=1, show_default=True, help="Processes of the render.")
@click.option("--model", default=DEFAULT_MODEL, show_default=True)
@click.option("--steps", type=int, help="Denoising steps. [default: the model's; quick 1]")
@click.option("--batch-size", type=int)
@click.option("--mask-only", is_flag=True, help="Write the mask of the render to --folder, for a later run, and end.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where slides and canvases go. [default: temporary]")
@click.option("--encode", "encode_arguments", type=(int, float, Path), hidden=True)
def main(
    quick: bool,
    only: tuple[str, ...],
    device: str,
    size: int | None,
    workers: int,
    model: str,
    steps: int | None,
    batch_size: int | None,
    mask_only: bool,
    folder: Path | None,
    encode_arguments: tuple[int, float, Path] | None,
) -> None:
    """Measure the engine; prints one JSON object a part."""
    if encode_arguments:
        click.echo(json.dumps(encode(*encode_arguments)))
        return
    size = size or (600 if quick else 1500)
    if mask_only:
        click.echo(demo_mask(folder or Path(), size))
        return
    settings = {"model": model, "device": device, "steps": steps or (1 if quick else None), "batch_size": batch_size}
    click.echo(json.dumps({"platform": platform.platform(), "python": platform.python_version()}))
    with tempfile.TemporaryDirectory(prefix="wsigen-engine-", dir=folder) as name:
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "scheduling": lambda: scheduling(Path(name), quick),
            "scaling": lambda: scaling(Path(name), size, settings),
            "render": lambda: whole_render(Path(name), folder or Path(name), size, workers, settings),
            "pyramid": lambda: pyramid(Path(name), quick),
        }
        for part in only or parts:
            try:
                click.echo(json.dumps({part: parts[part]()}, indent=2))
            except WsigenError as error:
                raise click.ClickException(f"{part}: {error}") from error


if __name__ == "__main__":  # worker processes import this file
    main()
