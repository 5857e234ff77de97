"""The command line: parse, call one library function, report. Heavy imports stand inside the commands."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Any

import click
from wsigen_kernels import BackendError

from wsigen.cli.doctor import doctor, models
from wsigen.cli.mask import mask
from wsigen.cli.measure import audit, evaluate, study
from wsigen.cli.render import render
from wsigen.cli.slide import export, info, verify
from wsigen.cli.synth import layout, sample, synth
from wsigen.cli.train import data, dataset, distill, train
from wsigen.cli.view import view
from wsigen.errors import WsigenError
from wsigen.version import __version__

if TYPE_CHECKING:
    pass

# What the file system refuses where a folder is missing, read-only or full: the user's to mend, not a defect.
MENDABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}


class _Commands(click.Group):
    """A group whose commands end with one clear line and exit code 2 on an error that the user can mend."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (WsigenError, BackendError) as error:
            click.echo(f"wsigen: {error}", err=True)
            sys.exit(2)
        except OSError as error:
            if error.filename is None or error.errno not in MENDABLE:
                raise
            click.echo(f"wsigen: {error.filename}: {error.strerror}; check the path and its permissions", err=True)
            sys.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wsigen")
def main() -> None:
    """Paint synthetic H&E whole-slide images from masks of nuclei."""


for command in (render, info, export, verify, models, doctor, mask, dataset, data, train):
    main.add_command(command)
for command in (evaluate, audit, study, distill, synth, view):
    main.add_command(command)
for command in (sample, layout):
    mask.add_command(command)
