"""The command line: parse, call one library function, report. Heavy imports stand inside the commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from wsigen_kernels import BackendError

from wsigen import __version__
from wsigen.errors import SettingsError, WsigenError
from wsigen.evaluation.commands import audit, distill, evaluate, study

if TYPE_CHECKING:
    from wsigen.rendering import RenderPlan, RenderResult
    from wsigen.tiling.engine import Progress

STOPPED = 130  # exit code after Ctrl-C, as shells have it
PATH = click.Path(path_type=Path)
SAMPLERS = ["ddpm", "ddim", "dpm++2m", "unipc", "consistency"]


class _Commands(click.Group):
    """A group whose commands end with one clear line and exit code 2 on an error that the user can mend."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (WsigenError, BackendError) as error:
            click.echo(f"wsigen: {error}", err=True)
            sys.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wsigen")
def main() -> None:
    """Paint synthetic H&E whole-slide images from masks of nuclei."""


@main.command()
@click.argument("mask", type=PATH, required=False)
@click.option("-o", "--out", type=PATH, help="Slide to write, .svs. [default: beside the mask]")
@click.option("--from", "record", type=PATH, help="Paint the slide of this slide.json again.")
@click.option("--model", default="", help="Name of a shipped model, or folder of one.")
@click.option("--style", help="Stain: a style's name (wsigen models), or a picture or slide to measure.")
@click.option("--seed", type=int, help="Same seed, same slide. [default: 0]")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps. [default: the model's]")
@click.option("--sampler", type=click.Choice(SAMPLERS), help="[default: the model's]")
@click.option("--guidance-scale", type=float, help="Classifier-free guidance; 1 is off. [default: 1]")
@click.option("--window", type=int, help="Side of a window, px. [default: the model's]")
@click.option("--overlap", type=int, help="Pixels that neighbouring windows share. [default: the model's]")
@click.option("--batch-size", type=int, help="Windows a call of the model, 2 or more. [default: by device]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto")
@click.option("--attention", type=click.Choice(["auto", "triton", "torch", "xformers"]), help="[default: auto]")
@click.option("--norm", type=click.Choice(["auto", "triton", "torch"]), help="Kernels of all but attention. [auto]")
@click.option("--workers", type=click.IntRange(1), help="Processes; one a GPU at most. [default: 1]")
@click.option("--jpeg-quality", type=click.IntRange(1, 100), help="[default: 87]")
@click.option("--overwrite", is_flag=True, help="Replace an existing slide or unfinished render.")
@click.option("--resume", is_flag=True, help="Continue an unfinished render.")
@click.option("--keep-canvas", is_flag=True, help="Keep the store of painted pixels.")
def render(
    mask: Path | None,
    out: Path | None,
    record: Path | None,
    overwrite: bool,
    resume: bool,
    keep_canvas: bool,
    attention: str | None,
    norm: str | None,
    **options: Any,
) -> None:
    """Paint the slide of MASK: an H&E slide with all levels that any slide viewer opens."""
    _choose_back_ends(attention, norm)
    from wsigen.rendering import check_record, settings_of_record
    from wsigen.rendering import render as run

    if (mask is None) == (record is None):
        raise SettingsError("render: give a MASK, or --from slide.json, and not both")
    if record is not None:
        mask, recorded = settings_of_record(record)
        options = recorded | {name: options[name] for name in ("workers",)}
    assert mask is not None
    with _display() as display:
        if record is not None:
            display.on_check = lambda plan: check_record(record, plan)
        result = run(
            mask,
            out,
            overwrite=overwrite,
            resume=resume,
            keep_canvas=keep_canvas,
            on_plan=display.on_plan,
            on_paint=display.on_paint,
            on_rows=display.on_rows,
            **options,
        )
    _report(result)


def _choose_back_ends(attention: str | None, norm: str | None) -> None:
    """Set the variables that force an implementation, before what reads them is imported, here and in workers."""
    for variable, value in (("WSIGEN_ATTENTION", attention), ("WSIGEN_NORM", norm)):
        if value:
            os.environ[variable] = value


class _Display:
    """Lines and progress bars of a render."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.plan: RenderPlan | None = None
        self.on_check = lambda plan: None
        self.painting: Any = None
        self.encoding: Any = None

    def on_plan(self, plan: RenderPlan) -> None:
        """Print what is about to happen."""
        self.plan = plan
        for line in plan.describe():
            self.console.print(line, markup=False)
        self.on_check(plan)

    def on_paint(self, progress: Progress) -> None:
        """Move the bar of windows."""
        if self.painting is None:
            self.painting = self.bars.add_task("painting", total=progress.total, speed="", completed=progress.resumed)
            self.bars.start()
        elapsed = self.bars.tasks[self.painting].elapsed or 0.0
        speed = f"{progress.painted / elapsed:.1f} windows/s" if elapsed > 0 and progress.painted else ""
        self.bars.update(self.painting, completed=progress.done, speed=speed)

    def on_rows(self, rows: int) -> None:
        """Move the bar of encoded rows."""
        assert self.plan is not None
        if self.encoding is None:
            self.encoding = self.bars.add_task("encoding", total=self.plan.grid.height, speed="rows")
        self.bars.update(self.encoding, completed=rows)


@contextmanager
def _display() -> Iterator[_Display]:
    """Show progress; on Ctrl-C say what is kept and how to go on."""
    display = _Display()
    try:
        yield display
    except KeyboardInterrupt:
        display.bars.stop()
        plan = display.plan
        if plan is not None and plan.canvas.exists():
            click.echo(f"stopped; what is painted is kept in {plan.canvas}: the same command with --resume goes on")
        else:
            click.echo("stopped; nothing was written")
        sys.exit(STOPPED)
    finally:
        display.bars.stop()


def _report(result: RenderResult) -> None:
    click.echo(
        f"wrote {result.slide}: {result.width:,} x {result.height:,} px, {result.painted} of {result.windows} windows "
        f"painted in {result.seconds:.0f} s"
    )
    click.echo(f"wrote {result.picture} (the whole slide) and {result.record} (paint it again: wsigen render --from)")
    click.echo(f"next: open {result.slide} in QuPath or any OpenSlide viewer; wsigen info {result.slide}")


@main.command()
@click.argument("slide", type=PATH)
def info(slide: Path) -> None:
    """Say what SLIDE is: size, levels, scale, and whether and how it was painted."""
    from wsigen.slides.info import read_slide_info

    facts = read_slide_info(slide)
    click.echo(f"{slide}: {facts.width:,} x {facts.height:,} px, {facts.vendor or 'unknown vendor'}")
    click.echo(f"scale: {_number(facts.mpp, 'um/px')}, objective {_number(facts.objective_power, 'x')}")
    sizes = ", ".join(f"{level.width} x {level.height}" for level in facts.levels)
    click.echo(f"levels: {len(facts.levels)} ({sizes})")
    pictures = ", ".join(f"{name} {width} x {height}" for name, (width, height) in facts.associated.items())
    click.echo(f"associated pictures: {pictures or 'none'}")
    if facts.synthetic:
        click.echo("synthetic: " + ", ".join(f"{key} {value}" for key, value in facts.provenance.items()))
    else:
        click.echo("synthetic: not marked as such")


def _number(value: float | None, unit: str) -> str:
    return "unknown" if value is None else f"{value:g} {unit}"


@main.command()
def models() -> None:
    """List the models that ship, with their classes, scale, styles and licence."""
    from wsigen.models.config import ModelConfig
    from wsigen.models.registry import DEFAULT_MODEL, shipped_models

    for name, folder in shipped_models().items():
        config = ModelConfig.load(folder)
        mark = " (default)" if name == DEFAULT_MODEL else ""
        click.echo(f"{name} v{config.version}{mark}: {config.description or 'no description'}")
        click.echo(f"  {config.mpp:g} um/px, {config.licence or 'no licence stated'}: {config.terms}")
        click.echo(f"  classes: {', '.join(f'{entry.index} {entry.name}' for entry in config.classes)}")
        click.echo(f"  styles: {', '.join(style.name for style in config.styles)}")


@main.command()
def doctor() -> None:
    """Say what would run here, and why: versions, devices, implementations, models."""
    from importlib.metadata import PackageNotFoundError, version

    import torch
    from wsigen_kernels.dispatch import attention_choice, norm_choice, triton_obstacle, xformers_obstacle

    from wsigen.devices import choose_device

    click.echo(f"wsigen {__version__}, python {sys.version.split()[0]}")
    for package in ("torch", "triton", "xformers", "openslide-python", "pyvips", "zarr", "dask", "tifffile"):
        try:
            click.echo(f"  {package} {version(package)}")
        except PackageNotFoundError:
            click.echo(f"  {package}: not installed")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    click.echo(f"GPUs: {', '.join(gpus) or 'none that torch sees'}")
    click.echo(f"render would use: {choose_device().description}")
    for what, choice in (("attention", attention_choice()), ("group norm", norm_choice())):
        click.echo(f"{what}: {choice.name} ({choice.reason})")
    for package, obstacle in (("triton", triton_obstacle()), ("xformers", xformers_obstacle())):
        click.echo(f"  {package}: {obstacle or 'can run here'}")
    click.echo("models:")
    click.get_current_context().invoke(models)


@main.group()
def mask() -> None:
    """Slide masks: look at one, or write an example."""


@mask.command("info")
@click.argument("file", type=PATH)
@click.option("--model", default="", help="Model whose classes the mask uses.")
def mask_info(file: Path, model: str) -> None:
    """Print size, scale, planes, and nuclei by class of the mask FILE."""
    from wsigen.masks.slide_mask import SlideMask
    from wsigen.models.registry import DEFAULT_MODEL, load_config

    classes = load_config(model or DEFAULT_MODEL).classes
    with SlideMask.open(file, len(classes)) as opened:
        summary = opened.scan()
        scale = f"{opened.mpp:g} um/px" if opened.mpp else "no scale stored"
        click.echo(f"{file}: {opened.width:,} x {opened.height:,} px, {scale}, planes: {', '.join(opened.planes)}")
    for entry, count in zip(classes, summary.nuclei):
        click.echo(f"  {entry.index} {entry.name:<12} {count:>9,} nuclei")
    if summary.tissue_share is not None:
        click.echo(f"  tissue: {summary.tissue_share:.1%} of the slide")
    if summary.hint:
        click.echo(f"  note: {summary.hint}")
    click.echo(f"  sha256 {summary.sha256}")


@mask.command("demo")
@click.option("-o", "--out", type=PATH, default=Path("slide_masks.tif"), show_default=True)
@click.option("--size", type=click.IntRange(64), default=1500, show_default=True, help="Side of the slide, px.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def mask_demo(out: Path, size: int, seed: int, overwrite: bool) -> None:
    """Write a mask of invented colon mucosa: crypts, lamina propria, muscle, glass."""
    from wsigen.masks.demo import write_demo_mask

    write_demo_mask(out, size, size, seed, overwrite=overwrite)
    click.echo(f"wrote {out}; next: wsigen render {out}")


@main.group()
def data() -> None:
    """Training data."""


@data.command("prepare")
@click.option("--source", "sources", multiple=True, required=True, metavar="LAYOUT=FOLDER")
@click.option("-o", "--out", required=True, type=PATH, help="Training folder to write.")
@click.option("--mpp", default=0.5, show_default=True, help="Microns per pixel of the training folder.")
@click.option("--holdout", multiple=True, metavar="NAME", help="Source images for validation. [default: a fixed list]")
@click.option("--webp-quality", type=click.IntRange(1, 100), help="Lossy pictures, for transport. [default: lossless]")
@click.option("--overwrite", is_flag=True, help="Replace an existing training folder.")
def data_prepare(
    sources: tuple[str, ...],
    out: Path,
    mpp: float,
    holdout: tuple[str, ...],
    webp_quality: int | None,
    overwrite: bool,
) -> None:
    """Turn labelled pictures (layouts: lizard, consep, crchisto, folder) into one folder, split by source image."""
    from wsigen.training.prepare import prepare, summarise

    folders: dict[str, str | Path] = {}
    for source in sources:
        layout, separator, folder = source.partition("=")
        if not separator:
            raise SettingsError(f"--source {source}: give LAYOUT=FOLDER, such as lizard=data/lizard")
        folders[layout] = Path(folder)
    prepare(folders, out, mpp=mpp, holdout=list(holdout) or None, webp_quality=webp_quality, overwrite=overwrite)
    for row in summarise(out):
        click.echo(f"{row.source} {row.split}: {row.images} images, {row.pixels / 1e6:.1f} Mpx")
    click.echo(f"wrote {out}; next: wsigen train CONFIG --data {out} -o RUN")


@main.command()
@click.argument("config", type=PATH)
@click.option("--data", "data_folder", required=True, type=PATH, help="Training folder.")
@click.option("-o", "--out", required=True, type=PATH, help="Folder of the run.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting: phases.0.steps=100.")
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]), show_default=True)
@click.option("--minutes", type=click.FloatRange(min=0.0), help="Stop with a checkpoint after so long.")
@click.option("--compile/--no-compile", "compile_model", default=None, help="torch.compile. [default: on a GPU]")
@click.option("--resume", is_flag=True, help="Continue the run in the folder.")
def train(
    config: Path,
    data_folder: Path,
    out: Path,
    overrides: tuple[str, ...],
    device: str,
    minutes: float | None,
    compile_model: bool | None,
    resume: bool,
) -> None:
    """Train a model by the recipe CONFIG (TOML). Start it with torchrun for several GPUs."""
    from wsigen.training.loop import train as run
    from wsigen.training.settings import load_settings

    result = run(
        load_settings(config, overrides),
        data_folder,
        out,
        device=device,
        resume=resume,
        minutes=minutes,
        compile_model=compile_model,
        report=click.echo,
    )
    click.echo(f"step {result.step} of {result.total_steps}, {result.images} images, {result.seconds:.0f} s")


for command in (evaluate, audit, study, distill):
    main.add_command(command)
