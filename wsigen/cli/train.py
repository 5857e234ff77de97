"""Commands on training data, and training: `dataset`, `data prepare`, `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsigen.choices import TRAINING_DATA_SETS
from wsigen.cli.display import work_bars
from wsigen.cli.options import PATH
from wsigen.errors import SettingsError


@click.command()
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
    with work_bars() as progress:
        report = write_dataset(slides, masks, out, classes, DatasetSettings(**options), overwrite, progress)
    for name, count in report.patches.items():
        click.echo(f"{name}: {count:,} patches, {report.nuclei.get(name, 0):,} nuclei")
    click.echo(f"wrote {out} and {out / 'manifest.csv'}; {report.empty:,} patches without enough nuclei left out")


@click.group()
def data() -> None:
    """Training data."""


@data.command("prepare")
@click.option(
    "--source",
    "sources",
    multiple=True,
    required=True,
    metavar="LAYOUT=FOLDER",
    help=f"Layouts: {', '.join(TRAINING_DATA_SETS)}.",
)
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
    """Turn labelled pictures into one folder, split by source image."""
    from wsigen.training.data.summary import summarise
    from wsigen.training.prepare import prepare

    folders: dict[str, str | Path] = {}
    for source in sources:
        layout, separator, folder = source.partition("=")
        if not separator:
            raise SettingsError(f"--source {source}: give LAYOUT=FOLDER, such as lizard=data/lizard")
        folders[layout] = Path(folder)
    with work_bars() as progress:
        prepare(folders, out, mpp, list(holdout) or None, webp_quality, overwrite=overwrite, progress=progress)
    for row in summarise(out):
        click.echo(f"{row.source} {row.split}: {row.images} images, {row.pixels / 1e6:.1f} Mpx")
    click.echo(f"wrote {out}; next: wsigen train CONFIG --data {out} -o RUN")


@click.command()
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
