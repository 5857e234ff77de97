"""The command line: parse, call one library function, report. Heavy imports stand inside the commands."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from wsigen_kernels import BackendError

from wsigen.choices import AUTO, DEVICES, DTYPES, LABEL_FORMATS, SAMPLERS, SLIDE_FORMATS
from wsigen.cli.measure import audit, distill, evaluate, study
from wsigen.cli.synth import layout, sample, synth
from wsigen.cli.view import view_command
from wsigen.errors import SettingsError, WsigenError
from wsigen.masks.origin import ORIGIN_HELP, Origin
from wsigen.version import __version__

if TYPE_CHECKING:
    from wsigen.painting.scheduler import Progress
    from wsigen.rendering.job import RenderResult
    from wsigen.rendering.many import SlideEntry
    from wsigen.rendering.plan import RenderPlan
    from wsigen.rendering.synthesis import MaskPlan
    from wsigen.slides.info import SlideInfo

# What the file system refuses where a folder is missing, read-only or full: the user's to mend, not a defect.
MENDABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}
STOPPED = 130  # exit code after Ctrl-C, as shells have it
PATH = click.Path(path_type=Path)


class _Commands(click.Group):
    """A group whose commands end with one clear line and exit code 2 on an error that the user can mend."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (WsigenError, BackendError) as error:
            click.echo(f"wsigen: {error}", err=True)
            sys.exit(2)
        except OSError as error:
            if error.filename is None or error.errno not in MENDABLE:
                raise
            click.echo(f"wsigen: {error.filename}: {error.strerror}; check the path and its permissions", err=True)
            sys.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wsigen")
def main() -> None:
    """Paint synthetic H&E whole-slide images from masks of nuclei."""


@main.command()
@click.argument("masks", type=PATH, nargs=-1)
@click.option(
    "-o", "--out", type=PATH, help="Slide to write: .svs, .ome.tiff, ..; with many a folder. [default: beside the mask]"
)
@click.option(
    "--from", "record", type=PATH, help="Paint the slide of this slide.json again; MASK and --model where they moved."
)
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be done and what it needs; touch nothing.")
@click.option("--model", default="", help="Name of a shipped model, or folder of one.")
@click.option("--style", help="Stain: a style's name (wsigen models), or a picture or slide to measure.")
@click.option("--styles", help="Paint every mask in each of these styles: all, or names with commas.")
@click.option("--seed", type=int, help="Same seed, same slide. [default: 0]")
@click.option("--seeds", help="Paint every mask with each of these seeds: 0-9, or numbers with commas.")
@click.option("--rect", type=int, nargs=4, metavar="X Y W H", help="Paint only this part: level-0 pixels.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps. [default: the model's]")
@click.option("--sampler", type=click.Choice(SAMPLERS), help="[default: the model's]")
@click.option("--guidance-scale", type=float, help="Classifier-free guidance; 1 is off. [default: the model's]")
@click.option("--window", type=int, help="Side of a window, px. [default: the model's]")
@click.option("--overlap", type=int, help="Pixels that neighbouring windows share. [default: the model's]")
@click.option("--batch-size", type=int, help="Windows a call of the model, 2 or more. [default: by device]")
@click.option("--device", type=click.Choice([AUTO, *DEVICES]), default="auto", show_default=True)
@click.option("--dtype", type=click.Choice([AUTO, *DTYPES]), default="auto")
@click.option("--attention", type=click.Choice(["auto", "triton", "torch", "xformers"]), help="[default: auto]")
@click.option("--norm", type=click.Choice(["auto", "triton", "torch"]), help="Kernels of all but attention. [auto]")
@click.option("--workers", type=click.IntRange(1), help="Processes; one a GPU at most. [default: 1]")
@click.option("--dask-scheduler", metavar="ADDRESS", help="Paint on a running Dask cluster: tcp://host:8786.")
@click.option("--canvas", type=PATH, help="Folder for the store of painted pixels. [default: beside the slide]")
@click.option("--jpeg-quality", type=click.IntRange(1, 100), help="[default: 87]")
@click.option("--format", type=click.Choice(SLIDE_FORMATS), help="[default: by the name of the slide, else svs]")
@click.option("--labels", type=click.Choice(LABEL_FORMATS), help="Write the nuclei beside the slide.")
@click.option("--patient-id", default="", help="In DICOM. [default: from what painted the slide]")
@click.option("--overwrite", is_flag=True, help="Replace an existing slide or unfinished render.")
@click.option("--resume", is_flag=True, help="Continue an unfinished render; with many, skip finished slides.")
@click.option("--keep-canvas", is_flag=True, help="Keep the store of painted pixels.")
@click.option("--timings", is_flag=True, help="Say in the end where the time went.")
def render(
    masks: tuple[Path, ...],
    out: Path | None,
    record: Path | None,
    only_plan: bool,
    styles: str | None,
    seeds: str | None,
    timings: bool,
    **options: Any,
) -> None:
    """Paint the slides of MASKS: H&E slides with all levels that any slide viewer opens."""
    _choose_back_ends(options.pop("attention"), options.pop("norm"))
    if record is not None:
        _render_again(masks, out, record, only_plan, timings, options)
    elif not masks:
        raise SettingsError("render: give a MASK, or --from slide.json")
    elif len(masks) > 1 or styles or seeds:
        if timings:
            raise SettingsError("--timings: for one slide; with many, manifest.csv has the seconds of each")
        _render_many(masks, out, only_plan, styles, seeds, options)
    else:
        _render_one(masks[0], out, only_plan, timings, options)


# What a record settles and an option may still change: where the model lies, the device (of another kind it is refused,
# as the pixels would differ), and the slide's JPEG quality.
FREE_BESIDE_A_RECORD = {"model", "device", "jpeg_quality"}


def _render_again(
    masks: tuple[Path, ...], out: Path | None, path: Path, only_plan: bool, timings: bool, options: dict[str, Any]
) -> None:
    """Paint the slide of a record; options beside it count, and those that would change its pixels are refused."""
    from wsigen.rendering.records import SlideRecord

    if len(masks) > 1:
        raise SettingsError(f"--from {path}: paints one slide; name its mask alone, or none where it has not moved")
    record = SlideRecord.read(path)
    given = _given_options()
    settled = record.settings.keys() - FREE_BESIDE_A_RECORD | {"styles", "seeds"}
    if refused := [name for name in given if name in settled]:
        names = " and ".join("--" + name.replace("_", "-") for name in refused)
        raise SettingsError(f"{names}: would change the pixels that --from {path} paints again; leave out one of both")
    settings = options | {name: value for name, value in record.settings.items() if name not in given}
    settings["model"] = options["model"] or record.find_model()
    mask = masks[0] if masks else record.find_mask()
    _render_one(mask, out, only_plan, timings, settings, lambda plan: record.check(plan.run))


def _given_options() -> list[str]:
    """Names of the options and arguments that stand on the command line."""
    context = click.get_current_context()
    return [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]


def _render_one(
    mask: Path,
    out: Path | None,
    only_plan: bool,
    timings: bool,
    options: dict[str, Any],
    check: Callable[[RenderPlan], None] = lambda plan: None,
) -> None:
    from wsigen.rendering.job import render as run

    acts = {name: options.pop(name) for name in ("overwrite", "resume", "keep_canvas")}
    if only_plan:
        _show_plan(mask, out, options, check)
        return
    with progress_display() as display:
        display.on_check = check
        reports: dict[str, Any] = {"on_plan": display.on_plan, "on_paint": display.on_paint, "on_rows": display.on_rows}
        result = run(mask, out, **acts, **reports, **options)
    _report(result)
    if timings:
        for name, value in result.timings.items():
            click.echo(f"{name}: {value:.1%}" if name == "idle_share" else f"{name}: {value:.2f} s")


def _show_plan(mask: Path, out: Path | None, options: dict[str, Any], check: Callable[[RenderPlan], None]) -> None:
    """Print what a render would do and need; raises SettingsError if it does not fit."""
    from wsigen.config import RenderSettings
    from wsigen.painting.estimate import measured_seconds, refuse_what_does_not_fit
    from wsigen.rendering.plan import plan_render

    plan = plan_render(mask, out, RenderSettings(**options))
    for line in plan.describe():
        click.echo(line)
    check(plan)
    seconds = None if plan.scheduler else measured_seconds(plan.spec, plan.projection.batches, plan.workers)
    for line in plan.projection.describe(seconds):
        click.echo(line)
    refuse_what_does_not_fit(plan.projection, plan.spec, plan.canvas, plan.out, plan.workers)
    click.echo(f"fits; would write {plan.out}")


def _render_many(
    masks: tuple[Path, ...],
    out: Path | None,
    only_plan: bool,
    styles: str | None,
    seeds: str | None,
    options: dict[str, Any],
) -> None:
    from wsigen.rendering.many import MANIFEST, render_many

    if out is None:
        raise SettingsError("render: many slides go to a folder; name it with -o")
    if out.suffix.lower() == ".svs":
        raise SettingsError(f"-o {out}: many slides go to a folder, not to one file")
    one_seed, one_style = options.pop("seed"), options.pop("style")
    if (seeds and one_seed is not None) or (styles and one_style):
        raise SettingsError("render: give --seed or --seeds, --style or --styles, not both")
    chosen_seeds = _numbers("--seeds", seeds) if seeds else [one_seed or 0]
    chosen_styles = [part.strip() for part in styles.split(",")] if styles else [one_style] if one_style else []
    rect = options.pop("rect")
    if rect:
        raise SettingsError("--rect: for one slide; leave it out with many")
    if only_plan:
        raise SettingsError("--plan: for one slide; a series needs as much for each, one after the other")
    with progress_display() as display:
        entries = render_many(
            masks,
            out,
            seeds=chosen_seeds,
            styles=chosen_styles,
            on_plan=display.on_plan_of_many,
            on_slide=display.on_slide,
            on_windows=display.on_windows,
            **options,
        )
    done = sum(entry.status == "done" for entry in entries)
    failed = [entry for entry in entries if entry.status == "failed"]
    click.echo(f"wrote {done} of {len(entries)} slides to {out}; {out / MANIFEST} lists them")
    for entry in failed:
        click.echo(f"wsigen: {entry.slide}: {entry.error}", err=True)
    if failed:
        sys.exit(2)


def _numbers(option: str, text: str) -> list[int]:
    """Numbers from "0-9" or "1,5,7-8"."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise SettingsError(f"{option} {text}: give numbers and ranges, such as 0-9 or 1,5,7-8")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _choose_back_ends(attention: str | None, norm: str | None) -> None:
    """Set the variables that force an implementation, before what reads them is imported, here and in workers."""
    for variable, value in (("WSIGEN_ATTENTION", attention), ("WSIGEN_NORM", norm)):
        if value:
            os.environ[variable] = value


class Display:
    """Lines and progress bars of a render, or of a mask that is sampled."""

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
        self.plan: RenderPlan | MaskPlan | None = None
        self.kept: Path | None = None  # what an interrupted run leaves
        self.interrupted = False
        self.on_check: Callable[[Any], None] = lambda plan: None
        self.painting: Any = None
        self.encoding: Any = None

    def on_plan(self, plan: RenderPlan | MaskPlan) -> None:
        """Print what is about to happen, and begin new bars."""
        self.plan, self.kept = plan, plan.canvas
        self.painting = self.encoding = None
        for line in plan.describe():
            self.console.print(line, markup=False)
        self.on_check(plan)

    def on_paint(self, progress: Progress) -> None:
        """Move the bar of windows."""
        self._raise_if_interrupted()
        if self.painting is None:
            self.painting = self.bars.add_task("painting", total=progress.total, speed="", completed=progress.resumed)
            self.bars.start()
        elapsed = self.bars.tasks[self.painting].elapsed or 0.0
        speed = f"{progress.painted / elapsed:.1f} windows/s" if elapsed > 0 and progress.painted else ""
        self.bars.update(self.painting, completed=progress.done, speed=speed)

    def on_rows(self, rows: int) -> None:
        """Move the bar of encoded rows."""
        self._raise_if_interrupted()
        assert self.plan is not None
        if self.encoding is None:
            self.encoding = self.bars.add_task("encoding", total=self.plan.height, speed="rows")
        self.bars.update(self.encoding, completed=rows)

    def on_plan_of_many(self, plan: RenderPlan) -> None:
        """Print which slide of a series begins."""
        self.kept = plan.out.parent
        self.console.print(f"{plan.out.name}: {plan.projection.painted:,} windows to paint", markup=False)
        if note := plan.config.stain_note(plan.spec.style):
            self.console.print(f"note: {note}", markup=False)

    def on_slide(self, entry: SlideEntry, ended: int, total: int) -> None:
        """Move the bar of slides."""
        self._raise_if_interrupted()
        self.console.print(f"{entry.slide}: {entry.status} {entry.error}".rstrip(), markup=False)
        if self.encoding is None:
            self.encoding = self.bars.add_task("slides", total=total, speed="")
            self.bars.start()
        self.bars.update(self.encoding, completed=ended)

    def on_windows(self, windows: int) -> None:
        """Count windows of a series."""
        self._raise_if_interrupted()
        if self.painting is None:
            self.painting = self.bars.add_task("windows", total=None, speed="")
            self.bars.start()
        self.bars.update(self.painting, completed=windows)

    def on_signal(self, _signal: int, _frame: object) -> None:
        """Ctrl-C: at once while nothing is painted, or the second time; else at the next report, a moment later.

        An exception from a signal handler is lost where it meets a destructor or a callback: the render would go on.
        """
        painting, again = self.painting is not None, self.interrupted
        self.interrupted = True
        if again or not painting:
            raise KeyboardInterrupt

    def _raise_if_interrupted(self) -> None:
        if self.interrupted:
            raise KeyboardInterrupt


@contextmanager
def progress_display() -> Iterator[Display]:
    """Show progress; on Ctrl-C say what is kept and how to go on."""
    display = Display()
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not where the shell told the process to ignore it
        signal.signal(signal.SIGINT, display.on_signal)
    try:
        yield display
        display._raise_if_interrupted()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut the last words off
        display.bars.stop()
        if display.kept is not None and display.kept.exists():
            click.echo(f"stopped; what is painted is kept in {display.kept}: the same command with --resume goes on")
        else:
            click.echo("stopped; nothing was written")
        sys.exit(STOPPED)
    finally:
        display.bars.stop()
        signal.signal(signal.SIGINT, before)


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
    from wsigen.slides.reading import describe_slide

    facts = describe_slide(slide)
    click.echo(f"{slide}: {facts.width:,} x {facts.height:,} px, {facts.vendor or 'unknown vendor'}")
    click.echo(f"scale: {_scale(facts)}, objective {_number(facts.objective_power, 'x')}")
    if facts.bounds:
        x, y, width, height = facts.bounds
        click.echo(f"bounds: {width:,} x {height:,} px at ({x}, {y}); QuPath counts from there")
    sizes = ", ".join(f"{level.width} x {level.height}" for level in facts.levels)
    click.echo(f"levels: {len(facts.levels)} ({sizes})")
    pictures = ", ".join(f"{name} {width} x {height}" for name, (width, height) in facts.associated.items())
    click.echo(f"associated pictures: {pictures or 'none'}")
    if facts.synthetic:
        click.echo("synthetic: " + ", ".join(f"{key} {value}" for key, value in facts.provenance.items()))
    else:
        click.echo("synthetic: not marked as such")


@main.command()
@click.argument("slide", type=PATH)
@click.option("-o", "--out", required=True, type=PATH, help="File or folder to write.")
@click.option("--format", "kind", type=click.Choice(SLIDE_FORMATS), help="[default: by the ending of OUT]")
@click.option("--jpeg-quality", type=click.IntRange(1, 100), default=90, show_default=True)
@click.option("--patient-id", default="", help="In DICOM. [default: from what painted the slide]")
@click.option("--overwrite", is_flag=True, help="Replace an existing slide.")
def export(slide: Path, out: Path, kind: str | None, jpeg_quality: int, patient_id: str, overwrite: bool) -> None:
    """Write the painted SLIDE in another format: OME-TIFF, plain TIFF, Deep Zoom, OME-Zarr, DICOM."""
    from wsigen.slides.formats import export_slide

    with _shares() as progress:
        facts = export_slide(
            slide,
            out,
            kind,
            jpeg_quality,
            overwrite,
            lambda rows, total: progress("encoding", rows / total),
            patient_id,
        )
    click.echo(f"wrote {out}: {facts.width:,} x {facts.height:,} px, {_number(facts.mpp, 'um/px')}")


@main.command()
@click.argument("slide", type=PATH)
@click.option("--mask", required=True, type=PATH, help="Mask that the slide was painted from.")
@click.option("--record", type=PATH, help="Record of the slide. [default: the .json beside it]")
@click.option("--model", help="Folder of the model, where it is not where the record says.")
@click.option("--windows", default=20, show_default=True, type=click.IntRange(1), help="Windows to paint again.")
@click.option("--seed", default=0, show_default=True, help="Chooses the windows.")
def verify(slide: Path, mask: Path, record: Path | None, model: str | None, windows: int, seed: int) -> None:
    """Prove that SLIDE holds what its record says: paint random windows again and compare."""
    from wsigen.rendering.verifying import verify as run

    settings = {"model": model} if model else {}
    checks = run(slide, mask, record=record, windows=windows, seed=seed, **settings)
    wrong = [check for check in checks if not check.equal]
    for check in wrong:
        i, j = check.window
        click.echo(f"window ({i}, {j}): differs by {check.difference:.2f} of 255 on average")
    if wrong:
        click.echo(f"wsigen: {slide}: {len(wrong)} of {len(checks)} windows are not what the record paints", err=True)
        sys.exit(1)
    worst = max(check.difference for check in checks)
    click.echo(f"{slide}: {len(checks)} windows painted again, all equal up to JPEG (at most {worst:.2f} of 255)")


def _scale(facts: SlideInfo) -> str:
    from wsigen.masks.scale import are_square

    if are_square(facts.pixel_sizes):
        return _number(facts.mpp, "um/px")
    return "{:g} x {:g} um/px (width x height)".format(*facts.pixel_sizes)


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
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Check that rows of a batch are equal."
)
@click.option("--model", help="Model to check with.")
@click.option("--batch-size", type=int, help="Windows of a batch to check with.")
@click.option("--dtype", default="auto", help="Number format to check with.")
def doctor(device: str | None, model: str | None, batch_size: int | None, dtype: str) -> None:
    """Show versions, devices, models, and which implementations a render would use.

    With --device every operation of the model is tried there: the pixels of a window must not depend on its row in a
    batch. Operations that would break this are listed, with the way in which they are computed instead.
    """
    from importlib.metadata import PackageNotFoundError, version

    import torch
    from wsigen_kernels.dispatch import attention_choice, norm_choice, triton_obstacle, xformers_obstacle

    from wsigen.system.devices import choose_device

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
    if device is not None:
        from wsigen.config import RenderSettings
        from wsigen.rendering.checking import check_rows

        for line in check_rows(RenderSettings(model=model or "", device=device, dtype=dtype, batch_size=batch_size)):
            click.echo(line)
    click.echo("models:")
    click.get_current_context().invoke(models)


@main.group()
def mask() -> None:
    """Slide masks: import cells into one, sample one, export its nuclei, look at one, or write an example."""


@mask.command("import")
@click.argument("source", type=PATH)
@click.option("-o", "--out", type=PATH, default=Path("slide_masks.tif"), show_default=True)
@click.option("--class-map", "class_maps", multiple=True, metavar="MAP", help="Built-in map, .toml, or THEIRS=OURS.")
@click.option("--unknown", type=click.Choice(["refuse", "skip"]), default="refuse", show_default=True)
@click.option("--tissue", type=PATH, help="Tissue: outlines or a label image, SOURCE itself or another file.")
@click.option("--like", type=PATH, help="Slide whose size and scale the mask takes.")
@click.option("--size", metavar="WxH", help="Size of the slide, px. [default: the source's, or up to its last object]")
@click.option("--mpp", type=click.FloatRange(min=0, min_open=True), help="Microns per pixel of the slide.")
@click.option("--table", type=PATH, help="CSV or JSON of the classes of a label image's ids.")
@click.option("--image", help="Picture or channel to take, where SOURCE has several (COCO, OME-Zarr, label TIFF).")
@click.option("--outlines", type=click.Choice(["edges", "centres"]), help="Where outlines run. [default: by format]")
@click.option("--origin", type=click.Choice([*map(str, Origin)]), default="auto", show_default=True, help=ORIGIN_HELP)
@click.option("--allow-empty", is_flag=True, help="Write a mask also where SOURCE gives no nuclei.")
@click.option("--model", default="", help="Model whose classes the mask uses.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def mask_import(
    source: Path,
    out: Path,
    class_maps: tuple[str, ...],
    unknown: str,
    tissue: Path | None,
    like: Path | None,
    size: str | None,
    mpp: float | None,
    table: Path | None,
    image: str | None,
    outlines: str | None,
    origin: str,
    allow_empty: bool,
    model: str,
    overwrite: bool,
) -> None:
    """Write a slide mask of the cells in SOURCE.

    SOURCE: QuPath GeoJSON (.gz too), HoVer-Net JSON or .mat, CellViT JSON or GeoJSON, TIAToolbox .db, Lizard or CoNSeP
    .mat, COCO JSON, ImageScope or ASAP XML, OME-Zarr labels, label TIFF or PNG. Its format is recognised from its
    content.
    """
    from wsigen.masks.importers import ImportSettings, import_mask
    from wsigen.models.registry import DEFAULT_MODEL, load_config

    slide = _slide_like(like) if like else None
    settings = ImportSettings(
        classes=load_config(model or DEFAULT_MODEL).classes.names,
        class_maps=class_maps,
        skip_unknown=unknown == "skip",
        tissue=tissue,
        table=table,
        image=image,
        pixel_centres=None if outlines is None else outlines == "centres",
        size=_parse_size(size) if size else (slide.width, slide.height) if slide else None,
        mpp=mpp or (slide.mpp if slide else None),
        bounds=slide.bounds[:2] if slide and slide.bounds else None,
        origin=Origin(origin),
        allow_empty=allow_empty,
    )
    with _shares() as progress:
        report = import_mask(source, out, settings, overwrite=overwrite, progress=progress)
    for line in report.describe():
        click.echo(line)
    click.echo(f"next: wsigen render {out}")


@mask.command("export")
@click.argument("file", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, help=".geojson, .db, .json (COCO) or .ome.zarr.")
@click.option("--format", "kind", type=click.Choice(LABEL_FORMATS), help="[default: by ending]")
@click.option("--like", type=PATH, help="Slide that the nuclei are for: its bounds decide what QuPath counts from.")
@click.option("--origin", type=click.Choice([*map(str, Origin)]), default="auto", show_default=True, help=ORIGIN_HELP)
@click.option("--model", default="", help="Model whose classes the mask uses.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def mask_export(
    file: Path, out: Path, kind: str | None, like: Path | None, origin: str, model: str, overwrite: bool
) -> None:
    """Write the nuclei of the mask FILE for QuPath, TIAToolbox, COCO's tools or OME-Zarr viewers."""
    from wsigen.masks.exporters import Target, export_mask
    from wsigen.masks.importers.report import counted_from_bounds
    from wsigen.models.registry import DEFAULT_MODEL, load_config

    classes = load_config(model or DEFAULT_MODEL).classes
    facts = _slide_like(like) if like else None
    target = Target(facts.path, (facts.width, facts.height), facts.bounds and facts.bounds[:2]) if facts else None
    with _shares() as progress:
        report = export_mask(file, out, classes, kind, overwrite, progress, target, Origin(origin))
    if report.offset != (0, 0):
        click.echo(counted_from_bounds("outlines", report.offset))
    regions = f" and {report.regions:,} tissue regions" if report.regions else ""
    click.echo(f"wrote {report.out}: {report.nuclei:,} nuclei{regions}")


def _slide_like(slide: Path) -> SlideInfo:
    """The slide of --like; refused where its pixels are not square, since a mask has one scale."""
    from wsigen.masks.scale import square_mpp
    from wsigen.slides.reading import describe_slide

    facts = describe_slide(slide)
    square_mpp(slide, facts.pixel_sizes)
    return facts


def _parse_size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().replace(",", "").partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise SettingsError(f"--size {text}: give WIDTHxHEIGHT in pixels, such as 46000x32914")
    return int(width), int(height)


@contextmanager
def _shares() -> Iterator[Callable[[str, float], None]]:
    """A progress bar for work that reports what it does and which share of it is done."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=console, transient=True) as bars:

        def show(what: str, share: float) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=1.0)
            bars.update(tasks[what], completed=share)

        try:
            yield show
        except KeyboardInterrupt:
            bars.stop()
            click.echo("stopped; nothing was written")
            sys.exit(STOPPED)


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


@main.command()
@click.argument("slides", type=PATH, nargs=-1, required=True)
@click.option("--mask", "masks", type=PATH, multiple=True, required=True, help="Mask of each slide, in their order.")
@click.option("--layout", required=True, type=click.Choice(["hovernet", "conic", "pannuke", "stardist", "coco"]))
@click.option("-o", "--out", required=True, type=PATH, help="Folder to write.")
@click.option("--patch", type=click.IntRange(16, 8192), help="Side of a patch, px. [default: 540 hovernet, else 256]")
@click.option("--stride", type=click.IntRange(1), help="Pixels from patch to patch. [default: the side]")
@click.option("--split", default="train=0.8,val=0.2", show_default=True, help="Sides and their shares.")
@click.option("--split-by", type=click.Choice(["region", "slide"]), default="region", show_default=True)
@click.option("--region", type=click.IntRange(16), help="Side of a region of the split, px. [default: up to 2048]")
@click.option("--min-nuclei", type=click.IntRange(0), default=1, show_default=True, help="In a patch.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split.")
@click.option("--model", default="", help="Model whose classes the masks use.")
@click.option("--overwrite", is_flag=True, help="Replace an existing data set.")
def dataset(
    slides: tuple[Path, ...], masks: tuple[Path, ...], out: Path, model: str, overwrite: bool, **options: Any
) -> None:
    """Cut SLIDES into training patches with labels, as HoVer-Net, CoNIC, PanNuke, StarDist or COCO have them."""
    from wsigen.dataset.cutting import DatasetSettings, write_dataset
    from wsigen.models.registry import DEFAULT_MODEL, load_config

    classes = load_config(model or DEFAULT_MODEL).classes
    with _shares() as progress:
        report = write_dataset(slides, masks, out, classes, DatasetSettings(**options), overwrite, progress)
    for name, count in report.patches.items():
        click.echo(f"{name}: {count:,} patches, {report.nuclei.get(name, 0):,} nuclei")
    click.echo(f"wrote {out} and {out / 'manifest.csv'}; {report.empty:,} patches without enough nuclei left out")


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
    """Turn labelled pictures into one folder, split by source image.

    Layouts: lizard, consep, crchisto, conic, pannuke, folder.
    """
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


for command in (evaluate, audit, study, distill, synth, view_command(_shares)):
    main.add_command(command)
for command in (sample, layout):
    mask.add_command(command)
