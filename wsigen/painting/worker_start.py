"""Dask loads this in the worker processes of this machine as they start: Ctrl-C is for the process that drives them.

A terminal sends it to all; the workers end when their driver has said what is kept.
"""

import signal
from typing import Any


def dask_setup(_worker: Any) -> None:
    """Ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
