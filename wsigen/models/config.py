"""A model's configuration: everything about a network that is not a weight, as frozen dataclasses and one JSON file.

This module imports no torch, so that commands that only need a class table or a licence line stay fast.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsigen.diffusion.guidance import Guidance
from wsigen.diffusion.plans import FITTED
from wsigen.errors import ModelError, SettingsError
from wsigen.masks.classes import ClassTable
from wsigen.masks.limits import NucleusLimits
from wsigen.models.stain import STYLE_NUMBERS, StainStyle, StyleRange
from wsigen.models.stain_response import StainResponse

CONFIG_FILE = "config.json"
OUT_OF_REACH = 0.25  # deviations of the training slides by which a painted stain may miss; less is hard to see


ProductName = Literal["slide", "mask"]
Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Product:
    """What comes of a model's pixels. ``noise_stream``: a mask and its slide see noise that has nothing in common.

    ``blends``: whether two windows' pixels have a mean; colours of masks stand for classes, and a mean is of none.
    """

    noise_stream: int
    blends: bool


PRODUCTS = {"slide": Product(0, True), "mask": Product(1, False)}


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the U-Net. The comments give the published NASDM network in brackets."""

    channels: tuple[int, ...] = (64, 128, 224)  # a level, finest first [256, 256, 512, 768, 1024]
    num_res_blocks: int = 2  # residual blocks a level in the encoder, one more in the decoder [2]
    attention_levels: tuple[int, ...] = (2,)  # levels with self-attention [2, 3, 4: 32, 16 and 8 px at 128]
    head_channels: int = 32  # channels of an attention head [64]
    patch: int = 2  # pixel-unshuffle in front, pixel-shuffle behind [1]
    spade_hidden: int = 48  # hidden channels between mask and (gamma, beta) [128]
    spade_resize: str = "area"  # how a mask reaches a coarser level: "area" or "nearest" ["nearest"]
    condition_in_encoder: bool = True  # mask planes also enter beside the noisy image [False]
    norm_groups: int = 32  # groups of every group norm [32]

    def __post_init__(self) -> None:
        for width in self.channels:
            if width % self.norm_groups:
                raise ModelError(f"channels {width}: must be a multiple of norm_groups, {self.norm_groups}")
        attending = {self.channels[-1], *(self.channels[level] for level in self.attention_levels)}
        for width in attending:
            if width > self.head_channels and width % self.head_channels:
                raise ModelError(f"channels {width}: must be a multiple of head_channels, {self.head_channels}")


@dataclass(frozen=True)
class ModelConfig:
    """A model as users meet it: its classes, its scale, its diffusion process and its U-Net."""

    name: str
    classes: ClassTable
    mpp: float  # microns per pixel that the model paints at
    description: str = ""
    version: str = "1"
    licence: str = ""  # SPDX identifier of the weights' licence
    terms: str = ""  # one line that render and doctor print
    objective_power: float = 20.0
    architecture: str = "nasdm-unet"  # what builds the network, see wsigen.networks.denoiser
    network: Options = ()  # of another architecture than "nasdm-unet": its options, by name
    conditions: tuple[str, ...] = ("stain", "mask", "tissue", "context")  # names, see wsigen.conditions.registry
    paints: ProductName = "slide"
    schedule: str = "cosine"
    schedule_steps: int = 1000
    prediction: Literal["v", "eps", "x0"] = "v"
    learned_variance: bool = False
    window: int = 256  # default window of the tiler, px
    overlap: int = 32
    num_inference_steps: int = 8
    sampler: str = "dpm++2m"
    # Solvers of so many steps as they have rows: (x, x0, x0_previous) each, as FittedStep; for the sampler "fitted".
    fitted: tuple[tuple[tuple[float, float, float], ...], ...] = ()
    guidance_scale: float = 1.0  # of classifier-free guidance; 1 is off, else a step takes two network calls ...
    guided_scales: tuple[float, ...] = ()  # ... but for scales from the first to the second, which it learned: one
    final_step: float = 1.0  # length of the last denoising step in lengths of the others, which are even; (0, 1]
    unet: UNetConfig = field(default_factory=UNetConfig)
    style_range: StyleRange = field(default_factory=StyleRange)
    stain_response: StainResponse | None = None  # what it paints of the stain that it is told, where that was measured
    styles: tuple[StainStyle, ...] = ()
    default_style: str = ""
    limits: tuple[NucleusLimits, ...] = ()  # of a mask model: what nuclei of each class are like
    response: tuple[float, ...] = ()  # of a mask model: nuclei of each class that it paints for one that is asked for

    def __post_init__(self) -> None:
        if not 0 < self.final_step <= 1:
            raise ValueError(f"final_step {self.final_step}: must lie in (0, 1]")
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale {self.guidance_scale}: must be 0 or more (1 is off)")
        learned = self.guided_scales
        if learned and not (len(learned) == 2 and 0 < learned[0] <= learned[1] < math.inf):
            raise ValueError(f"guided_scales {learned}: must be the lowest and the highest scale, above 0")
        if any(len(row) != 3 or not all(map(math.isfinite, row)) for plan in self.fitted for row in plan):
            raise ValueError("fitted: every step needs three numbers, of x, x0 and x0_previous")
        if any(not plan or plan[-1][0] != 0 or abs(sum(plan[-1]) - 1) > 1e-6 for plan in self.fitted):
            raise ValueError("fitted: the last step of a solver must be [0, a, 1 - a]")
        if self.response and (
            len(self.response) != len(self.classes) or not all(0 < r < math.inf for r in self.response)
        ):
            raise ValueError(
                f"response {self.response}: must be a positive number for each of {len(self.classes)} classes"
            )

    @property
    def product(self) -> Product:
        """What comes of the model's pixels."""
        return PRODUCTS[self.paints]

    @property
    def shape(self) -> list[Any]:
        """All that decides the network's operations, as plain data: the same whatever the weights are."""
        network = dict(self.network) if self.network else asdict(self.unet)
        return [self.architecture, network, list(self.conditions), len(self.classes), self.learned_variance]

    def style(self, name: str | None = None) -> StainStyle:
        """Return a named stain style (the default one for None); ModelError names those there are."""
        wanted = name or self.default_style
        for style in self.styles:
            if style.name == wanted:
                return style
        known = ", ".join(style.name for style in self.styles) or "none"
        raise ModelError(f"model {self.name!r} has no style {wanted!r}; its styles are: {known}")

    def told_stain(self, vector: np.ndarray) -> np.ndarray:
        """What the network is told (..., 6) float32 so that it paints a style's numbers (..., 6), or nearly these."""
        if self.stain_response is None:
            return self.style_range.normalise(vector)
        asked = self.style_range.scaled(vector)
        return self.stain_response.told(asked, self.style_range.clamp).astype(np.float32)

    def painted_stain(self, vector: np.ndarray) -> np.ndarray:
        """The numbers (..., 6) that are to be expected of a painting in a style of ``vector`` (..., 6).

        Without a measured response: those that the network can be told.
        """
        told = self.told_stain(vector)
        return self.style_range.unscaled(self.stain_response.painted(told) if self.stain_response else told)

    def stain_note(self, style: StainStyle) -> str | None:
        """One line about a style that the network cannot paint, with the number it misses most; None if it can."""
        expected, asked = self.painted_stain(np.array(style.vector)), np.array(style.vector)
        missed = np.abs(self.style_range.scaled(expected) - self.style_range.scaled(asked))
        worst = int(missed.argmax())
        if missed[worst] <= OUT_OF_REACH:
            return None
        return (
            f"style {style.name} is out of this model's reach; it is painted as near as the model can: "
            f"{STYLE_NUMBERS[worst]} of optical density about {expected[worst]:.3f}, not {asked[worst]:.3f}"
        )

    def fitted_solver(self, num_inference_steps: int) -> tuple[tuple[float, float, float], ...]:
        """Coefficients of the fitted solver of so many steps; none where there is no such solver."""
        return next((plan for plan in self.fitted if len(plan) == num_inference_steps), ())

    def sampler_for(self, num_inference_steps: int, name: str | None = None) -> str:
        """Sampler for so many steps: ``name``, or the model's own; for "fitted" UniPC where it has no such solver.

        SettingsError if the fitted one is asked for by ``name`` and there is none.
        """
        chosen = name or self.sampler
        if chosen != FITTED or self.fitted_solver(num_inference_steps):
            return chosen
        if name:
            known = ", ".join(str(len(plan)) for plan in self.fitted)
            mend = f"take --steps {known} or --sampler unipc" if known else "take --sampler unipc"
            raise SettingsError(
                f"--sampler fitted: model {self.name!r} has no fitted solver of {num_inference_steps} steps; {mend}"
            )
        return "unipc"

    def guidance(self, scale: float | None = None) -> Guidance:
        """Guidance with a scale; None takes the model's own."""
        scale = self.guidance_scale if scale is None else scale
        learned = len(self.guided_scales) == 2 and self.guided_scales[0] <= scale <= self.guided_scales[1]
        return Guidance(scale, learned)

    def to_json(self) -> str:
        """Serialise; ``from_json`` reads it back to an equal object."""
        data = asdict(replace(self, styles=()))
        data["classes"] = self.classes.to_config()
        data["styles"] = [style.to_config() for style in self.styles]
        data["network"] = dict(self.network)
        return json.dumps(data, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, origin: str = "config.json") -> ModelConfig:
        """Parse ``to_json``'s text; ``origin`` names the file in errors."""
        try:
            data: dict[str, Any] = json.loads(text)
            data["classes"] = ClassTable.from_config(data["classes"])
            shape = _of_lists(data.get("unet", {}))
            context, style = shape.pop("context", True), shape.pop("style_dim", len(STYLE_NUMBERS))
            data["unet"] = UNetConfig(**shape)
            data["network"] = tuple(_of_lists(data.get("network", {})).items())
            if "conditions" in data:
                data["conditions"] = _names(data["conditions"])
            else:  # of a model of an older version, whose network said what it takes
                data["conditions"] = _older_conditions(data.get("paints", "slide"), bool(context), bool(style))
            data["style_range"] = StyleRange.from_config(data["style_range"])
            if response := data.get("stain_response"):
                data["stain_response"] = StainResponse(tuple(tuple(map(float, row)) for row in response["rows"]))
            data["styles"] = tuple(StainStyle.from_config(entry) for entry in data["styles"])
            data["limits"] = tuple(NucleusLimits(**entry) for entry in data.get("limits", ()))
            data["response"] = tuple(data.get("response", ()))
            data["guided_scales"] = tuple(map(float, data.get("guided_scales", ())))
            data["fitted"] = tuple(tuple(tuple(map(float, row)) for row in plan) for plan in data.get("fitted", ()))
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{origin} is not a model configuration of this version of wsigen ({error!r})") from error

    @classmethod
    def load(cls, folder: Path) -> ModelConfig:
        """Read ``config.json`` of a model folder; ModelError if there is none."""
        path = Path(folder) / CONFIG_FILE
        try:
            return cls.from_json(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise ModelError(f"{folder} is not a model folder: it holds no readable {CONFIG_FILE}") from error

    @classmethod
    def preset(cls, name: str) -> ModelConfig:
        """Return an untrained architecture by name: see ``PRESETS``."""
        if name not in PRESETS:
            raise ModelError(f"no architecture is called {name!r}; there are: {', '.join(PRESETS)}")
        return PRESETS[name]

    def changed(self, changes: Mapping[str, Any]) -> ModelConfig:
        """The configuration with other values, as config.json would have them; those of ``unet`` one by one.

        Raises ModelError for a key or a value that is none.
        """
        data = json.loads(self.to_json())
        for name, value in changes.items():
            if name not in data:
                raise ModelError(f"model.{name}: unknown; a model has {', '.join(data)}")
            data[name] = {**data[name], **value} if name == "unet" and isinstance(value, Mapping) else value
        return ModelConfig.from_json(json.dumps(data), "the recipe's [model]")


def _of_lists(data: dict[str, Any]) -> dict[str, Any]:
    """A JSON object whose lists are tuples, so that they have a hash."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _names(value: Any) -> tuple[str, ...]:
    """A JSON list of texts."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"conditions {value!r}: must be a list of names")
    return tuple(value)


def _older_conditions(paints: str, context: bool, style: bool) -> tuple[str, ...]:
    """Conditions of a model that does not name them."""
    of_source = ("density",) if paints == "mask" else ("mask", "tissue")
    return (*(("stain",) if style else ()), *of_source, *(("context",) if context else ()))


LIZARD_CLASSES = ClassTable.from_config(
    [
        {"index": 1, "name": "neutrophil", "colour": "#e6194b"},
        {"index": 2, "name": "epithelial", "colour": "#3cb44b"},
        {"index": 3, "name": "lymphocyte", "colour": "#4363d8"},
        {"index": 4, "name": "plasma", "colour": "#42d4f4"},
        {"index": 5, "name": "eosinophil", "colour": "#f58231"},
        {"index": 6, "name": "connective", "colour": "#ffe119"},
    ]
)

_COLON = ModelConfig(name="nasdm-colon-20x", classes=LIZARD_CLASSES, mpp=0.5)

PRESETS: dict[str, ModelConfig] = {
    # The network of Shrivastava and Fletcher (NASDM, MICCAI 2023) with the settings of its released training command.
    "nasdm-paper": ModelConfig(
        name="nasdm-paper",
        classes=LIZARD_CLASSES,
        mpp=0.5,
        schedule="linear",
        prediction="eps",
        learned_variance=True,
        window=128,
        overlap=16,
        num_inference_steps=1000,
        sampler="ddpm",
        conditions=("mask", "tissue"),
        unet=UNetConfig(
            channels=(256, 256, 512, 768, 1024),
            attention_levels=(2, 3, 4),
            head_channels=64,
            patch=1,
            spade_hidden=128,
            spade_resize="nearest",
            condition_in_encoder=False,
        ),
    ),
    # docs/experiments/2.0.md has what other solvers and final steps look like.
    "nasdm-colon-20x": replace(_COLON, sampler="unipc", final_step=0.4),
    # A third of the cost: the network for laptops and for recipes that must show something within minutes.
    "nasdm-colon-20x-small": replace(
        _COLON,
        name="nasdm-colon-20x-small",
        sampler="unipc",
        final_step=0.4,
        unet=UNetConfig(channels=(64, 96, 160), num_res_blocks=1, head_channels=32, spade_hidden=48),
    ),
    # Paints masks. Hills are smooth, so patches of 4 px do, which are a quarter of the cost and twice the view. With
    # 12 or 24 steps numbers and sizes are no nearer to real ones than with 8.
    "mask-colon-20x": replace(
        _COLON,
        name="mask-colon-20x",
        paints="mask",
        conditions=("density", "context"),
        schedule="cosine-coarse",
        num_inference_steps=8,
        unet=UNetConfig(channels=(64, 128, 160), patch=4, spade_hidden=32),
    ),
    # Small enough to train and sample in seconds on a CPU: for tests and for learning the code.
    "tiny": replace(
        _COLON,
        name="tiny",
        window=64,
        overlap=8,
        num_inference_steps=2,
        unet=UNetConfig(
            channels=(16, 32),
            num_res_blocks=1,
            attention_levels=(1,),
            head_channels=16,
            spade_hidden=16,
            norm_groups=8,
        ),
        styles=(StainStyle(name="violet"),),
        default_style="violet",
    ),
}
PRESETS["tiny-mask"] = replace(
    PRESETS["tiny"],
    name="tiny-mask",
    paints="mask",
    conditions=("density", "context"),
    schedule="cosine-coarse",
    styles=(),
    default_style="",
)
