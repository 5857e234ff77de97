"""`wsigen render`: masks to slides, a record to the same slide, and what a render would do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from wsigen.choices import (
    ATTENTION_BACK_ENDS,
    AUTO,
    DEVICES,
    DTYPES,
    LABEL_FORMATS,
    NORM_BACK_ENDS,
    SLIDE_FORMATS,
)
from wsigen.cli.display import progress_display
from wsigen.cli.opening import gpu_opened_beside
from wsigen.cli.options import PATH, condition_option
from wsigen.diffusion.plans import SAMPLERS
from wsigen.errors import SettingsError

if TYPE_CHECKING:
    from wsigen.rendering.job import RenderResult
    from wsigen.rendering.plan import RenderPlan


@click.command()
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
@condition_option
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
@click.option("--attention", type=click.Choice([AUTO, *ATTENTION_BACK_ENDS]), help="[default: auto]")
@click.option("--norm", type=click.Choice([AUTO, *NORM_BACK_ENDS]), help="Kernels of all but attention. [auto]")
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
    acts = {name: options.pop(name) for name in ("overwrite", "resume", "keep_canvas")}
    if only_plan:
        _show_plan(mask, out, options, check)
        return
    with gpu_opened_beside(options) as opened:
        from wsigen.rendering.job import render as run

        with progress_display() as display:
            stage = display.stage()

            def on_plan(plan: RenderPlan) -> None:
                opened()
                stage.on_plan(plan)

            display.on_check = check
            reports: dict[str, Any] = {"on_plan": on_plan, "on_paint": stage.on_paint, "on_rows": stage.on_rows}
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
    with gpu_opened_beside(options) as opened:
        from wsigen.rendering.many import MANIFEST, render_many

        opened()
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


def _report(result: RenderResult) -> None:
    click.echo(
        f"wrote {result.slide}: {result.width:,} x {result.height:,} px, {result.painted} of {result.windows} windows "
        f"painted in {result.seconds:.0f} s"
    )
    click.echo(f"wrote {result.picture} (the whole slide) and {result.record} (paint it again: wsigen render --from)")
    click.echo(f"next: open {result.slide} in QuPath or any OpenSlide viewer; wsigen info {result.slide}")
