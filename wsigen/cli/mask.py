"""`wsigen mask`: import cells, export nuclei, look at a mask, write an example."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsigen.choices import LABEL_FORMATS
from wsigen.cli.display import work_bars
from wsigen.cli.options import PATH, parse_size
from wsigen.masks.origin import ORIGIN_HELP, Origin

if TYPE_CHECKING:
    from wsigen.slides.info import SlideInfo


@click.group()
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
        size=parse_size(size) if size else (slide.width, slide.height) if slide else None,
        mpp=mpp or (slide.mpp if slide else None),
        bounds=slide.bounds[:2] if slide and slide.bounds else None,
        origin=Origin(origin),
        allow_empty=allow_empty,
    )
    with work_bars() as progress:
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
    with work_bars() as progress:
        report = export_mask(file, out, classes, kind, overwrite, progress, target, Origin(origin))
    if report.offset != (0, 0):
        click.echo(counted_from_bounds("outlines", report.offset))
    regions = f" and {report.regions:,} tissue regions" if report.regions else ""
    click.echo(f"wrote {report.out}: {report.nuclei:,} nuclei{regions}")


def _slide_like(slide: Path) -> SlideInfo:
    """The slide of --like; refused where its pixels are not square, since a mask has one scale."""
    from wsigen.slides.reading import describe_slide
    from wsigen.system.scale import square_mpp

    facts = describe_slide(slide)
    square_mpp(slide, facts.pixel_sizes)
    return facts


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
    from wsigen.masks.demo.mask import write_demo_mask

    write_demo_mask(out, size, size, seed, overwrite=overwrite)
    click.echo(f"wrote {out}; next: wsigen render {out}")
