"""wsigen: synthetic H&E whole-slide images from masks of nuclei, painted with NASDM.

What is public here is imported on first use, so that ``import wsigen`` and ``wsigen --help`` stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wsigen.version import __version__

_PUBLIC = {
    "render": "wsigen.rendering.job",
    "RenderResult": "wsigen.rendering.job",
    "open_mask": "wsigen.rendering.plan",
    "render_many": "wsigen.rendering.many",
    "open_generated": "wsigen.rendering.on_demand",
    "verify": "wsigen.rendering.verifying",
    "NasdmModel": "wsigen.models.nasdm",
    "WsigenError": "wsigen.errors",
}
__all__ = [
    "NasdmModel",
    "RenderResult",
    "WsigenError",
    "__version__",
    "open_generated",
    "open_mask",
    "render",
    "render_many",
    "verify",
]

if TYPE_CHECKING:
    from wsigen.errors import WsigenError
    from wsigen.models.nasdm import NasdmModel
    from wsigen.rendering.job import RenderResult, render
    from wsigen.rendering.many import render_many
    from wsigen.rendering.on_demand import open_generated
    from wsigen.rendering.plan import open_mask
    from wsigen.rendering.verifying import verify


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'wsigen' has no attribute {name!r}")
