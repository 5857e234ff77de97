"""Paint one batch of windows: from what a source says of them and from their neighbours to uint8 pixels.

Every window is conditioned on its mask, on the slide's stain style and on the pixels that are known already: its
neighbours' and clear glass. Before each update of the solver the predicted image is overwritten with what is known, so
that the unknown rest grows to fit (as in inpainting with a data-predicting solver). What two windows paint in their
common band is blended when it is read, see `wsigen.painting.blending`.

A window's pixels depend on nothing but the window: batches always have the same shape, noise is keyed by coordinates,
context is what was stored, as uint8, never a live float, and rows of a batch are computed alike, which is checked
before the first batch (`Painter.open`).
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from wsigen_kernels import attention, norm

from wsigen.conditions.context import context_tensors, to_uint8
from wsigen.conditions.contract import ConditionBatch, WindowBatch
from wsigen.conditions.guidance import PRESENT, present_plane
from wsigen.conditions.registry import source_of
from wsigen.diffusion.noise import coordinate_normals
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import SettingsError
from wsigen.models.stain import StainStyle
from wsigen.networks.denoise import denoise, model_sampler
from wsigen.networks.denoiser import Denoiser
from wsigen.networks.recorded import Recorded
from wsigen.painting import early
from wsigen.painting.compiled import compiles, digest, kernels_of, triton_version
from wsigen.painting.rows import RowCheck, Verdict, equal_rows, rows_are_equal
from wsigen.painting.source import SOURCES, WindowData
from wsigen.painting.spec import environment
from wsigen.system.cores import available_cores
from wsigen.system.local_cache import one_process_at_a_time, recall, remember

RECORDED_STEPS = 100  # up to so many a batch is one CUDA graph; longer ones keep a GPU busy without


@dataclass(frozen=True)
class WindowJob:
    """One window to paint.

    x0, y0: its upper left pixel at level 0. data: what its conditions follow from, as its source read it.
    context: (W, W, 3) uint8, what the canvas holds of it; known: (W, W) bool, where it holds something.
    """

    x0: int
    y0: int
    data: WindowData
    context: np.ndarray
    known: np.ndarray


# What a source reads, (B, ...), in the order of its names; context (B, W, W, 3) uint8; known (B, W, W) bool; corners
# (B, 2) int64: x0, y0.
BatchTensors = tuple[Tensor, ...]
Kinds = tuple[tuple[torch.Size, torch.dtype], ...]  # of a batch's tensors
WAYS_TRIED = 1  # raised when `wsigen.painting.rows` tries other ways, so that older verdicts do not count


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

    ``model`` lies on ``device`` in ``dtype`` already and is in evaluation mode. ``values`` are of the slide, by the
    name of the condition, as `Condition.resolve` gives them; that of the stain is ``style``. Raises SettingsError for a
    sampler or a number of steps that do not exist, or a guidance scale below 0.
    """

    def __init__(
        self,
        model: Denoiser,
        style: StainStyle,
        *,
        sampler: str = "dpm++2m",
        num_inference_steps: int = 8,
        guidance_scale: float = 1.0,
        seed: int = 0,
        batch_size: int = 4,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        values: Mapping[str, Any] = {},
    ) -> None:
        if guidance_scale < 0:
            raise SettingsError(f"--guidance-scale {guidance_scale}: must be 0 or more (1 is off)")
        config = model.config
        self.model = model
        self.schedule = NoiseSchedule.from_name(config.schedule, config.schedule_steps)
        self.sampler = model_sampler(config, self.schedule, num_inference_steps, sampler)
        self.guidance = config.guidance(guidance_scale)
        self.seed = seed
        self.batch_size = batch_size
        self.device = _numbered(torch.device(device))
        self.dtype = dtype
        self.glass_rgb = np.array(style.glass_rgb, np.uint8)
        self._of_slide = self._slide_tensors({"stain": style, **values})
        self._glass = torch.from_numpy(self.glass_rgb).to(self.device)
        self._source = SOURCES[source_of(config)]
        self._names = tuple(self._source.example(config, model.size_multiple).arrays)
        on_gpu = self.device.type == "cuda"
        self._recorded = Recorded(self._pixels) if on_gpu and num_inference_steps <= RECORDED_STEPS else None
        self._verdicts: dict[Kinds, Verdict] = {}
        self._opening = threading.Lock()
        self._replaying = threading.Lock()
        self._copies_in = torch.cuda.Stream(self.device) if on_gpu else None
        self._copies_out = torch.cuda.Stream(self.device) if on_gpu else None

    def open(self, window: int) -> Verdict:
        """Make ready for windows of ``window`` px: compile kernels, check that rows are computed alike, record.

        Kernels are compiled once a machine, several at a time, and the check's verdict is kept there too; without a
        call the first batch does this. Raises SettingsError where rows of a batch differ whatever is tried.
        """
        batch = self.prepare([self.any_window(window)])
        if batch.ready is None:
            with torch.inference_mode():
                self._ensure_open(batch.tensors)
        else:
            self.fetch(self.launch(batch))  # which records it
        return self._verdicts[_kinds(batch.tensors)]

    def check_rows(self, window: int) -> Verdict:
        """Check anew whether rows of a batch are computed alike, whatever is known already."""
        batch = self.prepare([self.any_window(window)])
        with self._on_device(), torch.inference_mode():
            if batch.ready is not None:
                batch.ready.synchronize()
            return self._check(batch.tensors)

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
        rows = [(*job.data.arrays.values(), job.context, job.known, np.array([job.x0, job.y0])) for job in jobs]
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
        with self._on_device():
            return self._launch(batch, stop)

    def _launch(self, batch: Prepared, stop: Callable[[], bool]) -> Launched:
        if batch.ready is not None:
            torch.cuda.current_stream(self.device).wait_event(batch.ready)
        self._ensure_open(batch.tensors)
        if batch.ready is None or self._copies_out is None:
            started = time.perf_counter()
            pixels = self._pixels(*batch.tensors, stop=stop).cpu()
            return Launched(batch.count, pixels, time.perf_counter() - started)
        stream = torch.cuda.current_stream(self.device)
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

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """Make this painter's GPU the current one of the thread, and let libraries round as they do by default."""
        if self.device.type != "cuda":
            yield
            return
        product = torch.backends.cuda.matmul
        before = product.allow_tf32
        with (
            torch.cuda.device(self.device),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True),
        ):
            product.allow_tf32 = False
            try:
                yield
            finally:
                product.allow_tf32 = before

    def _ensure_open(self, tensors: BatchTensors) -> None:
        """Before the first batch of a shape: compile, and find out how to keep its rows equal."""
        kinds = _kinds(tensors)
        if kinds in self._verdicts:
            return
        with self._opening:
            if kinds in self._verdicts:
                return
            equal = tuple(tensor[:1].expand_as(tensor).contiguous() for tensor in tensors)
            name = f"rows-{self._fingerprint(kinds)}"
            # Processes take turns: what the first one compiles and finds out is there for the others.
            with one_process_at_a_time("opening"):
                known = recall(name)
                self._compile(equal, first=known is None)
                verdict = self._check(equal) if known is None else Verdict(**known)
                if known is None:
                    remember(name, asdict(verdict))
            self._verdicts[kinds] = verdict

    def _compile(self, equal: BatchTensors, first: bool) -> None:
        if not compiles(self.device):
            return
        from wsigen_kernels.compiling import compile_ahead

        processes = min(early.COMPILERS, available_cores()) if first else 0
        begun = partial(early.compiled, self.model.config.name)
        compile_ahead(lambda: self._compute(*equal), self.device, processes, begun)
        remember(kernels_of(str(self.device)), True)

    def _check(self, equal: BatchTensors) -> Verdict:
        """Run with equal rows and find a way for every operation that does not keep them equal.

        All steps make the same calls, so that on a CPU, where they take long, one step is enough. On a GPU all are
        made, and the pixels compared as well: kernels that are launched beside torch are seen by nothing else.
        """
        on_gpu, steps = self.device.type == "cuda", itertools.count()
        with RowCheck(self.batch_size) as check:
            try:
                pixels = self._compute(*equal, stop=lambda: not on_gpu and next(steps) > 0)
            except InterruptedError:
                return check.verdict
        if not rows_are_equal(pixels, self.batch_size):
            raise SettingsError(
                f"--batch-size {self.batch_size}: rows of a batch differ on this device, in one of wsigen's own "
                "kernels; set WSIGEN_NORM=torch, and report this"
            )
        return check.verdict

    def _fingerprint(self, kinds: Kinds) -> str:
        """What the verdict depends on: the network, the batch, the settings that choose calls, and what computes."""
        versions = [torch.backends.cudnn.version(), torch.get_num_threads(), norm.BACKEND, attention.BACKEND]
        network = [self.model.config.shape, self.guidance.scale]
        steps = [self.sampler.name, len(self.sampler.steps), str(self.dtype), str(kinds)]
        return digest(environment(str(self.device)), versions, network, steps, triton_version(), WAYS_TRIED)

    def _pixels(self, *tensors: Tensor, stop: Callable[[], bool] = lambda: False) -> Tensor:
        """Paint a batch with rows that are equal where their windows are; arguments and result as in `_compute`."""
        with equal_rows(self.batch_size, self._verdicts[_kinds(tensors)].ways):
            return self._compute(*tensors, stop=stop)

    def _compute(self, *tensors: Tensor, stop: Callable[[], bool] = lambda: False) -> Tensor:
        """Paint a batch on the device, arguments as in BatchTensors: (B, W, W, 3) uint8.

        Clear glass is known, but for a painted neighbour's pixels, which stay as they are.
        """
        *given, context, known, corners = tensors
        read = dict(zip(self._names, given, strict=True))
        windows = WindowBatch(read, corners, context.shape[1], self.dtype)
        for glass in [found for condition in self.model.conditions if (found := condition.glass(windows)) is not None]:
            context = torch.where((glass & ~known)[..., None], self._glass, context)
            known = known | glass
        conditions = self._conditions_of(windows, context, known)
        painted = to_uint8(self._denoise(conditions, corners, context.shape[1], stop))
        return torch.where(known[..., None], context, painted)

    def _conditions_of(self, windows: WindowBatch, context: Tensor, known: Tensor) -> ConditionBatch:
        """All conditions of a batch."""
        tensors = {**self._of_slide, **context_tensors(context, known)}
        for condition in self.model.conditions:
            tensors |= condition.of_windows(windows)
        tensors[PRESENT.name] = present_plane(tensors["context"])
        return ConditionBatch(tensors)

    def _slide_tensors(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """Conditions of the slide, the same in all rows of a batch; ``values`` by the name of the condition."""
        tensors: dict[str, Tensor] = {}
        for condition in self.model.conditions:
            tensors |= condition.of_slide(values.get(condition.name), self.device, self.dtype)
        return {name: tensor.expand(self.batch_size, -1).contiguous() for name, tensor in tensors.items()}

    def _denoise(self, conditions: ConditionBatch, corners: Tensor, size: int, stop: Callable[[], bool]) -> Tensor:
        """Run the sampler: (B, 3, W, W) float32 in [-1, 1]."""

        def check(_step: int) -> None:
            if stop():
                raise InterruptedError("painting was stopped")

        return denoise(
            self.model,
            self.schedule,
            self.sampler,
            conditions,
            self._noise(corners, size, 0),
            lambda step: self._noise(corners, size, step + 1),
            self.guidance,
            check,
        )

    def _noise(self, corners: Tensor, size: int, step: int) -> Tensor:
        stream = self.model.config.product.noise_stream
        return coordinate_normals(self.seed, corners[:, 0], corners[:, 1], size, size, step, stream, self.device)

    def any_window(self, side: int) -> WindowJob:
        """A window of some content, to try the painter with; a strip of it is painted already."""
        known = np.zeros((side, side), bool)
        known[:, : side // 8] = True
        context = np.full((side, side, 3), 200, np.uint8)
        return WindowJob(0, 0, self._source.example(self.model.config, side), context, known)


def _numbered(device: torch.device) -> torch.device:
    """The device with its number, so that no thread takes another one for it."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _kinds(tensors: Sequence[Tensor]) -> Kinds:
    return tuple((tensor.shape, tensor.dtype) for tensor in tensors)
