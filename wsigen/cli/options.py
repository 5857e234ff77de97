"""What options of several commands share."""

from collections.abc import Callable
from pathlib import Path

import click

from wsigen.choices import AUTO
from wsigen.errors import SettingsError

PATH = click.Path(path_type=Path)
DEVICE = click.Choice([AUTO, "cpu", "cuda"])  # of the commands that measure or train
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


def parse_size(text: str, one_side: bool = False) -> tuple[int, int]:
    """Width and height of `--size`: "46000x32914", or "4096" for a square where ``one_side`` is allowed, in px.

    Raises SettingsError for anything else.
    """
    width, separator, height = text.lower().replace(",", "").partition("x")
    if one_side and not separator:
        height = width
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        side = "the side or " if one_side else ""
        raise SettingsError(f"--size {text}: give {side}WIDTHxHEIGHT in px, such as 4096x2048")
    return int(width), int(height)
