"""Commands on slides: `info`, `export`, `verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsigen.choices import SLIDE_FORMATS
from wsigen.cli.display import work_bars
from wsigen.cli.options import PATH

if TYPE_CHECKING:
    from wsigen.slides.info import SlideInfo


@click.command()
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


@click.command()
@click.argument("slide", type=PATH)
@click.option("-o", "--out", required=True, type=PATH, help="File or folder to write.")
@click.option("--format", "kind", type=click.Choice(SLIDE_FORMATS), help="[default: by the ending of OUT]")
@click.option("--jpeg-quality", type=click.IntRange(1, 100), default=90, show_default=True)
@click.option("--patient-id", default="", help="In DICOM. [default: from what painted the slide]")
@click.option("--overwrite", is_flag=True, help="Replace an existing slide.")
def export(slide: Path, out: Path, kind: str | None, jpeg_quality: int, patient_id: str, overwrite: bool) -> None:
    """Write the painted SLIDE in another format: OME-TIFF, plain TIFF, Deep Zoom, OME-Zarr, DICOM."""
    from wsigen.slides.formats import export_slide

    with work_bars() as progress:
        facts = export_slide(
            slide,
            out,
            kind,
            jpeg_quality,
            overwrite,
            progress,
            patient_id,
        )
    click.echo(f"wrote {out}: {facts.width:,} x {facts.height:,} px, {_number(facts.mpp, 'um/px')}")


@click.command()
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
    from wsigen.system.scale import are_square

    if are_square(facts.pixel_sizes):
        return _number(facts.mpp, "um/px")
    return "{:g} x {:g} um/px (width x height)".format(*facts.pixel_sizes)


def _number(value: float | None, unit: str) -> str:
    return "unknown" if value is None else f"{value:g} {unit}"
