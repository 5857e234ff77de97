"""NasdmModel: a configured U-Net together with its configuration, loaded from and saved to a model folder.

A model folder holds ``config.json``, ``weights-00001-of-0000N.safetensors`` shards (fp16 where they ship, so that no
file exceeds 15 MB), a card and a licence.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wsigen.errors import ModelError
from wsigen.models.config import CONFIG_FILE, ModelConfig
from wsigen.models.registry import find_model
from wsigen.models.unet import SpadeCache, UNet

SHARD_BYTES = 14_500_000
SHARD_PATTERN = "weights-*-of-*.safetensors"


class NasdmModel(nn.Module):
    """The nuclei-aware semantic diffusion model (Shrivastava and Fletcher, MICCAI 2023), from mask to H&E window."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet, config.condition_planes, 6 if config.learned_variance else 3)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> NasdmModel:
        """Load a shipped model by name or any model folder by path, in float32, in evaluation mode.

        Raises ModelError when there is no such model, or when its weights do not fit its configuration.
        """
        folder = find_model(name_or_path)
        with torch.device("meta"):
            model = cls(ModelConfig.load(folder))
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

    def spade_cache(self, planes: Tensor) -> SpadeCache:
        """Compute the SPADE maps of ``planes`` (B, P, H, W) once, for every step that follows."""
        return self.unet.spade_cache(planes)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        planes: Tensor,
        context: Tensor | None = None,
        known: Tensor | None = None,
        style: Tensor | None = None,
        cache: SpadeCache | None = None,
    ) -> Tensor:
        """Predict noise, image or v, as the configuration says: (B, 3, H, W), or 6 channels with a learned variance.

        Args:
            x: noisy windows (B, 3, H, W), at a scale where images are in [-1, 1].
            t: timesteps (B,).
            planes: condition planes (B, P, H, W).
            context: pixels of painted neighbours (B, 3, H, W) in [-1, 1], 0 where unknown. None: no neighbours.
            known: 1 where ``context`` is known, else 0, (B, 1, H, W).
            style: normalised style vectors (B, style_dim), or None.
            cache: result of `spade_cache` for ``planes``. None: compute it.
        """
        return self.unet(x, t, planes, context, known, style, cache)

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


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


def weights_sha256(folder: Path) -> str:
    """Hash of a model folder's configuration and weights, hexadecimal."""
    digest = hashlib.sha256((Path(folder) / CONFIG_FILE).read_bytes())
    for shard in sorted(Path(folder).glob(SHARD_PATTERN)):
        digest.update(shard.read_bytes())
    return digest.hexdigest()
