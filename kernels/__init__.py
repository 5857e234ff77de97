"""Attention and group normalisation, each with the fastest implementation that this machine can run.

The package is imported as ``wsigen_kernels``. It works on plain tensors and imports nothing of wsigen.
"""


class BackendError(ValueError):
    """The implementation that was asked for is unknown or cannot run here; the message says why."""
