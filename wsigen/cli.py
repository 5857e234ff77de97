"""The command line: parse, call one library function, report. Heavy imports stand inside the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from wsigen import __version__
from wsigen.errors import WsigenError


class _Commands(click.Group):
    """A group whose commands end with one clear line and exit code 2 on a WsigenError."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except WsigenError as error:
            click.echo(f"wsigen: {error}", err=True)
            sys.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wsigen")
def main() -> None:
    """Paint synthetic H&E whole-slide images from masks of nuclei."""


@main.group()
def data() -> None:
    """Training data."""


@data.command("prepare")
@click.option(
    "--source", "sources", multiple=True, required=True, metavar="LAYOUT=FOLDER", help="Layouts: see the manual."
)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Training folder to write.")
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
    """Turn labelled pictures of known layouts into one training folder, split by source image."""
    from wsigen.training.prepare import prepare, summarise

    pairs = dict(source.partition("=")[::2] for source in sources)
    prepare(
        {layout: Path(folder) for layout, folder in pairs.items()},
        out,
        mpp=mpp,
        holdout=list(holdout) or None,
        webp_quality=webp_quality,
        overwrite=overwrite,
    )
    for row in summarise(out):
        click.echo(f"{row.source} {row.split}: {row.images} images, {row.pixels / 1e6:.1f} Mpx")


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--data", "data_folder", required=True, type=click.Path(path_type=Path), help="Training folder.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
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
