"""wsigen: synthetic H&E whole-slide images from masks of nuclei, painted with NASDM.

Public names are imported at their first use, so that ``import wsigen`` and ``wsigen --help`` stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wsigen.version import __version__

_PUBLIC = {
    "render": "wsigen.rendering.job",
    "RenderResult": "wsigen.rendering.job",
    "render_many": "wsigen.rendering.many",
    "open_generated": "wsigen.rendering.on_demand",
    "plan_render": "wsigen.rendering.plan",
    "RenderPlan": "wsigen.rendering.plan",
    "open_mask": "wsigen.rendering.plan",
    "verify": "wsigen.rendering.verifying",
    "sample_mask": "wsigen.rendering.mask_job",
    "synthesise": "wsigen.rendering.synthesis",
    "LayoutRequest": "wsigen.rendering.layout_request",
    "RenderSettings": "wsigen.config",
    "StainStyle": "wsigen.models.stain",
    "NasdmModel": "wsigen.networks.nasdm",
    "ImportSettings": "wsigen.masks.importers",
    "import_mask": "wsigen.masks.importers",
    "export_mask": "wsigen.masks.exporters",
    "WsigenError": "wsigen.errors",
}
__all__ = [
    "ImportSettings",
    "LayoutRequest",
    "NasdmModel",
    "RenderPlan",
    "RenderResult",
    "RenderSettings",
    "StainStyle",
    "WsigenError",
    "__version__",
    "export_mask",
    "import_mask",
    "open_generated",
    "open_mask",
    "plan_render",
    "render",
    "render_many",
    "sample_mask",
    "synthesise",
    "verify",
]

if TYPE_CHECKING:
    from wsigen.config import RenderSettings
    from wsigen.errors import WsigenError
    from wsigen.masks.exporters import export_mask
    from wsigen.masks.importers import ImportSettings, import_mask
    from wsigen.models.stain import StainStyle
    from wsigen.networks.nasdm import NasdmModel
    from wsigen.rendering.job import RenderResult, render
    from wsigen.rendering.layout_request import LayoutRequest
    from wsigen.rendering.many import render_many
    from wsigen.rendering.mask_job import sample_mask
    from wsigen.rendering.on_demand import open_generated
    from wsigen.rendering.plan import RenderPlan, open_mask, plan_render
    from wsigen.rendering.synthesis import synthesise
    from wsigen.rendering.verifying import verify


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'wsigen' has no attribute {name!r}")
