"""The contract of a denoiser: what predicts a clean window from a noisy one, and from its conditions.

A model's folder names its architecture; `from_pretrained` of `Denoiser` finds the class and builds it. This
package has "nasdm-unet". Another package that is installed beside it brings one with an entry point of the group
"wsigen.denoisers", whose name is the architecture's and whose value is the class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wsigen.conditions.contract import ConditionBatch
from wsigen.conditions.registry import conditions_of, specs_of
from wsigen.errors import ModelError
from wsigen.models.config import CONFIG_FILE, ModelConfig
from wsigen.models.registry import SHARD_PATTERN, find_model
from wsigen.system.plugins import class_by_name

GROUP = "wsigen.denoisers"
ARCHITECTURES = {"nasdm-unet": "wsigen.networks.nasdm:NasdmModel"}
SHARD_BYTES = 14_500_000


class Prediction(NamedTuple):
    """What a network says of a noisy window: in the configuration's parametrisation (B, 3, H, W), and its variance."""

    mean: Tensor
    raw_variance: Tensor | None = None  # (B, 3, H, W), of a model that has learned it


class Denoiser(nn.Module, ABC):
    """A network with its configuration. A subclass builds the network and overrides `size_multiple` and `predict`.

    `prepare` does once a batch what does not change from step to step. Weights lie in float32 and in evaluation mode
    after `from_pretrained`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.conditions = conditions_of(config)
        self.specs = specs_of(config)

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Window sides must be a multiple of this, in pixels."""

    def prepare(self, conditions: ConditionBatch) -> Any:
        """What every step with these conditions needs; the conditions themselves unless a subclass has more."""
        return conditions

    @abstractmethod
    def predict(self, prepared: Any, x: Tensor, t: Tensor) -> Prediction:
        """Predict from the noisy windows ``x`` (B, 3, H, W) at ``t`` (B,); the result holds until the next call."""

    def forward(self, x: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
        """Prepare and predict at once, as training does, with the tensors of `specs` in their order.

        The result is (B, 3, H, W), or (B, 6, H, W) with a learned variance.
        """
        batch = ConditionBatch(dict(zip((spec.name for spec in self.specs), conditions, strict=True)))
        mean, raw_variance = self.predict(self.prepare(batch), x, t)
        return mean if raw_variance is None else torch.cat([mean, raw_variance], 1)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by how training treats them: "modulation" (by time and style) learns slower than "others"."""
        return {"others": list(self.parameters())}

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def from_config(cls, config: ModelConfig) -> Denoiser:
        """Build the untrained network of a configuration.

        Raises ModelError for an architecture that is unknown, and for options that it does not take.
        """
        build = architecture(config.architecture)
        try:
            return build(config)
        except (TypeError, ValueError, KeyError) as error:
            said = " ".join(str(error).split())
            raise ModelError(f"model {config.name!r}: its {config.architecture!r} cannot be built: {said}") from error

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> Self:
        """Load a shipped model by name or any model folder by path, in float32, in evaluation mode.

        Raises ModelError when there is no such model, when its architecture is not installed or is not this class's,
        or when its weights do not fit its configuration.
        """
        folder = find_model(name_or_path)
        config = ModelConfig.load(folder)
        with torch.device("meta"):
            model = Denoiser.from_config(config)
        if not isinstance(model, cls):
            raise ModelError(f"{folder}: its architecture is {config.architecture!r}, which is no {cls.__name__}")
        try:
            model.load_state_dict(_read_shards(folder), assign=True)
        except RuntimeError as error:
            first = str(error).splitlines()[1 if "\n" in str(error) else 0].strip()
            raise ModelError(f"{folder}: the weights do not fit config.json ({first})") from error
        return model.eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write configuration and weights, in ``dtype``, to ``folder``, replacing what it held of them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in self.state_dict().items()}
        shards = _split(state)
        for old in folder.glob(SHARD_PATTERN):
            old.unlink()
        for index, shard in enumerate(shards, start=1):
            save_file(shard, folder / f"weights-{index:05d}-of-{len(shards):05d}.safetensors")
        (folder / CONFIG_FILE).write_text(self.config.to_json(), encoding="utf-8")


@cache
def architecture(name: str) -> type[Denoiser]:
    """The class of an architecture; ModelError names those that there are."""
    return class_by_name("architecture", name, ARCHITECTURES, GROUP)


def _read_shards(folder: Path) -> dict[str, Tensor]:
    shards = sorted(folder.glob(SHARD_PATTERN))
    expected = int(shards[0].stem.split("-of-")[1]) if shards else 0
    if not shards or len(shards) != expected:
        raise ModelError(f"{folder} holds {len(shards)} of {expected or 'its'} weight shards; fetch the model again")
    state: dict[str, Tensor] = {}
    for shard in shards:
        try:
            state.update(load_file(shard))
        except Exception as error:  # safetensors raises its own error type, and OSError
            raise ModelError(f"{shard} is damaged ({error}); fetch the model again") from error
    return {name: tensor.float() for name, tensor in state.items()}


def _split(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Split a state into shards of at most SHARD_BYTES, in order."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards
