"""Settings of a training run, read from TOML (the recipes stand in configs/), as frozen dataclasses."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from wsigen.conditions.settings import AugmentSettings, ConditionSettings, ContextSettings, LayoutSettings
from wsigen.errors import SettingsError
from wsigen.system.text_files import read_text


@dataclass(frozen=True)
class Phase:
    """A stretch of training that takes its window sizes in turn, one a step."""

    windows: tuple[int, ...]  # side of the square crops, px
    batches: tuple[int, ...]  # crops a step and process, for each window size
    steps: int

    def crops_at(self, step: int) -> tuple[int, int]:
        """Window and batch of a step."""
        turn = step % len(self.windows)
        return self.windows[turn], self.batches[turn]


@dataclass(frozen=True)
class AppearanceSettings:
    """How pictures are spoilt for networks that measure, so that they neither depend on a scanner nor overlook it."""

    blur: float = 0.5  # share of pictures that are blurred
    blur_most: float = 1.2  # largest deviation of the Gaussian, px
    noise: float = 0.5  # share of pictures with noise
    noise_most: float = 0.08  # largest deviation of the noise, of a range of 2


@dataclass(frozen=True)
class DistillSettings:
    """A painter that learns from itself: see wsigen.training.distillation and wsigen.training.progressive."""

    steps: int = 4  # consistency, progressive: of the student
    teacher_steps: int = 4  # progressive: of the teacher for each of the student's
    guidance_scale: float | None = None  # of the teacher, baked into the student; None: as the painter paints
    guided_scales: tuple[float, ...] = (1.0, 2.0)  # guidance: lowest and highest scale that the student learns
    own_levels: float = 0.5  # guidance: share of the timesteps that are those the painter samples at
    data_share: float = 0.0  # guidance: share of the pictures in what the student learns, the rest is the teacher's
    teacher: bool = True  # the step from t to r follows the teacher; without: the noise that made x_t
    first_ratio: float = 4.0  # r = t (1 - 1/q ...): q at the start ...
    last_ratio: float = 256.0  # ... and at the end
    stages: int = 7  # q grows geometrically in so many equal stretches
    mean_log_sigma: float = -0.8  # noise levels are drawn log-normally
    std_log_sigma: float = 1.6
    huber: float = 0.03  # per-value scale below which errors count squared: a hundredth of the pixels' deviation


@dataclass(frozen=True)
class TrainSettings:
    """A whole recipe."""

    task: str = "denoise"  # see wsigen.training.loop.TASKS
    architecture: str = "nasdm-colon-20x"
    model: dict[str, Any] = field(default_factory=dict)  # what differs from the architecture, as config.json has it
    prediction: str = ""  # of the denoiser: v, eps or x0; empty: as the architecture has it
    seed: int = 0
    phases: tuple[Phase, ...] = ()
    learning_rate: float = 3e-4
    modulation_rate: float = 0.1  # factor of the learning rate for the layers of time and style modulation
    weight_decay: float = 0.01
    warmup_steps: int = 500
    decay_steps: int = 2000  # linear decay to a hundredth at the end
    ema_decay: float = 0.9995
    max_grad_norm: float = 1.0
    initial_model: str = ""  # name or folder of a model whose weights the run starts from: fine-tuning
    known_weight: float = 0.25  # share of known pixels in the loss; without it painting ignores its neighbours
    border_weight: float = 2.0  # added to the weight of unknown pixels within 8 px of known ones
    rim_weight: float = 0.0  # added to the weight of unknown pixels within 24 px of the window's edges
    crop_stride: int = 8
    folds: int = 0  # leave out every so many-th source image, from number `fold`; 0: train on all
    fold: int = 0
    rare_class_weight: tuple[float, ...] = ()  # added to a crop's sampling weight when it holds the class
    machine_label_weight: float = 0.7  # factor for crops whose labels a network made
    log_every: int = 50
    evaluate_every: int = 1000
    checkpoint_every: int = 1000
    context: ContextSettings = field(default_factory=ContextSettings)
    condition: ConditionSettings = field(default_factory=ConditionSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    appearance: AppearanceSettings = field(default_factory=AppearanceSettings)
    layout: LayoutSettings = field(default_factory=LayoutSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)  # settings of conditions that have their own
    styles: dict[str, str] = field(default_factory=dict)  # style name -> group of images that it is measured on
    default_style: str = ""

    @property
    def total_steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        """Phase that step number ``step`` (from 0) belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, constant, linear decay."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        left = (self.total_steps - step) / max(1, self.decay_steps)
        return self.learning_rate * warm * min(1.0, max(0.01, left))


def load_settings(path: Path, overrides: tuple[str, ...] = ()) -> TrainSettings:
    """Read a TOML recipe; ``overrides`` are ``key=value`` with dotted keys and TOML values (``phases.0.steps=10``)."""
    try:
        data = tomllib.loads(read_text(Path(path)))
    except OSError as error:
        raise SettingsError(f"{path}: no such recipe; see configs/ for those that exist") from error
    except ValueError as error:  # of TOML, or of the text's encoding
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _override(data, override)
    settings = _build(TrainSettings, data, str(path))
    if any(len(phase.windows) != len(phase.batches) or not phase.windows for phase in settings.phases):
        raise SettingsError(f"{path}: every phase needs as many batches as windows, and at least one")
    if not settings.phases or min(phase.steps for phase in settings.phases) < 0 or settings.total_steps < 1:
        raise SettingsError(f"{path}: phases must hold at least one step")
    return settings


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
        *parents, leaf = key.strip().split(".")
        target: Any = data
        for parent in parents:
            target = target[int(parent)] if isinstance(target, list) else target.setdefault(parent, {})
        target[int(leaf) if isinstance(target, list) else leaf] = value
    except (tomllib.TOMLDecodeError, KeyError, ValueError, IndexError, TypeError) as error:
        raise SettingsError(f"--set {override}: give key=value with a TOML value, such as seed=1") from error
    if not separator:
        raise SettingsError(f"--set {override}: give key=value")


def _build(kind: Any, data: dict[str, Any], origin: str) -> Any:
    """Fill a dataclass from a dictionary, strictly: an unknown key is an error that names it."""
    if not isinstance(data, dict):
        raise SettingsError(f"{origin}: {data!r} stands where a table with the keys of {kind.__name__} belongs")
    known = {entry.name for entry in fields(kind)}
    if unknown := sorted(set(data) - known):
        raise SettingsError(f"{origin}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key == "phases":
            values[key] = tuple(_build(Phase, entry, origin) for entry in value)
        elif is_dataclass(hints[key]):
            values[key] = _build(hints[key], value, origin)
        elif not _fits(value, hints[key]):
            raise SettingsError(
                f"{origin}: {key} = {value!r} is of the wrong type; {_wanted(hints[key])} belongs there"
            )
        else:
            values[key] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except TypeError as error:
        raise SettingsError(f"{origin}: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a TOML value suits a field; a whole number may stand for a real one."""
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(_fits(entry, get_args(hint)[0]) for entry in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(entry, get_args(hint)[1]) for entry in value.values())
    if hint is bool:
        return isinstance(value, bool)
    if hint is Any:
        return True
    return isinstance(value, (int, float) if hint is float else hint) and not isinstance(value, bool)


def _wanted(hint: Any) -> str:
    """Name a field's type in words."""
    if get_origin(hint) is tuple:
        return "a list"
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(
        hint, "a table of texts"
    )
