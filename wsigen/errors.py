"""Errors that a user can mend: one line each, naming the file or option, the value and the mend.

The command line prints such an error as that one line and exits with code 2; anything else that is raised is a defect.
"""


class WsigenError(Exception):
    """Base of every error that wsigen raises on purpose."""


class MaskError(WsigenError):
    """A slide mask that cannot be read, or whose values make no sense."""


class ModelError(WsigenError):
    """A model that cannot be found or loaded, or that does not fit the mask."""


class SettingsError(WsigenError):
    """An option or configuration value outside its range."""


class StoreError(WsigenError):
    """A canvas store that is missing, damaged, or belongs to another run."""


class SlideError(WsigenError):
    """A slide that cannot be read or written."""


class DataError(WsigenError):
    """Training data that cannot be used."""


class ClusterError(WsigenError):
    """A Dask cluster that does not answer, has no workers, or went away."""
