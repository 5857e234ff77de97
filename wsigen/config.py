"""Settings of a render: frozen, typed, with every default in configs/render.toml and its reason beside it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsigen.models.stain import StainStyle


def shipped_config(name: str) -> Traversable:
    """A file of configs/, such as "render.toml", as it ships with the package."""
    try:
        return resources.files("wsigen.configs").joinpath(name)
    except ModuleNotFoundError:  # run from a checkout, as python -m wsigen in it does: configs/ stands beside wsigen/
        return Path(__file__).parents[1] / "configs" / name


@cache
def render_defaults() -> dict[str, Any]:
    """Read the defaults that ship with the package."""
    return tomllib.loads(shipped_config("render.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class RenderSettings:
    """What a user may choose for a render; None takes the default of the model, or of the device."""

    model: str = ""  # name of a shipped model or path of a model folder; "" for the default one
    style: str | StainStyle | None = None  # a style's name, or path of a picture or slide to measure
    seed: int | None = None
    steps: int | None = None
    sampler: str | None = None
    guidance_scale: float | None = None
    window: int | None = None
    overlap: int | None = None
    blend: int | None = None  # px over which windows are blended where they meet; None: 3/8 of the overlap
    batch_size: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    workers: int | None = None
    dask_scheduler: Any = None  # address of a running Dask cluster, or its distributed.Client
    canvas: str | Path | None = None  # folder of the store of painted pixels; None: beside the slide
    rect: tuple[int, int, int, int] | None = None  # x, y, width, height at level 0: paint only that
    jpeg_quality: int | None = None
    format: str | None = None  # of the slide, see slides/formats.py; None: by the ending of its name, else svs
    labels: str | None = None  # format of the ground truth beside the slide, see masks/exporters; None: none
    patient_id: str = ""  # in DICOM; "": from what painted the slide

    def default(self, name: str) -> Any:
        """Return the value of a setting, from configs/render.toml where it is None."""
        value = getattr(self, name)
        return render_defaults()[name] if value is None else value
