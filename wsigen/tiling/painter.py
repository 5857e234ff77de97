"""Paint one batch of windows: from masks and neighbours to uint8 pixels.

Every window is conditioned on its mask, on the slide's stain style and on the pixels that are known already: its
neighbours' and clear glass. Before each update of the solver the predicted image is overwritten with what is known, so
that the unknown rest grows to fit (as in inpainting with a data-predicting solver); nothing is blended afterwards.

A window's pixels depend on nothing but the window: batches always have the same shape, noise is keyed by coordinates,
and context is what was stored, as uint8, never a live float.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from wsigen.diffusion.noise import coordinate_normals
from wsigen.diffusion.samplers import SamplerName, make_sampler
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import SettingsError
from wsigen.masks.conditions import Conditions
from wsigen.models.conditioned import CapturedNetwork
from wsigen.models.conditioning import condition_planes
from wsigen.models.denoise import WindowInputs, denoise
from wsigen.models.nasdm import NasdmModel
from wsigen.models.stain import StainStyle


@dataclass(frozen=True)
class WindowJob:
    """One window to paint.

    x0, y0: its upper left pixel at level 0. conditions: its mask, (W, W) each. context: (W, W, 3) uint8, what the
    canvas holds of it; known: (W, W) bool, where it holds something.
    """

    x0: int
    y0: int
    conditions: Conditions
    context: np.ndarray
    known: np.ndarray


@dataclass(frozen=True)
class _Inputs:
    """A batch on the device."""

    planes: Tensor  # (B, P, W, W), dtype of the model
    context: Tensor  # (B, 3, W, W) float32 in [-1, 1], 0 where unknown
    known: Tensor  # (B, 1, W, W) bool
    x0: Tensor  # (B,) int64
    y0: Tensor  # (B,) int64


class Painter:
    """Paints batches of at most ``batch_size`` windows with one model. Threads may share it.

    ``model`` lies on ``device`` in ``dtype`` already and is in evaluation mode. Raises SettingsError for a sampler or
    a number of steps that do not exist, or a guidance scale below 0.
    """

    def __init__(
        self,
        model: NasdmModel,
        style: StainStyle,
        *,
        sampler: str = "dpm++2m",
        num_inference_steps: int = 8,
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        seed: int = 0,
        batch_size: int = 4,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if guidance_scale < 0:
            raise SettingsError(f"--guidance-scale {guidance_scale}: must be 0 or more (1 is off)")
        config = model.config
        self.model = model
        self.schedule = NoiseSchedule.from_name(config.schedule, config.schedule_steps)
        self.sampler = make_sampler(cast(SamplerName, sampler), self.schedule, num_inference_steps, eta)
        self.guidance_scale = guidance_scale
        self.seed = seed
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.dtype = dtype
        self.glass_rgb = np.array(style.glass_rgb, np.uint8)
        vector = torch.from_numpy(config.style_range.normalise(np.asarray(style.vector)))
        self._captured = [CapturedNetwork(model) for _ in range(2)] if self.device.type == "cuda" else None
        self._using_captured = threading.Lock()
        self.style = vector.to(self.device, dtype).expand(batch_size, -1).contiguous()

    def needs_model(self, conditions: Conditions, owned: tuple[slice, slice]) -> bool:
        """Whether a window owns (rows, columns) any pixel that is not clear glass; the others are filled with glass."""
        return not conditions.glass[owned].all()

    @torch.inference_mode()
    def paint(self, jobs: Sequence[WindowJob], stop: Callable[[], bool] = lambda: False) -> np.ndarray:
        """Paint 1 to ``batch_size`` windows of one size: (n, W, W, 3) uint8, known pixels as they were.

        ``stop`` is asked before every step; InterruptedError is raised once it answers yes.
        """
        if not 1 <= len(jobs) <= self.batch_size:
            raise ValueError(f"a batch of {len(jobs)} windows; from 1 to {self.batch_size} fit")
        pinned = [self._pin_glass(job) for job in jobs]
        context, known = np.stack([c for c, _ in pinned]), np.stack([k for _, k in pinned])
        pixels = to_uint8(self._denoise(self._inputs(jobs, context, known), stop)[: len(jobs)])
        return np.where(known[..., None], context, pixels)

    def _pin_glass(self, job: WindowJob) -> tuple[np.ndarray, np.ndarray]:
        """Context and known pixels with clear glass among them; a painted neighbour's pixels stay as they are."""
        glass = job.conditions.glass & ~job.known
        return np.where(glass[..., None], self.glass_rgb, job.context), job.known | glass

    def _inputs(self, jobs: Sequence[WindowJob], context: np.ndarray, known: np.ndarray) -> _Inputs:
        """Pad to the fixed shape with copies of the first window, move to the device, expand."""
        rows = [*range(len(jobs)), *[0] * (self.batch_size - len(jobs))]

        def stacked(name: str) -> Tensor:
            return torch.from_numpy(np.stack([getattr(jobs[r].conditions, name) for r in rows])).to(self.device)

        classes = len(self.model.config.classes)
        planes = condition_planes(stacked("classes"), stacked("edges"), stacked("tissue"), classes, self.dtype)
        known_there = torch.from_numpy(known[rows]).to(self.device).unsqueeze(1)
        context_there = from_uint8(torch.from_numpy(context[rows]).to(self.device)) * known_there
        x0, y0 = (torch.tensor([getattr(jobs[r], n) for r in rows], device=self.device) for n in ("x0", "y0"))
        return _Inputs(planes, context_there, known_there, x0, y0)

    def _denoise(self, inputs: _Inputs, stop: Callable[[], bool]) -> Tensor:
        """Run the sampler: (B, 3, W, W) float32 in [-1, 1]."""

        def check(_step: int) -> None:
            if stop():
                raise InterruptedError("painting was stopped")

        with self._using_captured if self._captured else nullcontext():
            return denoise(
                self.model,
                self.schedule,
                self.sampler,
                WindowInputs(inputs.planes, inputs.context, inputs.known, self.style),
                self._noise(inputs, 0),
                lambda step: self._noise(inputs, step + 1),
                self.guidance_scale,
                check,
                self._captured,
            )

    def _noise(self, inputs: _Inputs, step: int) -> Tensor:
        height, width = inputs.planes.shape[-2:]
        return coordinate_normals(self.seed, inputs.x0, inputs.y0, height, width, step, device=self.device)


def from_uint8(pixels: Tensor) -> Tensor:
    """Map (B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1], in channels_last memory."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """Map (B, 3, H, W) in [-1, 1] to (B, H, W, 3) uint8, rounded; inverse of from_uint8."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
