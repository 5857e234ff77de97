"""The commands that make synthetic masks: mask sample, mask layout, and synth. Heavy imports stand inside them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsigen.choices import AUTO, DEVICES, DTYPES, LAYOUT_PRESETS
from wsigen.cli.display import progress_display
from wsigen.cli.options import PATH, condition_option, parse_size
from wsigen.errors import SettingsError

if TYPE_CHECKING:
    from wsigen.rendering.layout_request import LayoutRequest
    from wsigen.rendering.mask_job import MaskResult

LAYOUT_HELP = f"{', '.join(LAYOUT_PRESETS)}; or a picture painted in the colours of zones, a mask, or a layout."


def _layout_options(command: Callable) -> Callable:
    """Add the options that say where what lies; the command is called with what they make, ``request``."""

    @wraps(command)
    def requested(source: str, size: str | None, more: tuple[str, ...], seed: int, **options: Any) -> None:
        command(request=_request(source, size, seed, more), **options)

    options = (
        click.option("--layout", "source", default="mixed", show_default=True, help=LAYOUT_HELP),
        click.option("--size", help="Side of the slide in px, or WxH. [default: that of the mask or layout]"),
        click.option("--more", multiple=True, metavar="CLASS=FACTOR", help="Scale a class: neutrophil=3."),
        click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same mask."),
        click.option("--overwrite", is_flag=True, help="Replace what exists."),
    )
    for option in reversed(options):
        requested = option(requested)
    return requested


def _machine_options(command: Callable) -> Callable:
    options = (
        click.option("--batch-size", type=int, help="Windows a call of the model, 2 or more. [default: by device]"),
        click.option("--device", type=click.Choice([AUTO, *DEVICES]), default="auto", show_default=True),
        click.option("--dtype", type=click.Choice([AUTO, *DTYPES]), default="auto"),
        click.option("--workers", type=click.IntRange(1), help="Processes; one a GPU at most. [default: 1]"),
        click.option("--dask-scheduler", metavar="ADDRESS", help="Work on a running Dask cluster: tcp://host:8786."),
        click.option("--resume", is_flag=True, help="Continue what was interrupted."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("sample")
@click.option("-o", "--out", type=PATH, default=Path("slide_masks.tif"), show_default=True)
@_layout_options
@click.option("--model", default="", help="Name of a shipped mask model, or folder of one.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps. [default: the model's]")
@click.option("--guidance-scale", type=float, help="Above 1: nearer to the layout. [default: the model's]")
@click.option("--rect", type=int, nargs=4, metavar="X Y W H", help="Sample only this part.")
@click.option("--window", type=int, help="Side of a window, px. [default: the model's]")
@click.option("--overlap", type=int, help="Pixels that neighbouring windows share. [default: the model's]")
@click.option("--canvas", type=PATH, help="Folder for the store of what is painted. [default: beside the mask]")
@click.option("--keep-canvas", is_flag=True, help="Keep it.")
@_machine_options
def sample(
    out: Path,
    request: LayoutRequest,
    overwrite: bool,
    resume: bool,
    keep_canvas: bool,
    **options: Any,
) -> None:
    """Sample a mask of a tissue that never existed."""
    from wsigen.config import RenderSettings
    from wsigen.rendering.mask_job import sample_mask

    with progress_display() as display:
        stage = display.stage()
        result = sample_mask(
            out,
            request,
            RenderSettings(seed=request.seed, **options),
            overwrite=overwrite,
            resume=resume,
            keep_canvas=keep_canvas,
            on_plan=stage.on_plan,
            on_paint=stage.on_paint,
            on_rows=stage.on_rows,
        )
    _report(result)
    click.echo(f"next: wsigen render {result.mask}")


@click.command("layout")
@click.option("-o", "--out", type=PATH, default=Path("layout.tif"), show_default=True)
@_layout_options
@click.option("--model", default="", help="Model whose classes and scale the layout uses.")
@click.option("--picture", type=PATH, help="Also draw it: glass white, glands green, lumina blue, stroma by density.")
def layout(
    out: Path,
    request: LayoutRequest,
    overwrite: bool,
    model: str,
    picture: Path | None,
) -> None:
    """Write the layout that a mask would be sampled from."""
    from wsigen.models.registry import DEFAULT_MODEL, load_config

    for path in (out, picture):
        if path is not None and path.exists() and not overwrite:
            raise SettingsError(f"{path} exists; replace it with --overwrite, or choose another name")
    made = request.resolve(load_config(model or DEFAULT_MODEL)).save(out)
    counts = ", ".join(f"{count:,.0f} {name}" for name, count in zip(made.classes, made.expected(), strict=True))
    click.echo(f"wrote {out}: {made.width:,} x {made.height:,} px, about {counts} nuclei")
    if picture is not None:
        import pyvips

        pyvips.Image.new_from_array(made.picture()).write_to_file(str(picture))
        click.echo(f"wrote {picture}")


@click.command("synth")
@click.option("-o", "--out", type=PATH, default=Path("slide.svs"), show_default=True, help="Slide to write.")
@_layout_options
@click.option("--mask-model", default="", help="Name of a shipped mask model, or folder of one.")
@click.option("--mask-steps", type=click.IntRange(1, 1000), help="Denoising steps of the mask. [default: its model's]")
@click.option("--model", default="", help="Name of a shipped painter, or folder of one.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps of the slide. [default: its model's]")
@click.option("--style", help="Stain: a style's name (wsigen models), or a picture or slide to measure.")
@condition_option
@_machine_options
def synth(
    out: Path,
    request: LayoutRequest,
    overwrite: bool,
    resume: bool,
    mask_model: str,
    mask_steps: int | None,
    **options: Any,
) -> None:
    """Sample a synthetic mask and paint its slide; no input data is needed."""
    from wsigen.config import RenderSettings
    from wsigen.rendering.synthesis import synthesise

    with progress_display() as display:
        mask, slide = display.stage("the mask"), display.stage("the slide")
        result = synthesise(
            out,
            request,
            RenderSettings(seed=request.seed, **options),
            mask_model=mask_model,
            mask_steps=mask_steps,
            overwrite=overwrite,
            resume=resume,
            on_mask_plan=mask.on_plan,
            on_mask=mask.on_paint,
            on_mask_rows=mask.on_rows,
            on_plan=slide.on_plan,
            on_paint=slide.on_paint,
            on_rows=slide.on_rows,
        )
    _report(result.mask)
    painted = result.slide
    click.echo(f"wrote {painted.slide}: {painted.width:,} x {painted.height:,} px in {painted.seconds:.0f} s")
    click.echo(f"next: open {painted.slide} in QuPath or any OpenSlide viewer; wsigen info {painted.slide}")


def _request(source: str, size: str | None, seed: int, more: tuple[str, ...]) -> LayoutRequest:
    from wsigen.layouts.layout import parse_more
    from wsigen.rendering.layout_request import LayoutRequest

    return LayoutRequest(source, parse_size(size, one_side=True) if size else None, seed, parse_more(more))


def _report(result: MaskResult) -> None:
    counts = ", ".join(f"{count:,} {name}" for name, count in result.nuclei.items())
    if counts:
        click.echo(
            f"wrote {result.mask}: {result.width:,} x {result.height:,} px in {result.seconds:.0f} s; {counts} nuclei; "
            f"{result.dropped:,} shapes unlike nuclei left out"
        )
    else:
        click.echo(f"{result.mask} was there already")
    click.echo(f"its layout: {result.layout}")
