"""Features of many patches, in batches: by our own network, or by Inception where its weights can be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsigen.conditions.context import from_uint8
from wsigen.errors import ModelError
from wsigen.networks.measuring import FeatureNetwork

BATCH = 64


@dataclass(frozen=True)
class PatchFeatures:
    """Features of N patches: ``features`` (N, D) for distances, ``scales`` (N, M) for probes; float32."""

    features: np.ndarray
    scales: np.ndarray


def to_images(patches: np.ndarray, device: torch.device) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in [-1, 1] on the device."""
    return from_uint8(torch.from_numpy(np.ascontiguousarray(patches)).to(device))


@torch.inference_mode()
def describe(
    network: FeatureNetwork, patches: np.ndarray, device: torch.device, tick: Callable[[int], None] = lambda n: None
) -> PatchFeatures:
    """Describe ``patches`` (N, H, W, 3) uint8, not resized; ``tick(n)`` is called as patches are done."""
    features, scales = [], []
    for start in range(0, len(patches), BATCH):
        said = network(to_images(patches[start : start + BATCH], device))
        features.append(said.features.cpu().numpy())
        scales.append(said.scales.cpu().numpy())
        tick(len(features[-1]))
    return PatchFeatures(np.concatenate(features), np.concatenate(scales))


@dataclass(frozen=True)
class InceptionFeatures:
    """What Inception says of N pictures: pool features (N, 2048) and class logits (N, 1008); float32."""

    features: np.ndarray
    logits: np.ndarray


class Inception:
    """Inception v3 of the Fréchet inception distance, through torch-fidelity, with its own bilinear resize to 299 px.

    ``weights`` is the file weights-inception-2015-12-05-6726825d.pth; without it torch-fidelity fetches it. Raises
    ModelError in one line where package or weights cannot be had.
    """

    def __init__(self, device: torch.device, weights: str | None = None) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:
            raise ModelError(
                f"Inception features need torch-fidelity ({error}); pip install torch-fidelity, or leave them out"
            ) from error
        try:
            extractor = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights
            )
        except Exception as error:  # of the download or of the file: URLError, OSError, RuntimeError, pickle's
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"Inception's weights cannot be had ({reason}); fetch weights-inception-2015-12-05-6726825d.pth and "
                "give its path with --inception-weights, or leave them out"
            ) from error
        self.extractor = extractor.to(device).eval()
        self.device = device

    @torch.inference_mode()
    def __call__(self, patches: np.ndarray) -> InceptionFeatures:
        """Describe ``patches`` (N, H, W, 3) uint8 of any size."""
        features, logits = [], []
        for start in range(0, len(patches), BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(patches[start : start + BATCH]))
            pooled, unbiased = self.extractor(batch.permute(0, 3, 1, 2).to(self.device))
            features.append(pooled.cpu().numpy())
            logits.append(unbiased.cpu().numpy())
        return InceptionFeatures(np.concatenate(features), np.concatenate(logits))
