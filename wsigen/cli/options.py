"""What options of several commands share."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)
STOPPED = 130  # exit code after Ctrl-C, as shells have it
