"""Paint one batch of windows: from masks and neighbours to uint8 pixels (or from layouts to pictures of masks).

Every window is conditioned on its mask, on the slide's stain style and on the pixels that are known already: its
neighbours' and clear glass. Before each update of the solver the predicted image is overwritten with what is known, so
that the unknown rest grows to fit (as in inpainting with a data-predicting solver). What two windows paint in their
common band is blended when it is read, see `wsigen.tiling.blending`.

A window's pixels depend on nothing but the window: batches always have the same shape, noise is keyed by coordinates,
and context is what was stored, as uint8, never a live float.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsigen.diffusion.noise import coordinate_normals
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import SettingsError
from wsigen.masks.conditions import Surroundings
from wsigen.masks.synthesis.layout import LayoutWindow
from wsigen.models.conditioned import WindowInputs
from wsigen.models.conditioning import condition_planes, derive_conditions
from wsigen.models.denoise import denoise, model_sampler
from wsigen.models.layouts import density_gains, layout_planes
from wsigen.models.nasdm import NasdmModel
from wsigen.models.recorded import Recorded
from wsigen.models.stain import StainStyle

RECORDED_STEPS = 100  # up to so many a batch is one CUDA graph; longer ones keep a GPU busy without


@dataclass(frozen=True)
class WindowJob:
    """One window to paint.

    x0, y0: its upper left pixel at level 0. mask: what its conditions follow from: of a mask model cells of a layout.
    context: (W, W, 3) uint8, what the canvas holds of it; known: (W, W) bool, where it holds something.
    """

    x0: int
    y0: int
    mask: Surroundings | LayoutWindow
    context: np.ndarray
    known: np.ndarray


# The arrays of Surroundings or LayoutWindow, (B, ...); context (B, W, W, 3) uint8; known (B, W, W) bool; corners (B, 2)
# int64: x0, y0.
BatchTensors = tuple[Tensor, ...]
MASK_STREAM = 1  # of noise: the mask of a seed and its slide see noise that has nothing to do with each other


@dataclass(frozen=True)
class Prepared:
    """A batch on the device, padded to the fixed shape."""

    count: int  # windows that are wanted; the rest is padding
    tensors: BatchTensors
    ready: torch.cuda.Event | None = None  # of the copies, on a GPU


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
        self.sampler = model_sampler(config, self.schedule, num_inference_steps, sampler, eta)
        self.guidance_scale = guidance_scale
        self.seed = seed
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.dtype = dtype
        self.glass_rgb = np.array(style.glass_rgb, np.uint8)
        vector = torch.from_numpy(config.told_stain(np.asarray(style.vector)))
        self.style = vector.to(self.device, dtype).expand(batch_size, -1).contiguous()
        self._glass = torch.from_numpy(self.glass_rgb).to(self.device)
        self._gains = density_gains(config.response, self.device)
        on_gpu = self.device.type == "cuda"
        self._recorded = Recorded(self._pixels) if on_gpu and num_inference_steps <= RECORDED_STEPS else None
        self._replaying = threading.Lock()
        self._copies_in = torch.cuda.Stream(self.device) if on_gpu else None
        self._copies_out = torch.cuda.Stream(self.device) if on_gpu else None

    def needs_model(self, mask: Surroundings | LayoutWindow, held: tuple[slice, slice]) -> bool:
        """Whether a window holds (rows, columns) a pixel that is not clear glass; the others are filled with glass."""
        return not mask.is_glass(held)

    def paint(self, jobs: Sequence[WindowJob], stop: Callable[[], bool] = lambda: False) -> np.ndarray:
        """Paint 1 to ``batch_size`` windows of one size: (n, W, W, 3) uint8, known pixels as they were.

        ``stop`` is asked before every step, on a GPU before every batch; InterruptedError is raised once it answers
        yes. This is `prepare`, `launch` and `fetch` in turn; on a GPU different threads may do them for different
        batches, so that it never waits.
        """
        return self.fetch(self.launch(self.prepare(jobs), stop))[0]

    @torch.inference_mode()
    def prepare(self, jobs: Sequence[WindowJob]) -> Prepared:
        """Stack a batch, pad it to the fixed shape with copies of the first window, and start copying it there."""
        if not 1 <= len(jobs) <= self.batch_size:
            raise ValueError(f"a batch of {len(jobs)} windows; from 1 to {self.batch_size} fit")
        rows = [(*job.mask.arrays, job.context, job.known, np.array([job.x0, job.y0])) for job in jobs]
        tensors = []
        for arrays in zip(*rows, strict=True):
            stacked = np.stack([*arrays, *[arrays[0]] * (self.batch_size - len(jobs))])
            tensors.append(torch.from_numpy(stacked))
        if self._copies_in is None:
            return Prepared(len(jobs), tuple(tensor.to(self.device) for tensor in tensors))
        # Page-locked memory and a stream of its own: the copy runs beside the batch that is being painted.
        with torch.cuda.stream(self._copies_in):
            there = tuple(tensor.pin_memory().to(self.device, non_blocking=True) for tensor in tensors)
            return Prepared(len(jobs), there, self._copies_in.record_event())

    @torch.inference_mode()
    def launch(self, batch: Prepared, stop: Callable[[], bool] = lambda: False) -> Launched:
        """Paint a batch. On a GPU this returns when all work is queued; one thread at a time calls it there."""
        if batch.ready is None or self._copies_out is None:
            started = time.perf_counter()
            pixels = self._pixels(*batch.tensors, stop=stop).cpu()
            return Launched(batch.count, pixels, time.perf_counter() - started)
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(batch.ready)
        for tensor in batch.tensors:
            tensor.record_stream(stream)
        begun = stream.record_event(torch.cuda.Event(enable_timing=True))
        if stop():
            raise InterruptedError("painting was stopped")
        if self._recorded is None:
            pixels = self._pixels(*batch.tensors, stop=stop)
        else:
            with self._replaying:
                pixels = self._recorded(*batch.tensors)
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

    def _pixels(self, *tensors: Tensor, stop: Callable[[], bool] = lambda: False) -> Tensor:
        """Paint a batch on the device, arguments as in BatchTensors: (B, W, W, 3) uint8.

        Clear glass is known, but for a painted neighbour's pixels, which stay as they are.
        """
        *given, context, known, corners = tensors
        planes, glass = self._conditions(given, corners, context.shape[1])
        context = torch.where((glass & ~known)[..., None], self._glass, context)
        known = known | glass
        is_known = known[:, None]
        inputs = WindowInputs(planes, from_uint8(context) * is_known, is_known, self.style)
        painted = to_uint8(self._denoise(inputs, corners, stop))
        return torch.where(known[..., None], context, painted)

    def _conditions(self, given: Sequence[Tensor], corners: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Condition planes (B, P, W, W), and where glass is known, (B, W, W) bool."""
        if self.model.config.paints == "mask":
            return layout_planes(given[0], corners, size, self.dtype, self._gains)
        classes, edges, tissue, glass = derive_conditions(*given)
        return condition_planes(classes, edges, tissue, len(self.model.config.classes), self.dtype), glass

    def _denoise(self, inputs: WindowInputs, corners: Tensor, stop: Callable[[], bool]) -> Tensor:
        """Run the sampler: (B, 3, W, W) float32 in [-1, 1]."""
        size = inputs.planes.shape[-1]

        def check(_step: int) -> None:
            if stop():
                raise InterruptedError("painting was stopped")

        return denoise(
            self.model,
            self.schedule,
            self.sampler,
            inputs,
            self._noise(corners, size, 0),
            lambda step: self._noise(corners, size, step + 1),
            self.guidance_scale,
            check,
        )

    def _noise(self, corners: Tensor, size: int, step: int) -> Tensor:
        stream = MASK_STREAM if self.model.config.paints == "mask" else 0
        return coordinate_normals(self.seed, corners[:, 0], corners[:, 1], size, size, step, stream, self.device)


def from_uint8(pixels: Tensor) -> Tensor:
    """Map (B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1], in channels_last memory."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Map (B, 3, H, W) in [-1, 1] to (B, H, W, 3) uint8, rounded; inverse of from_uint8."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
