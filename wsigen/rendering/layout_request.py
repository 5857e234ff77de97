"""What a user asks a layout to be made of: a preset, a picture, a mask, or the file of a layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wsigen.choices import LAYOUT_PRESETS
from wsigen.errors import MaskError, SettingsError
from wsigen.layouts.architecture import layout_by_hand, sampled_layout
from wsigen.layouts.layout import Layout, is_layout
from wsigen.layouts.regions import layout_of_mask
from wsigen.masks.slide_mask import SlideMask
from wsigen.models.config import ModelConfig
from wsigen.system.pictures import load_picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
LARGEST_SIDE = 1 << 18  # px


@dataclass(frozen=True)
class LayoutRequest:
    """The source of a layout: a preset, a picture, a mask, or the file of a layout.

    Attributes:
        source: one of `wsigen.choices.LAYOUT_PRESETS`, or the path of a picture, a slide mask or a layout.
        size: width and height of the slide in px, 64 to 262,144 each. None: the size of the source.
        seed: seed of a preset.
        more: name of a class to the factor of its density, such as ``{"neutrophil": 3}``.
    """

    source: str = "mixed"
    size: tuple[int, int] | None = None
    seed: int = 0
    more: Mapping[str, float] = field(default_factory=dict)

    def resolve(self, config: ModelConfig) -> Layout:
        """Make the layout for a model. Raises SettingsError or MaskError."""
        layout = self._made(config)
        if layout.classes != config.classes.names:
            raise SettingsError(
                f"--layout {self.source}: its classes are {', '.join(layout.classes)}; the model has "
                f"{', '.join(config.classes.names)}"
            )
        if self.size is not None and self.size != (layout.width, layout.height):
            raise SettingsError(
                f"--size {self.size[0]}x{self.size[1]}: --layout {self.source} is of {layout.width}x{layout.height} "
                "px; leave --size out"
            )
        return layout.more(self.more) if self.more else layout

    def _made(self, config: ModelConfig) -> Layout:
        path = Path(self.source)
        if self.source in LAYOUT_PRESETS:
            return sampled_layout(self.source, *self._needed_size(), self.seed, config.classes, config.mpp)
        if not path.is_file():
            raise SettingsError(
                f"--layout {self.source}: neither a file nor one of {', '.join(LAYOUT_PRESETS)}; name one of these, a "
                "picture, a mask or a layout"
            )
        if path.suffix.lower() in PICTURES:
            return layout_by_hand(_read_picture(path), *self._needed_size(), config.classes, config.mpp)
        if is_layout(path):
            return Layout.open(path)
        with SlideMask.open(path, len(config.classes)) as mask:
            return layout_of_mask(mask, config.classes, config.mpp)

    def _needed_size(self) -> tuple[int, int]:
        if self.size is None:
            raise SettingsError(f"--layout {self.source}: give the slide's --size in px too, such as 2048 or 4096x2048")
        if not all(64 <= side <= LARGEST_SIDE for side in self.size):
            raise SettingsError(f"--size {self.size[0]}x{self.size[1]}: sides must lie from 64 to {LARGEST_SIDE} px")
        return self.size


def _read_picture(path: Path) -> np.ndarray:
    import pyvips

    try:
        image = load_picture(path).colourspace("srgb")
        if image.hasalpha():
            image = image.flatten(background=255)  # what is not painted is glass
        return np.asarray(image.numpy())
    except pyvips.Error as error:
        raise MaskError(f"{path}: cannot be read ({' '.join(str(error).split())}); give a PNG") from None
