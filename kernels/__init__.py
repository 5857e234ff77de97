"""Attention and group normalisation behind one door, with the fastest implementation that this machine serves.

Imported as ``wsigen_kernels``. The package knows nothing of wsigen: it works on plain tensors.
"""


class BackendError(ValueError):
    """An implementation was asked for that is unknown, or that cannot run here: one line that says why."""
