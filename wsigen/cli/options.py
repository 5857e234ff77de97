"""What options of several commands share."""

from collections.abc import Callable
from pathlib import Path

import click

from wsigen.errors import SettingsError

PATH = click.Path(path_type=Path)
STOPPED = 130  # exit code after Ctrl-C, as shells have it


def _conditions(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Values by name from NAME=VALUE."""
    found = {}
    for entry in given:
        name, sign, value = entry.partition("=")
        if not (name and sign):
            raise SettingsError(f"--condition {entry}: give NAME=VALUE, such as organ=colon; wsigen models lists them")
        found[name.strip()] = value.strip()
    return found


def condition_option(command: Callable) -> Callable:
    """Add --condition: values of the conditions of a model that have no option of their own, ``conditions``."""
    return click.option(
        "--condition",
        "conditions",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_conditions,
        help="What else the model is told of the slide.",
    )(command)
