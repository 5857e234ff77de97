"""The formats of data sets that can be prepared, by the name that the command line takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wsigen.training.data.conic import conic
from wsigen.training.data.consep import consep
from wsigen.training.data.crchisto import crchisto
from wsigen.training.data.lizard import lizard
from wsigen.training.data.own_folder import own_folder
from wsigen.training.data.pannuke import pannuke
from wsigen.training.data.source import DataSet

DATA_SETS: dict[str, Callable[[Path], DataSet]] = {
    "lizard": lizard,
    "consep": consep,
    "crchisto": crchisto,
    "conic": conic,
    "pannuke": pannuke,
    "folder": own_folder,
}
