"""The mask of a slide that is painted while it is viewed: read from end to end, and watched for changes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow
from wsigen.models.config import ModelConfig
from wsigen.rendering.plan import MaskFacts
from wsigen.system.caching import file_stamp
from wsigen.system.reporting import Reporter, silent
from wsigen.viewer.chart import ChartMaker, MaskChart

WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class ReadMask:
    """A mask that was read from end to end."""

    facts: MaskFacts
    chart: MaskChart


def read_mask(path: Path, config: ModelConfig, progress: Reporter = silent) -> ReadMask:
    """Read a mask once, for painting and for viewing. Raises MaskError."""
    with SlideMask.open(path, len(config.classes)) as source:
        maker = ChartMaker(
            source.width, source.height, len(config.classes), source.has_tissue, source.mpp or config.mpp
        )
        height = source.height

    def watch(band: MaskWindow) -> None:
        maker.add(band)
        progress("reading the mask", maker.rows_seen / height)

    facts = MaskFacts.read(path, config, watch)
    return ReadMask(facts, maker.result())


class MaskWatch:
    """Tells when the file of a mask has changed. For one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = file_stamp(path)
        self._checked = time.monotonic()

    def is_new(self) -> bool:
        """Whether the file differs from the one accepted last; False while there is no file."""
        self._checked = time.monotonic()
        stamp = file_stamp(self.path)
        return stamp is not None and stamp != self._stamp

    def is_new_after_a_while(self) -> bool:
        """The same, but the file is looked up once in WATCH_SECONDS at most; False in between."""
        return time.monotonic() - self._checked > WATCH_SECONDS and self.is_new()

    def accept(self) -> None:
        """Take the file as it is now for the known one."""
        self._stamp = file_stamp(self.path)
