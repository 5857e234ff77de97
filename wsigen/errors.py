"""Errors that a user can correct. Each message is one line with the file or option, the value, and what to do.

The command line prints that line and exits with code 2. Any other exception is a defect of wsigen.
"""


class WsigenError(Exception):
    """Base class of all errors that a user can correct."""


class MaskError(WsigenError):
    """A slide mask cannot be read, or has values outside of their range."""


class ModelError(WsigenError):
    """A model cannot be found or loaded, or does not fit the mask."""


class SettingsError(WsigenError):
    """An option or setting is unknown or outside of its range."""


class StoreError(WsigenError):
    """A canvas store is missing or damaged, or belongs to another run."""


class SlideError(WsigenError):
    """A slide cannot be read or written."""


class DataError(WsigenError):
    """Training data cannot be used."""


class ClusterError(WsigenError):
    """A Dask cluster does not answer, has no workers, or was lost."""
