"""Commands on training data, and training: `dataset`, `data prepare`, `train`, `distill`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsigen.choices import DATASET_LAYOUTS, TRAINING_DATA_SETS
from wsigen.cli.display import work_bars
from wsigen.cli.options import DEVICE, PATH
from wsigen.errors import SettingsError

if TYPE_CHECKING:
    from wsigen.training.settings import TrainSettings

RECIPES = {"guidance": "guidance", "consistency": "distill", "progressive": "progressive"}  # of the ways to distil
SOLVER_STEPS = (2, 3, 4, 6, 8)


def _run_options(command: Callable) -> Callable:
    """Add the options of a training run, as `_train` takes them."""
    options = (
        click.option("--device", type=DEVICE, default="auto", show_default=True),
        click.option("--minutes", type=click.FloatRange(min=0.0), help="Stop with a checkpoint after so long."),
        click.option(
            "--compile/--no-compile", "compile_model", default=None, help="torch.compile. [default: on a GPU]"
        ),
        click.option("--resume", is_flag=True, help="Continue the run in the folder."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("slides", type=PATH, nargs=-1, required=True)
@click.option("--mask", "masks", type=PATH, multiple=True, required=True, help="Mask of each slide, in their order.")
@click.option("--layout", required=True, type=click.Choice(DATASET_LAYOUTS))
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
@_run_options
def train(config: Path, data_folder: Path, out: Path, overrides: tuple[str, ...], **run: Any) -> None:
    """Train a model by the recipe CONFIG (TOML). Start it with torchrun for several GPUs."""
    from wsigen.training.settings import load_settings

    _train(load_settings(config, overrides), data_folder, out, **run)


@click.command()
@click.option("--method", type=click.Choice(["solver", *RECIPES]), default="consistency", show_default=True)
@click.option("--config", type=PATH, help="Recipe, TOML. [default: the one of the method that ships]")
@click.option("--model", default="", help="Painter to tune. [default: the recipe's]")
@click.option("--data", "data_folder", required=True, type=PATH, help="Training folder.")
@click.option("-o", "--out", required=True, type=PATH, help="Folder of the run.")
@click.option("--guidance-scale", type=float, help="To learn, or to fit for. [default: the painter's]")
@click.option("--steps", type=click.IntRange(2), multiple=True, help="Of the solver. [default: 2, 3, 4, 6, 8]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting: phases.0.steps=100.")
@_run_options
def distill(
    method: str,
    config: Path | None,
    model: str,
    data_folder: Path,
    out: Path,
    guidance_scale: float | None,
    steps: tuple[int, ...],
    overrides: tuple[str, ...],
    **run: Any,
) -> None:
    """Make a painter paint with few calls of its network what it painted with many.

    "solver" leaves the network as it is and fits the few numbers of a solver to it, in minutes; it takes --model,
    --data, --guidance-scale, --steps and --device alone. The other methods train the network: "guidance" to guide
    itself in one call a step, "consistency" and "progressive" to take few steps.
    """
    if method == "solver":
        idle = {"--minutes": run["minutes"], "--compile": run["compile_model"], "--resume": run["resume"]}
        _refuse_idle({"--config": config, "--set": overrides, **idle})
        _fit_solver(model, data_folder, out, steps or SOLVER_STEPS, guidance_scale, run["device"])
        return
    if steps:
        raise SettingsError(
            f"--steps: of --method solver alone; --method {method} takes --set distill.steps={steps[0]}"
        )

    from wsigen.config import shipped_config
    from wsigen.training.settings import load_settings

    changes = [f"initial_model={json.dumps(model)}"] if model else []
    changes += [f"distill.guidance_scale={guidance_scale}"] if guidance_scale is not None else []
    recipe = config or Path(str(shipped_config(f"{RECIPES[method]}.toml")))
    _train(load_settings(recipe, (*changes, *overrides)), data_folder, out, **run)
    click.echo(f"next: wsigen render MASK --model {out}/model")


def _train(
    settings: TrainSettings,
    data: Path,
    out: Path,
    device: str,
    minutes: float | None,
    compile_model: bool | None,
    resume: bool,
) -> None:
    """Train, and print how far it went."""
    from wsigen.training.loop import train

    result = train(
        settings,
        data,
        out,
        device=device,
        resume=resume,
        minutes=minutes,
        compile_model=compile_model,
        report=click.echo,
    )
    click.echo(f"step {result.step} of {result.total_steps}, {result.images} images, {result.seconds:.0f} s")


def _refuse_idle(options: dict[str, Any]) -> None:
    """Refuse options of a training run for a method without one."""
    if given := [name for name, value in options.items() if value not in (None, (), False)]:
        raise SettingsError(f"{given[0]}: has no meaning with --method solver, which trains nothing; leave it out")


def _fit_solver(
    model: str, data: Path, out: Path, steps: tuple[int, ...], guidance_scale: float | None, device: str
) -> None:
    from wsigen.evaluation.solver import fit_painter
    from wsigen.models.registry import DEFAULT_MODEL
    from wsigen.system.devices import choose_device

    fit_painter(model or DEFAULT_MODEL, data, out, steps, choose_device(device), guidance_scale, report=click.echo)
    click.echo(f"next: wsigen render MASK --model {out} --steps {steps[0]}")
