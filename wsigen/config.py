"""Settings of a render: frozen, typed, with every default in configs/render.toml and its reason beside it."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
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
    """The fields of `RenderSettings` as keyword arguments of functions such as `wsigen.render`."""

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
    conditions: Mapping[str, Any]


@dataclass(frozen=True)
class RenderSettings:
    """What a user may choose for a render; None takes the default of the model, or of the device.

    Attributes:
        model: name of a model that ships, or path of a model folder; "" for the default model.
        style: the stain: name of a style of the model, path of a picture or slide to measure, or a `StainStyle`.
        seed: seed of the noise, 0 to 2^64 - 1. Default 0. The same seed gives the same slide.
        steps: denoising steps, 1 to 1000. Default: those of the model.
        sampler: one of `wsigen.diffusion.plans.SAMPLERS`. Default: that of the model.
        guidance_scale: scale of classifier-free guidance (Ho and Salimans 2022), 0 or more; 1 is off. Default: that of
            the model.
        window: side of a window in px. Default: that of the model.
        overlap: pixels that neighbouring windows share. Default: that of the model.
        blend: px over which neighbouring windows are blended. Default: 3/8 of the overlap.
        batch_size: windows in one call of the network, 2 or more. Default: by the device.
        device: "auto", or one of `wsigen.choices.DEVICES`.
        dtype: "auto", or one of `wsigen.choices.DTYPES`: number format of the network.
        workers: processes of this machine, at most one for each GPU. Default 1.
        dask_scheduler: address of a running Dask cluster, or its `distributed.Client`; None: this machine.
        canvas: folder for the store of painted pixels. Default: beside the slide.
        rect: x, y, width and height of the part to paint, in px of level 0. Default: the whole slide.
        jpeg_quality: quality of the slide's tiles, 1 to 100. Default 87.
        format: one of `wsigen.choices.SLIDE_FORMATS`. Default: by the ending of the slide's name, else "svs".
        labels: one of `wsigen.choices.LABEL_FORMATS`: also write the nuclei, beside the slide. Default: no labels.
        patient_id: identifier of the patient in DICOM; "" for one made from what painted the slide.
        conditions: values of other conditions of the model than its stain, by their names.
    """

    model: str = ""
    style: str | StainStyle | None = None
    seed: int | None = None
    steps: int | None = None
    sampler: str | None = None
    guidance_scale: float | None = None
    window: int | None = None
    overlap: int | None = None
    blend: int | None = None
    batch_size: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    workers: int | None = None
    dask_scheduler: Any = None
    canvas: str | Path | None = None
    rect: tuple[int, int, int, int] | None = None
    jpeg_quality: int | None = None
    format: str | None = None
    labels: str | None = None
    patient_id: str = ""
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> RenderSettings:
        """Make settings of keyword arguments. SettingsError for an unknown name; it proposes the nearest known one."""
        known = [entry.name for entry in fields(cls)]
        for name in keywords:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                mend = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
                raise SettingsError(f"{name}: no such setting of a render; {mend}")
        return cls(**keywords)

    def default(self, name: str) -> Any:
        """Return the value of a setting; where it is None, the default of configs/render.toml."""
        value = getattr(self, name)
        return render_defaults()[name] if value is None else value
