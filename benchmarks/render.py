"""How fast a whole slide is painted: mask in, .svs out, through ``wsigen.render``.

The slide goes to a temporary folder and is removed. Time is divided into planning (the mask is read and checked),
painting (loading the model included) and encoding (pyramid, picture and record).

    python benchmarks/render.py --size 8192 --device cuda
"""

from __future__ import annotations

import json
import platform
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from wsigen.errors import WsigenError
from wsigen.masks.demo.mask import write_demo_mask
from wsigen.models.config import ModelConfig
from wsigen.models.registry import find_model
from wsigen.models.stain import StainStyle
from wsigen.networks.nasdm import NasdmModel
from wsigen.painting.scheduler import Progress
from wsigen.rendering.job import render
from wsigen.rendering.plan import RenderPlan
from wsigen.system.devices import choose_device

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "slide_masks.tif"
DEMO_SEED = 0


@dataclass
class Stopwatch:
    """Notes when a render has planned and when it has painted."""

    started: float = field(default_factory=time.perf_counter)
    planned: float = 0.0
    painted: float = 0.0
    plan: RenderPlan | None = None

    def on_plan(self, plan: RenderPlan) -> None:
        """Planning has ended."""
        self.plan, self.planned = plan, time.perf_counter()

    def on_paint(self, _: Progress) -> None:
        """Windows were painted; the last call ends the painting."""
        self.painted = time.perf_counter()


def peak_rss_gib() -> float:
    """The most memory that this process, or the largest of its ended children, has held."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    usages = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usages) * unit / 2**30


def model_folder(name: str, folder: Path) -> Path:
    """Find a model; ``preset:NAME`` is written to ``folder``, untrained."""
    if not name.startswith("preset:"):
        return find_model(name)
    target = folder / "model"
    NasdmModel(ModelConfig.preset(name.removeprefix("preset:"))).save_pretrained(target)
    return target


def measure(name: str, size: int | None, repeats: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Render ``repeats`` times and return the figures of the run of median time, as plain JSON."""
    with tempfile.TemporaryDirectory(prefix="wsigen-benchmark-") as name_of_folder:
        folder = Path(name_of_folder)
        model = model_folder(name, folder)
        config = ModelConfig.load(model)
        mask = EXAMPLE
        if size:
            mask = folder / "demo_mask.tif"
            write_demo_mask(mask, size, size, DEMO_SEED, config.mpp)
        # Any style costs the same; a model without named ones gets the mean of its training slides.
        style = None if config.styles else StainStyle("mean", config.style_range.mean)
        runs = [
            _one_run(mask, folder / f"{index}.svs", {**settings, "model": str(model), "style": style})
            for index in range(repeats)
        ]
    median = sorted(runs, key=lambda run: run["seconds"])[(repeats - 1) // 2]
    return {
        "benchmark": "render",
        "model": name,
        "mask": f"demo, {size} px" if size else "example",
        "platform": f"{platform.system()} {platform.machine()}",
        "repeats": repeats,
        "all_seconds": [run["seconds"] for run in runs],
        **median,
        "peak_rss_gib": peak_rss_gib(),
    }


def _one_run(mask: Path, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    watch = Stopwatch()
    result = render(mask, out, on_plan=watch.on_plan, on_paint=watch.on_paint, **settings)
    ended = time.perf_counter()
    assert watch.plan is not None
    seconds, spec = ended - watch.started, watch.plan.spec
    return {
        "device": watch.plan.machine.device.description,
        "steps": spec.num_inference_steps,
        "batch_size": spec.batch_size,
        "workers": watch.plan.workers,
        "width": result.width,
        "height": result.height,
        "windows": result.windows,
        "through_model": result.painted,
        "seconds": seconds,
        "windows_per_s": result.windows / seconds,
        "painted_windows_per_s": result.painted / (watch.painted - watch.planned),
        "mpx_per_s": result.width * result.height / seconds / 1e6,
        "share_planning": (watch.planned - watch.started) / seconds,
        "share_painting": (watch.painted - watch.planned) / seconds,
        "share_encoding": (ended - watch.painted) / seconds,
    }


def report(result: dict[str, Any]) -> None:
    """Print the figures for people."""
    click.echo(
        f"{result['model']}, {result['mask']} mask, {result['width']:,} x {result['height']:,} px: "
        f"{result['through_model']} of {result['windows']} windows through the model, {result['steps']} steps, "
        f"batch {result['batch_size']}, {result['workers']} workers, {result['device']}"
    )
    click.echo(
        f"{result['seconds']:.1f} s, median of {', '.join(f'{seconds:.1f}' for seconds in result['all_seconds'])}: "
        f"{result['windows_per_s']:.3f} windows/s, {result['mpx_per_s']:.4f} Mpx/s"
    )
    click.echo(
        f"planning {result['share_planning']:.1%}, painting {result['share_painting']:.1%}, encoding "
        f"{result['share_encoding']:.1%}; peak RSS {result['peak_rss_gib']:.2f} GiB"
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", default="nasdm-colon-20x", show_default=True, help="Name, folder, or preset:NAME (untrained).")
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]), show_default=True)
@click.option("--dtype", default="auto", type=click.Choice(["auto", "bfloat16", "float16", "float32"]))
@click.option("--batch-size", type=click.IntRange(min=2), help="Windows a forward. [default: the device's]")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the sampler. [default: the model's]")
@click.option("--workers", type=click.IntRange(min=1), help="Processes. [default: 1]")
@click.option("--size", type=click.IntRange(min=1), help="Paint a demo mask of this side, px. [default: the example]")
@click.option("--repeats", default=1, type=click.IntRange(min=1), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Append one line of JSON to this file.")
def main(
    model: str,
    device: str,
    dtype: str,
    batch_size: int | None,
    steps: int | None,
    workers: int | None,
    size: int | None,
    repeats: int,
    json_file: Path | None,
) -> None:
    """Time a render."""
    try:
        choice = choose_device(device, dtype)
        settings = {"device": choice.device, "dtype": choice.dtype, "batch_size": batch_size, "steps": steps}
        result = measure(model, size, repeats, {**settings, "workers": workers})
    except WsigenError as error:
        raise click.ClickException(str(error)) from error
    report(result)
    if json_file:
        with json_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
