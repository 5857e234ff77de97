"""What a condition is: one thing that a denoiser is given about a window or about the slide.

A class of this room holds a condition's whole life: how a user sets it, what is read of a source for a window, the
tensors that the network takes, what stands for "not told", and how training draws it from labelled crops. A model's
configuration names its conditions, in order; `wsigen.conditions.registry` finds the classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from wsigen.conditions.settings import DrawSettings

if TYPE_CHECKING:  # a command that plans needs no torch
    import torch
    from torch import Tensor

    from wsigen.models.config import ModelConfig
    from wsigen.models.stain import StainStyle

Entry = Literal["planes", "pixels", "vector"]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a condition gives, and where it enters a network.

    "planes" (B, channels, H, W) describe the window: they modulate every level of a U-Net. "pixels", of the same shape,
    are images beside the noisy one. A "vector" (B, channels) is of the whole slide and enters beside the timestep.
    """

    name: str
    entry: Entry
    channels: int


@dataclass(frozen=True)
class Field:
    """How a form asks for a slide's value: a label, its kind, and what may be chosen where that is a list.

    default: what is shown where nothing is set; "" stands for not told. least, most: of a number.
    """

    label: str
    kind: Literal["text", "number", "choice"]
    choices: tuple[str, ...] = ()
    default: str = ""
    least: float | None = None
    most: float | None = None

    @property
    def bounds(self) -> str:
        """Bounds of a number in words: " from 0 to 120"; "" where there are none."""
        parts = ((" from", self.least), (" to", self.most))
        return "".join(f"{word} {bound}" for word, bound in parts if bound is not None)


@dataclass(frozen=True)
class WindowBatch:
    """What was read of a batch of windows, on the device.

    arrays: by name, (B, ...), what a source reads for a window. corners: (B, 2) int64, x and y of the windows' first
    pixels in the slide. size: px of a side. dtype: of the tensors that a network takes.
    """

    arrays: Mapping[str, Tensor]
    corners: Tensor
    size: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Crops:
    """A batch of crops of training pictures: planes (B, P, W, W) uint8 with their names, and the group of each (B,)."""

    planes: Tensor
    names: tuple[str, ...]
    group: Tensor

    def __getitem__(self, name: str) -> Tensor:
        """One plane, (B, W, W) uint8."""
        return self.planes[:, self.names.index(name)]

    @property
    def picture(self) -> Tensor:
        """The first three planes, (B, 3, W, W) uint8: what is painted."""
        return self.planes[:, :3]

    def part(self, which: Any) -> Crops:
        """Those of some numbers: a slice, indices or a mask, on any device or of numpy."""
        if not isinstance(which, slice):
            import torch

            which = torch.as_tensor(which, device=self.planes.device)
        return Crops(self.planes[which], self.names, self.group[which])


class Groups(Protocol):
    """What is known of the groups of training pictures; a group holds the pictures of one slide."""

    device: torch.device
    styles: list[StainStyle]  # of each group
    facts: list[Mapping[str, str]]  # of each group: what the manifest says of its pictures, such as the organ


@dataclass
class Draft:
    """A training batch on its way: conditions add their tensors, and may change the picture.

    crops: what was cut of the training pictures. image: (B, 3, W, W) in [-1, 1]. white: (B, 3) of clear glass, in
    [-1, 1]. power: (B, 3), by what the optical density of the picture was multiplied. known, pinned: (B, 1, W, W) bool,
    pixels that are given, and those of them that are given as clear glass. ignored: likewise, those that teach nothing.
    """

    crops: Crops
    image: Tensor
    white: Tensor
    power: Tensor
    known: Tensor
    pinned: Tensor
    generator: torch.Generator
    ignored: Tensor | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image)

    @property
    def device(self) -> torch.device:
        """Where the batch lies."""
        return self.image.device

    def rand(self, *shape: int) -> Tensor:
        """Even random numbers in [0, 1)."""
        import torch

        return torch.rand(shape, generator=self.generator, device=self.device)

    def randn(self, *shape: int) -> Tensor:
        """Normal random numbers."""
        import torch

        return torch.randn(shape, generator=self.generator, device=self.device)

    def coin(self, share: float) -> Tensor:
        """Draw which samples something happens to: (B, 1, 1, 1) bool."""
        return (self.rand(len(self)) < share)[:, None, None, None]

    def pin(self, pinned: Tensor) -> None:
        """Give pixels (B, 1, W, W) bool as clear glass."""
        import torch

        self.image = torch.where(pinned, self.white[:, :, None, None], self.image)
        self.pinned, self.known = self.pinned | pinned, self.known | pinned


class ConditionBatch(Mapping[str, "Tensor"]):
    """Tensors of a batch of windows by name, as `TensorSpec` describes them, on the network's device.

    Whatever the network takes, "context" (B, 3, H, W) in [-1, 1], 0 where unknown, and "known" (B, 1, H, W), bool or 0
    and 1, are there: the sampler keeps known pixels as they are.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def context(self) -> Tensor:
        """Known pixels, 0 elsewhere: (B, 3, H, W) in [-1, 1]."""
        return self._tensors["context"]

    @property
    def known(self) -> Tensor:
        """Which pixels are known: (B, 1, H, W), bool or 0 and 1."""
        return self._tensors["known"]

    def replaced(self, **tensors: Tensor) -> ConditionBatch:
        """The same with other tensors under some names."""
        return ConditionBatch({**self._tensors, **tensors})

    def map(self, change: Callable[[Tensor], Tensor]) -> ConditionBatch:
        """``change`` of every tensor."""
        return ConditionBatch({name: change(tensor) for name, tensor in self.items()})

    def to(self, dtype: torch.dtype) -> ConditionBatch:
        """The same in another number format."""
        return self.map(lambda tensor: tensor.to(dtype))

    def split(self, size: int) -> list[ConditionBatch]:
        """Parts of ``size`` windows, and one with the rest."""
        parts = zip(*(tensor.split(size) for tensor in self.values()), strict=True)
        return [ConditionBatch(dict(zip(self, part, strict=True))) for part in parts]

    def in_order(self, specs: tuple[TensorSpec, ...]) -> tuple[Tensor, ...]:
        """The tensors of ``specs``, in their order: what a compiled or distributed network is called with."""
        return tuple(self._tensors[spec.name] for spec in specs)


class Condition(ABC):
    """One condition of one model; a subclass gives ``name``, ``specs`` and ``draw`` and overrides what else it has.

    name: the key in config.json, in recipes and in `RenderSettings.conditions`. source: the kind of source that it is
    read from ("mask", "density"), or "" where it is a value of the slide or of its neighbours. guided: whether
    classifier-free guidance moves away from what the network paints without it.
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""
    guided: ClassVar[bool] = False

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors that it gives, in the order in which networks concatenate them."""

    def resolve(self, setting: Any) -> Any:
        """A user's setting (from the command line, Python or the viewer) as a value that JSON can hold.

        None stands for nothing set. Values that it gave are taken as well: records keep them. Raises SettingsError, in
        one line that names what is allowed.
        """
        return setting

    def form(self) -> Field | None:
        """How to ask for the slide's value; None where there is nothing to ask."""
        return None

    def of_slide(self, value: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Tensors (1, channels) of a value that `resolve` gave, the same for all windows."""
        return {}

    def of_windows(self, windows: WindowBatch) -> dict[str, Tensor]:
        """Tensors of a batch of windows."""
        return {}

    def glass(self, windows: WindowBatch) -> Tensor | None:
        """Where windows are known to be clear glass: (B, W, W) bool; None where this condition does not say."""
        return None

    def null(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What stands in the place of this condition's tensors where it is not told: zeros of the same shapes."""
        return {spec.name: batch[spec.name].new_zeros(batch[spec.name].shape) for spec in self.specs}

    def of_groups(self, groups: Groups) -> Tensor | None:
        """What is known of the groups of training pictures, (G, n) on their device; asked for once."""
        return None

    @abstractmethod
    def draw(self, draft: Draft, settings: DrawSettings, groups: Tensor | None) -> None:
        """Add this condition's tensors to a training batch, spoilt as the recipe's ``settings`` say.

        ``groups`` is what `of_groups` gave. Random numbers come from the draft's generator.
        """
