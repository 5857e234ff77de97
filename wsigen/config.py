"""Settings of a render: frozen, typed, with every default in configs/render.toml and its reason beside it."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from wsigen.errors import SettingsError
from wsigen.system.shipped import shipped_config

if TYPE_CHECKING:
    from wsigen.models.stain import StainStyle


@cache
def render_defaults() -> dict[str, Any]:
    """Read the defaults that ship with the package."""
    return tomllib.loads(shipped_config("render.toml").read_text(encoding="utf-8"))


class RenderKeywords(TypedDict, total=False):
    """The fields of `RenderSettings`, as keyword arguments of `wsigen.render` and its like."""

    model: str
    style: str | StainStyle | None
    seed: int | None
    steps: int | None
    sampler: str | None
    guidance_scale: float | None
    window: int | None
    overlap: int | None
    blend: int | None
    batch_size: int | None
    device: str
    dtype: str
    workers: int | None
    dask_scheduler: Any
    canvas: str | Path | None
    rect: tuple[int, int, int, int] | None
    jpeg_quality: int | None
    format: str | None
    labels: str | None
    patient_id: str


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

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> RenderSettings:
        """Settings of keyword arguments; SettingsError for one that does not exist, with the nearest that does."""
        known = [field.name for field in fields(cls)]
        for name in keywords:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                mend = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
                raise SettingsError(f"{name}: no such setting of a render; {mend}")
        return cls(**keywords)

    def default(self, name: str) -> Any:
        """Return the value of a setting, from configs/render.toml where it is None."""
        value = getattr(self, name)
        return render_defaults()[name] if value is None else value
