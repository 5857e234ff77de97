"""The record of a render: the .json beside a slide, from which the same pixels can be painted again.

`record_of` alone says where a slide's record lies. A record names the mask and the model by path, with the settings of
the painting, and holds the run record: hashes and environment, by which a repetition is refused where pixels would
differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from wsigen.errors import ModelError, SettingsError
from wsigen.models.config import CONFIG_FILE, ModelConfig
from wsigen.models.registry import shipped_models
from wsigen.models.stain import StainStyle
from wsigen.painting.spec import PaintSpec, first_difference, in_words
from wsigen.slides.formats import stem_of
from wsigen.version import __version__

FORMAT = "wsigen slide record 1"
# What PaintSpec calls as RenderSettings does; model, style and steps are translated.
SAME_NAMES = ("seed", "sampler", "guidance_scale", "window", "overlap", "blend", "batch_size", "device", "dtype")
# What to do where a part of the run record differs, by the beginning of its key.
MENDS = {
    "environment.pixels": "paint the slide anew, or use the version of wsigen that painted it{by}",
    "environment": "use a machine and libraries like those",
    "back_ends.attention": "set WSIGEN_ATTENTION={stored}",
    "back_ends.norm": "set WSIGEN_NORM={stored}",
    "mask_sha256": "name the mask that the slide was painted from",
    "model_sha256": "name the folder of the model that painted it with --model",
}


def record_of(slide: str | Path) -> Path:
    """Return the path of a slide's record, for every format of slides."""
    return Path(slide).with_name(stem_of(slide) + ".json")


@dataclass(frozen=True)
class SlideRecord:
    """A record that was read.

    Attributes:
        path: file of the record.
        mask: path of the mask.
        model: folder of the model.
        model_name: name of the model.
        version: version of wsigen that painted the slide; "" in old records.
        settings: fields of `RenderSettings` that paint the slide again, without the model.
        run: the run record: everything that decides the pixels.
    """

    path: Path
    mask: Path
    model: Path
    model_name: str
    version: str
    settings: Mapping[str, Any]
    run: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> SlideRecord:
        """Read a record. SettingsError if the file is no record, or is older than the numbering of pixels."""
        path = Path(path)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            paint, run = record["paint"], dict(record["run"])
            _refuse_unnumbered(path, run)
            settings = {name: _typed(paint, name) for name in SAME_NAMES} | {
                "style": StainStyle.from_config(paint["style"]),
                "steps": _typed(paint, "num_inference_steps"),
                "jpeg_quality": int(record["jpeg_quality"]),
                "rect": tuple(map(int, record["rect"])) if record["rect"] else None,
                "conditions": {str(name): value for name, value in paint.get("conditions", ())},
            }
            names = str(record["model_name"]), str(record.get("wsigen", ""))
            return cls(path, Path(record["mask"]), Path(_typed(paint, "model")), *names, settings, run)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError) as error:
            raise SettingsError(f"{path} is not the .json record of a slide ({error!r})") from error

    def find_mask(self) -> Path:
        """Return the path of the mask. SettingsError if the file does not exist any more."""
        if not self.mask.is_file():
            raise SettingsError(
                f"{self.path}: its mask {self.mask} is missing; name it: wsigen render MASK --from {self.path.name}"
            )
        return self.mask

    def find_model(self) -> str:
        """Return the model's folder, else the name of the model that ships. SettingsError if neither exists."""
        if (self.model / CONFIG_FILE).is_file():
            return str(self.model)
        if self.model_name in shipped_models():
            return self.model_name
        raise SettingsError(
            f"{self.path}: its model {self.model_name} is not in {self.model} any more; name its folder with --model"
        )

    def check(self, run: Mapping[str, Any]) -> None:
        """Compare with the run record of a new run. SettingsError names what differs if pixels would differ."""
        difference = first_difference(self.run, run)
        if difference is None:
            return
        key, stored, _ = difference
        mend = next((mend for beginning, mend in MENDS.items() if key.startswith(beginning)), "leave it as it was")
        mend = mend.format(stored=stored, by=f", {self.version}" if self.version else "")
        raise SettingsError(f"{self.path}: {in_words(difference)}, so that the pixels would differ; {mend}")


def _refuse_unnumbered(path: Path, run: Mapping[str, Any]) -> None:
    if "pixels" not in run["environment"]:
        raise SettingsError(
            f"{path}: was written before wsigen numbered its pixels, and they have changed since; paint the slide anew"
        )


def _typed(paint: Mapping[str, Any], name: str) -> Any:
    """A value of a stored PaintSpec; TypeError for one of another type."""
    value, kind = paint[name], next(field.type for field in fields(PaintSpec) if field.name == name)
    assert isinstance(kind, type)
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise TypeError(f"{name} is {value!r}")
    return value


class PlannedSlide(Protocol):
    """What a record says of a render's plan."""

    @property
    def spec(self) -> PaintSpec:
        """What painting takes."""

    @property
    def config(self) -> ModelConfig:
        """Of the model."""

    @property
    def out(self) -> Path:
        """The slide."""

    @property
    def jpeg_quality(self) -> int:
        """Of its tiles."""

    @property
    def rect(self) -> tuple[int, int, int, int] | None:
        """The part that is painted."""

    @property
    def run(self) -> dict[str, Any]:
        """What decides the pixels."""


def record_data(plan: PlannedSlide, timings: Mapping[str, float], ways: Sequence[str] = ()) -> dict[str, Any]:
    """What `SlideRecord.read` reads, as plain JSON, and facts for people.

    timings: seconds by stage. ways: in which operations kept rows of a batch equal, of those that would not.
    """
    return {
        "format": FORMAT,
        "wsigen": __version__,
        "mask": plan.spec.source,
        "slide": str(plan.out.name),
        "jpeg_quality": plan.jpeg_quality,
        "rect": plan.rect,
        "timings": {name: round(value, 4) for name, value in timings.items()},
        "model_name": plan.config.name,
        "paint": asdict(plan.spec),
        "run": plan.run,
        "equal_rows": list(ways),
    }
