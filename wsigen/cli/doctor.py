"""What is installed and what would run: `models`, `doctor`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from wsigen.version import __version__

if TYPE_CHECKING:
    pass


@click.command()
def models() -> None:
    """List the models that ship, with their classes, scale, styles, conditions and licence."""
    from wsigen.models.config import ModelConfig
    from wsigen.models.registry import DEFAULT_MODEL, shipped_models

    for name, folder in shipped_models().items():
        config = ModelConfig.load(folder)
        mark = " (default)" if name == DEFAULT_MODEL else ""
        click.echo(f"{name} v{config.version}{mark}: {config.description or 'no description'}")
        click.echo(f"  {config.mpp:g} um/px, {config.licence or 'no licence stated'}: {config.terms}")
        click.echo(f"  classes: {', '.join(f'{entry.index} {entry.name}' for entry in config.classes)}")
        click.echo(f"  styles: {', '.join(style.name for style in config.styles)}")
        click.echo(f"  conditions: {', '.join(config.conditions)}")


@click.command()
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
