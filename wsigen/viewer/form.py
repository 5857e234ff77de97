"""The form of a slide that is painted live: what a page asks for, and how its answers become settings of a render.

Seed and steps are asked of every model. What else is asked follows from the model's conditions (`Condition.form`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from wsigen.conditions.contract import Field
from wsigen.conditions.registry import conditions_of
from wsigen.config import RenderSettings
from wsigen.errors import SettingsError
from wsigen.models.config import ModelConfig
from wsigen.models.stain import StainStyle

STAIN = "stain"
LARGEST_SEED = (1 << 53) - 1  # that a page counts exactly
MOST_STEPS = 1000
LARGEST = 1e300  # number; a page may send whole numbers that no float holds
LONGEST = 200  # characters of a text

Answer = str | float  # "" stands for not told


@dataclass(frozen=True)
class Answers:
    """What a page chose: seed, steps, and values of conditions by name; what is None or left out stays as it is."""

    seed: int | None = None
    steps: int | None = None
    conditions: Mapping[str, Answer] = field(default_factory=dict)


class Form:
    """The fields of a model. ``style`` is the stain at the start, which may have been measured."""

    def __init__(self, config: ModelConfig, style: StainStyle) -> None:
        self.styles = {known.name: known for known in (*config.styles, style)}
        self.seed = Field("seed", "number", default="0", least=0, most=LARGEST_SEED)
        self.steps = Field("steps", "number", default=str(config.num_inference_steps), least=1, most=MOST_STEPS)
        fields = ((condition.name, condition.form()) for condition in conditions_of(config))
        self.conditions = {name: found for name, found in fields if found is not None}
        if STAIN in self.conditions:
            self.conditions[STAIN] = replace(self.conditions[STAIN], choices=tuple(self.styles))

    def describe(self) -> dict[str, Any]:
        """The fields as plain JSON; a field whose choices are stains has the colour of each."""
        conditions = {name: asdict(found) for name, found in self.conditions.items()}
        if STAIN in conditions:
            conditions[STAIN]["colours"] = {name: _tone(style.vector) for name, style in self.styles.items()}
        return {"seed": asdict(self.seed), "steps": asdict(self.steps), "conditions": conditions}

    def shown(self, settings: RenderSettings, style: StainStyle) -> dict[str, Answer]:
        """What the fields of conditions show for settings that are painted in ``style``."""
        given = {**settings.conditions, STAIN: style.name}
        return {name: _shown(asked, given.get(name, asked.default)) for name, asked in self.conditions.items()}

    def read(self, body: Mapping[str, Any]) -> Answers:
        """Check what a page sent, some of {seed, steps, conditions}. Raises SettingsError, in one line."""
        given = body.get("conditions", {})
        if not isinstance(given, dict) or set(given) - set(self.conditions):
            raise SettingsError(f"conditions: must be an object with {', '.join(self.conditions) or 'nothing'}")
        told = {name: _checked(name, self.conditions[name], value) for name, value in given.items()}
        asked = {one.label: one for one in (self.seed, self.steps)}
        return Answers(
            **{name: _whole(one, body[name]) for name, one in asked.items() if name in body}, conditions=told
        )

    def settings(self, before: RenderSettings, answers: Answers) -> RenderSettings:
        """The settings with what a page chose."""
        chosen = {name: None if value == "" else value for name, value in answers.conditions.items()}
        stain = chosen.pop(STAIN, None)
        style = self.styles.get(str(stain), str(stain)) if stain else before.style
        told = {name: value for name, value in {**before.conditions, **chosen}.items() if value is not None}
        seed = before.seed if answers.seed is None else answers.seed
        steps = before.steps if answers.steps is None else answers.steps
        return replace(before, seed=seed, steps=steps, style=style, conditions=told)


def _shown(asked: Field, value: Any) -> Answer:
    """A value as its field shows it: numbers may have been given as texts; what no field can show is ""."""
    if asked.kind == "number" and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return ""
    return value if isinstance(value, str | int | float) else ""


def _whole(asked: Field, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not _within(asked, value):
        raise SettingsError(f"{asked.label}: must be a whole number{asked.bounds}")
    return value


def _checked(name: str, asked: Field, value: Any) -> Answer:
    """An answer that suits its field; "" leaves it out."""
    if value == "":
        return ""
    if asked.kind == "choice" and not (isinstance(value, str) and value in asked.choices):
        raise SettingsError(f"{name}: must be one of {', '.join(asked.choices)}")
    if asked.kind == "text" and not (isinstance(value, str) and len(value) <= LONGEST):
        raise SettingsError(f"{name}: must be a text of at most {LONGEST} characters")
    if asked.kind == "number" and not (
        isinstance(value, int | float) and not isinstance(value, bool) and _within(asked, value)
    ):
        raise SettingsError(f"{name}: must be a number{asked.bounds}")
    return value


def _within(asked: Field, value: float) -> bool:
    least = -LARGEST if asked.least is None else asked.least
    return least <= value <= (LARGEST if asked.most is None else asked.most)


def _tone(vector: tuple[float, ...]) -> str:
    """Mean colour of a stain as "#rrggbb"."""
    return "#" + "".join(f"{round(255 * 10**-density):02x}" for density in vector[:3])
