"""Two small networks that measure: one describes a patch by numbers, one finds the nuclei of a picture.

Both are trained on real patches with ``wsigen train`` (configs/features.toml, configs/segmenter.toml), so that what
they know is this tissue at this scale and not photographs. A folder of one holds ``config.json`` and
``weights.safetensors``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wsigen.errors import ModelError
from wsigen.masks.classes import ClassTable
from wsigen.networks.unet import AffineNorm, conv3x3, zeroed

WEIGHTS_ROOT = Path(__file__).parents[1] / "evaluation" / "weights"
FEATURES, SEGMENTER = "colon-features", "colon-segmenter"  # that ship
CONFIG_FILE, WEIGHTS_FILE = "config.json", "weights.safetensors"
Network = TypeVar("Network", bound="MeasuringNetwork")


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of a measuring network and what it was trained on."""

    name: str
    kind: Literal["features", "segment"]
    classes: ClassTable
    mpp: float  # microns per pixel of the pictures it reads
    channels: tuple[int, ...]  # a level, finest first
    groups: tuple[str, ...] = ()  # source images that the network learned to tell apart (features)
    blocks: int = 2  # residual blocks a level
    norm_groups: int = 8
    version: str = "1"
    terms: str = ""

    @classmethod
    def load(cls, folder: Path) -> NetworkConfig:
        """Read ``config.json``; ModelError where it is missing or not of this kind."""
        path = Path(folder) / CONFIG_FILE
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            data["classes"] = ClassTable.from_config(data["classes"])
            values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
            return cls(**values)
        except OSError as error:
            raise ModelError(
                f"{folder}: holds no readable {CONFIG_FILE}; give a folder that wsigen train wrote"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: not the configuration of a measuring network ({error!r})") from error

    def to_json(self) -> str:
        """Serialise; ``load`` reads it back."""
        return json.dumps(asdict(self) | {"classes": self.classes.to_config()}, indent=2) + "\n"


class Block(nn.Module):
    """Residual block: two normalised 3 x 3 convolutions."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = AffineNorm(channels_in, groups), AffineNorm(channels_out, groups)
        self.conv_in = conv3x3(channels_in, channels_out)
        self.conv_out = zeroed(conv3x3(channels_out, channels_out))
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W)."""
        return self.skip(x) + self.conv_out(self.norm_out(self.conv_in(self.norm_in(x))))


class MeasuringNetwork(nn.Module):
    """Loading and saving, common to both."""

    kind: str

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by how training treats them: all alike."""
        return {"others": list(self.parameters())}

    @classmethod
    def from_pretrained(cls: type[Network], name_or_path: str | Path) -> Network:
        """Load a network that ships, by name, or any by its folder: float32, in evaluation mode. Raises ModelError."""
        folder = find_network(name_or_path)
        config = NetworkConfig.load(folder)
        if config.kind != cls.kind:
            raise ModelError(f"{folder}: a network of kind {config.kind!r} where one of kind {cls.kind!r} belongs")
        network = cls(config)
        path = folder / WEIGHTS_FILE
        try:
            network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
        except Exception as error:  # safetensors' own error, OSError, or torch's RuntimeError on other shapes
            reason = str(error).splitlines()[0]
            raise ModelError(f"{path}: cannot be loaded ({reason}); train or fetch the network again") from error
        return network.eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write configuration and weights, in ``dtype``, to ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(self.config.to_json(), encoding="utf-8")

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


@dataclass(frozen=True)
class Description:
    """What the feature network says of a batch."""

    features: Tensor  # (B, D): mean of the deepest level, what distances are taken over
    scales: Tensor  # (B, M): mean and deviation of every level, what probes read
    presence: Tensor  # (B, classes): logits, class occurs
    share: Tensor  # (B, classes): square root of the class's share of pixels
    source: Tensor  # (B, groups): logits, source image
    decay: Tensor  # (B, DECAYS): how much the patch was blurred, made noisy, compressed


DECAYS = 2  # blur, noise: see wsigen.training.recognising


class FeatureNetwork(MeasuringNetwork):
    """Describes a patch of any size, 64 px or more; see ``Description``.

    It learns to say which nuclei a patch holds, which source image it is from, and how much it was blurred or made
    noisy: the last keeps fine texture in the features, which classes alone would not need.
    """

    kind = "features"

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        first, groups = config.channels[0], config.norm_groups
        self.stem = conv3x3(3, first)
        self.levels = nn.ModuleList()
        channels = first
        for width in config.channels:
            blocks = [Block(channels if index == 0 else width, width, groups) for index in range(config.blocks)]
            self.levels.append(nn.Sequential(*blocks))
            channels = width
        self.norm = AffineNorm(channels, groups)
        classes = len(config.classes)
        self.sizes = (classes, classes, max(1, len(config.groups)), DECAYS)
        self.head = nn.Linear(channels, sum(self.sizes))

    def forward(self, images: Tensor) -> Description:
        """Describe ``images`` (B, 3, H, W) in [-1, 1]."""
        h = self.stem(images.contiguous(memory_format=torch.channels_last))
        scales = []
        for index, level in enumerate(self.levels):
            # The finest level is where most pixels are: one stride saves three quarters of the work.
            h = level(F.avg_pool2d(h, 2)) if index else level(h)
            scales += [h.float().mean((2, 3)), h.float().std((2, 3))]
        features = self.norm(h).float().mean((2, 3))
        presence, share, source, decay = self.head(features.to(self.head.weight.dtype)).float().split(self.sizes, dim=1)
        return Description(features, torch.cat(scales, 1), presence, share, source, decay)


class SegmentationNetwork(MeasuringNetwork):
    """Finds nuclei: a U-Net that says the class of each pixel and how deep it lies inside its nucleus."""

    kind = "segment"

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        groups, channels = config.norm_groups, config.channels[0]
        self.stem = conv3x3(3, channels)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for width in config.channels:
            blocks = [Block(channels if index == 0 else width, width, groups) for index in range(config.blocks)]
            self.down.append(nn.Sequential(*blocks))
            channels = width
        for width in config.channels[-2::-1]:
            self.up.append(Block(channels + width, width, groups))
            channels = width
        self.norm = AffineNorm(channels, groups)
        self.out = conv3x3(channels, len(config.classes) + 2)

    @property
    def size_multiple(self) -> int:
        """Sides of pictures must be multiples of this, px."""
        return 2 ** (len(self.config.channels) - 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """From ``images`` (B, 3, H, W) in [-1, 1]: class logits (B, classes + 1, H, W), background first, and depth.

        Depth (B, H, W) is 0 outside nuclei and 1 at their cores, not clamped.
        """
        h = self.stem(images.contiguous(memory_format=torch.channels_last))
        skips = []
        for index, level in enumerate(self.down):
            h = level(F.avg_pool2d(h, 2)) if index else level(h)
            skips.append(h)
        for block, skip in zip(self.up, skips[-2::-1]):
            h = block(torch.cat([F.interpolate(h, scale_factor=2.0, mode="nearest"), skip], dim=1))
        output = self.out(self.norm(h)).float()
        return output[:, :-1], output[:, -1]


def find_network(name_or_path: str | Path) -> Path:
    """Folder of a measuring network: one that ships, by name, or a path. ModelError says how to get one."""
    path = Path(name_or_path)
    if (path / CONFIG_FILE).is_file():
        return path
    shipped = {entry.parent.name: entry.parent for entry in WEIGHTS_ROOT.glob(f"*/{CONFIG_FILE}")}
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    names = ", ".join(sorted(shipped)) or "none ships"
    raise ModelError(
        f"no measuring network {str(name_or_path)!r} ({names}): train one with `wsigen train configs/features.toml` or "
        "configs/segmenter.toml and give its model folder"
    )


NETWORK_CHANNELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "features": ("features", (32, 64, 128, 256)),
    "features-tiny": ("features", (8, 16)),
    "segmenter": ("segment", (32, 64, 128, 256)),
    "segmenter-tiny": ("segment", (8, 16, 24)),
}


def network_config(
    architecture: str,
    kind: Literal["features", "segment"],
    classes: ClassTable,
    mpp: float,
    groups: tuple[str, ...] = (),
) -> NetworkConfig:
    """Configuration of a named architecture for some data; ModelError for a name of another kind or none."""
    known = {name: channels for name, (of_kind, channels) in NETWORK_CHANNELS.items() if of_kind == kind}
    if architecture not in known:
        raise ModelError(f"architecture {architecture!r}: not one of {', '.join(known)}, which the task can train")
    return NetworkConfig(f"colon-{architecture}", kind, classes, mpp, known[architecture], groups)
