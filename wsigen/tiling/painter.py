"""Paint one batch of windows: from masks and neighbours to uint8 pixels.

Every window is conditioned on its mask, on the slide's stain style and on the pixels that are known already: its
neighbours' and clear glass. Before each update of the solver the predicted image is overwritten with what is known, so
that the unknown rest grows to fit (as in inpainting with a data-predicting solver); nothing is blended afterwards.

A window's pixels depend on nothing but the window: batches always have the same shape, noise is keyed by coordinates,
and context is what was stored, as uint8, never a live float.
"""

import threading
import time
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
class Prepared:
    """A batch on the device, padded to the fixed shape."""

    count: int  # windows that are wanted; the rest is padding
    conditions: Tensor  # (B, 3, W, W) uint8: classes, edges, tissue
    context: Tensor  # (B, W, W, 3) uint8
    known: Tensor  # (B, W, W) bool
    corners: Tensor  # (2, B) int64: x0, y0
    ready: torch.cuda.Event | None = None  # of the copies, on a GPU

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that was copied."""
        return self.conditions, self.context, self.known, self.corners


@dataclass(frozen=True)
class Launched:
    """Pixels of a batch, (B, W, W, 3) uint8 in the host's memory; on a GPU not before ``copied``."""

    count: int
    pixels: Tensor
    seconds: float = 0.0
    begun: torch.cuda.Event | None = None
    ended: torch.cuda.Event | None = None
    copied: torch.cuda.Event | None = None


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
        on_gpu = self.device.type == "cuda"
        self._copies_in = torch.cuda.Stream(self.device) if on_gpu else None
        self._copies_out = torch.cuda.Stream(self.device) if on_gpu else None

    def needs_model(self, conditions: Conditions, owned: tuple[slice, slice]) -> bool:
        """Whether a window owns (rows, columns) any pixel that is not clear glass; the others are filled with glass."""
        return not conditions.glass[owned].all()

    def paint(self, jobs: Sequence[WindowJob], stop: Callable[[], bool] = lambda: False) -> np.ndarray:
        """Paint 1 to ``batch_size`` windows of one size: (n, W, W, 3) uint8, known pixels as they were.

        ``stop`` is asked before every step; InterruptedError is raised once it answers yes. This is `prepare`, `launch`
        and `fetch` in turn; on a GPU different threads may do them for different batches, so that it never waits.
        """
        return self.fetch(self.launch(self.prepare(jobs), stop))[0]

    @torch.inference_mode()
    def prepare(self, jobs: Sequence[WindowJob]) -> Prepared:
        """Stack a batch, pad it to the fixed shape with copies of the first window, and start copying it there."""
        if not 1 <= len(jobs) <= self.batch_size:
            raise ValueError(f"a batch of {len(jobs)} windows; from 1 to {self.batch_size} fit")
        padded = [*jobs, *[jobs[0]] * (self.batch_size - len(jobs))]
        pinned = {id(job): self._pin_glass(job) for job in jobs}
        planes = [[job.conditions.classes, job.conditions.edges, job.conditions.tissue] for job in padded]
        arrays = (
            np.array(planes, np.uint8),
            np.stack([pinned[id(job)][0] for job in padded]),
            np.stack([pinned[id(job)][1] for job in padded]),
            np.array([[job.x0 for job in padded], [job.y0 for job in padded]], np.int64),
        )
        tensors = [torch.from_numpy(array) for array in arrays]
        if self._copies_in is None:
            conditions, context, known, corners = (tensor.to(self.device) for tensor in tensors)
            return Prepared(len(jobs), conditions, context, known, corners)
        # Page-locked memory and a stream of its own: the copy runs beside the batch that is being painted.
        with torch.cuda.stream(self._copies_in):
            there = (tensor.pin_memory().to(self.device, non_blocking=True) for tensor in tensors)
            conditions, context, known, corners = there
            return Prepared(len(jobs), conditions, context, known, corners, self._copies_in.record_event())

    @torch.inference_mode()
    def launch(self, batch: Prepared, stop: Callable[[], bool] = lambda: False) -> Launched:
        """Paint a batch. On a GPU this returns when all work is queued; one thread at a time calls it there."""
        if batch.ready is None or self._copies_out is None:
            started = time.perf_counter()
            pixels = self._pixels(batch, stop).cpu()
            return Launched(batch.count, pixels, time.perf_counter() - started)
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(batch.ready)
        for tensor in batch.tensors:
            tensor.record_stream(stream)
        begun = stream.record_event(torch.cuda.Event(enable_timing=True))
        pixels = self._pixels(batch, stop)
        ended = stream.record_event(torch.cuda.Event(enable_timing=True))
        with torch.cuda.stream(self._copies_out):
            self._copies_out.wait_event(ended)
            host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
            host.copy_(pixels, non_blocking=True)
            pixels.record_stream(self._copies_out)
            copied = self._copies_out.record_event()
        return Launched(batch.count, host, begun=begun, ended=ended, copied=copied)

    def fetch(self, launched: Launched) -> tuple[np.ndarray, float]:
        """Wait for a batch: its windows (n, W, W, 3) uint8, and the seconds that the device worked on it."""
        seconds = launched.seconds
        if launched.copied is not None and launched.begun is not None and launched.ended is not None:
            launched.copied.synchronize()
            seconds = launched.begun.elapsed_time(launched.ended) / 1000
        return launched.pixels[: launched.count].numpy(), seconds

    def _pin_glass(self, job: WindowJob) -> tuple[np.ndarray, np.ndarray]:
        """Context and known pixels with clear glass among them; a painted neighbour's pixels stay as they are."""
        glass = job.conditions.glass & ~job.known
        return np.where(glass[..., None], self.glass_rgb, job.context), job.known | glass

    def _pixels(self, batch: Prepared, stop: Callable[[], bool]) -> Tensor:
        """Paint a batch on the device: (B, W, W, 3) uint8."""
        classes, edges, tissue = batch.conditions.unbind(1)
        planes = condition_planes(classes, edges, tissue, len(self.model.config.classes), self.dtype)
        known = batch.known.unsqueeze(1)
        context = from_uint8(batch.context) * known
        inputs = WindowInputs(planes, context, known, self.style)
        painted = to_uint8(self._denoise(inputs, batch.corners, stop))
        return torch.where(batch.known[..., None], batch.context, painted)

    def _denoise(self, inputs: WindowInputs, corners: Tensor, stop: Callable[[], bool]) -> Tensor:
        """Run the sampler: (B, 3, W, W) float32 in [-1, 1]."""
        size = inputs.planes.shape[-1]

        def check(_step: int) -> None:
            if stop():
                raise InterruptedError("painting was stopped")

        with self._using_captured if self._captured else nullcontext():
            return denoise(
                self.model,
                self.schedule,
                self.sampler,
                inputs,
                self._noise(corners, size, 0),
                lambda step: self._noise(corners, size, step + 1),
                self.guidance_scale,
                check,
                self._captured,
            )

    def _noise(self, corners: Tensor, size: int, step: int) -> Tensor:
        return coordinate_normals(self.seed, corners[0], corners[1], size, size, step, device=self.device)


def from_uint8(pixels: Tensor) -> Tensor:
    """Map (B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1], in channels_last memory."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Map (B, 3, H, W) in [-1, 1] to (B, H, W, 3) uint8, rounded; inverse of from_uint8."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
