"""What is installed and what would run: `models`, `doctor`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from wsigen.choices import AUTO, DEVICES
from wsigen.version import __version__

if TYPE_CHECKING:
    from wsigen.conditions.contract import Condition


@click.command()
@click.argument("names", metavar="[MODEL]...", nargs=-1)
def models(names: tuple[str, ...]) -> None:
    """List models with their classes, scale, licence and what they are told: those that ship, or folders of others."""
    from wsigen.conditions.registry import conditions_of
    from wsigen.models.config import ModelConfig
    from wsigen.models.registry import DEFAULT_MODEL, find_model, shipped_models

    shipped = shipped_models()
    for folder in [find_model(name) for name in names or shipped]:
        config = ModelConfig.load(folder)
        mark = " (default)" if folder == shipped.get(DEFAULT_MODEL) else ""
        click.echo(f"{config.name} v{config.version}{mark}: {config.description or 'no description'}")
        click.echo(f"  {config.mpp:g} um/px, {config.licence or 'no licence stated'}: {config.terms}")
        click.echo(f"  classes: {', '.join(f'{entry.index} {entry.name}' for entry in config.classes)}")
        click.echo(f"  is told: {'; '.join(_told(condition) for condition in conditions_of(config))}")


def _told(condition: Condition) -> str:
    """A condition, and what may be set where it is asked for."""
    field = condition.form()
    if field is None:
        return condition.name
    allowed = {"text": "any text", "number": f"a number{field.bounds}", "choice": ", ".join(field.choices)}
    return f"{condition.name} ({allowed[field.kind] or 'none named'})"


@click.command()
@click.option("--device", type=click.Choice([AUTO, *DEVICES]), help="Check that rows of a batch are equal.")
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

    from wsigen.models.registry import shipped_models
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
    own = [model] if model and model not in shipped_models() else []
    click.get_current_context().invoke(models, names=(*shipped_models(), *own))
