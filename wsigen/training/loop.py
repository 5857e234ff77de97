"""The training loop behind ``wsigen train``: mixed precision, EMA, exact resume, one or several GPUs.

A step is a function of (settings, data, step number, process): its random numbers come from a generator that is
seeded anew for every step, so a resumed run continues as if it had never stopped. Start it with ``torchrun`` for
several GPUs; each process then draws its own crops and gradients are averaged.
"""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from wsigen.errors import DataError, SettingsError
from wsigen.system.devices import cpu_has_bfloat16
from wsigen.training.data import manifest as manifests
from wsigen.training.data.manifest import Manifest
from wsigen.training.patches import PatchBank
from wsigen.training.settings import TrainSettings

ParameterList = tuple[Tensor, ...] | list[Tensor]  # as torch passes it to an averaging function
VALIDATION_BATCH = 64

# What a recipe's `task` may be, and what trains it; imported when asked for.
TASKS = {
    "denoise": ("wsigen.training.denoising", "DenoisingTrainer"),
    "mask": ("wsigen.training.masking", "MaskTrainer"),
    "distill": ("wsigen.training.distillation", "ConsistencyTrainer"),
    "guidance": ("wsigen.training.distillation", "GuidanceTrainer"),
    "progressive": ("wsigen.training.progressive", "ProgressiveTrainer"),
    "segment": ("wsigen.training.segmenting", "SegmentingTrainer"),
    "features": ("wsigen.training.recognising", "RecognisingTrainer"),
}


class Trainable(nn.Module):
    """What a run trains: a module that says its name and size, and writes itself to a model folder."""

    config: Any
    parameter_count: int

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by how fast they learn: see `_parameter_groups`."""
        return {"others": list(self.parameters())}

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write configuration and weights."""
        raise NotImplementedError


@dataclass(frozen=True)
class Process:
    """This process among those of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0


@dataclass(frozen=True)
class TrainResult:
    """How far a call of ``train`` came."""

    step: int
    total_steps: int
    seconds: float
    images: int


def _join(device_name: str) -> Process:
    """Set up the process group where torchrun started several processes."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device_name == "auto":
        device_name = "cuda" if torch.cuda.is_available() else "cpu"
    if device_name == "cuda":
        device_name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = torch.device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Process(rank, world, device)


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a flag, so that a run ends at a step with a checkpoint."""
    stopped = False

    def note(*_: Any) -> None:
        nonlocal stopped
        stopped = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Trainer(ABC):
    """State of a run: network, its average, optimiser, data and step number. A subclass for each task adds the rest.

    ``columns`` name the parts that the log tells losses apart by: ranges of noise levels, or terms of a loss.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, settings: TrainSettings, data: Path, out: Path, process: Process, compile_model: bool) -> None:
        self.settings, self.out, self.process, self.compile_model = settings, out, process, compile_model
        manifest = manifests.load(data)
        device = process.device
        self.mixed_precision = device.type == "cuda" or (device.type == "cpu" and cpu_has_bfloat16())
        self.bank, self.held_out = (self.open_bank(data, manifest, split) for split in ("train", "val"))
        torch.manual_seed(settings.seed)
        self.model = self.build(manifest).to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types omit it
        self.average = AveragedModel(self.model, multi_avg_fn=self._average)
        fused = device.type == "cuda"
        self.optimiser = torch.optim.AdamW(
            _parameter_groups(self.model.parameter_groups(), settings.modulation_rate),
            settings.learning_rate,
            betas=(0.9, 0.99),
            eps=1e-10,  # gradients of the deepest level are small; 1e-8 would freeze them
            weight_decay=settings.weight_decay,
            fused=fused,
        )
        network: nn.Module = self.model
        if process.world > 1:
            network = nn.parallel.DistributedDataParallel(network, device_ids=[device.index] if fused else None)
        self.network = torch.compile(network, dynamic=False) if compile_model else network
        self.step, self.seconds, self.images = 0, 0.0, 0

    def open_bank(self, data: Path, manifest: Manifest, split: str) -> PatchBank:
        """Load one side of the split."""
        return PatchBank(data, manifest, split, self.settings, self.process.device)

    @abstractmethod
    def build(self, manifest: Manifest) -> Trainable:
        """Make the network, or load the one to start from; ``bank`` and ``held_out`` are there already."""

    @abstractmethod
    def draw(self, bank: PatchBank, window: int, size: int, generator: torch.Generator) -> Any:
        """Draw a batch of ``size`` crops from ``bank``, on the device."""

    @abstractmethod
    def losses(self, network: Callable[..., Any], batch: Any) -> tuple[Tensor, Tensor]:
        """Return losses (N,) and, for each, the number of its column (N,); their mean is what training lowers."""

    def show(self, window: int) -> None:  # noqa: B027 - not every task has pictures to show
        """Write pictures that show how the run is doing."""

    @property
    def averaged(self) -> Trainable:
        """The averaged network: the one that is evaluated and shipped."""
        return cast(Trainable, self.average.module)

    def generator(self, step: int, stream: int) -> torch.Generator:
        """Generator of one step of one process; streams keep training and validation apart."""
        key = (self.settings.seed * 1_000_003 + step) * 4096 + self.process.rank * 2 + stream
        return torch.Generator(self.process.device).manual_seed(key % 2**63)

    def autocast(self) -> torch.autocast:
        """Mixed precision where the device has it."""
        return torch.autocast(self.process.device.type, torch.bfloat16, enabled=self.mixed_precision)

    def _average(self, averaged: ParameterList, current: ParameterList, _count: Tensor | int) -> None:
        """Exponential moving average whose memory grows with the run, so that the untrained start is forgotten."""
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def train_step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step; return losses, their columns and the gradient norm, on the device."""
        settings = self.settings
        window, size = settings.phase_at(self.step).crops_at(self.step)
        self.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate_at(self.step) * group["rate"]
        losses, columns = self.losses(self.network, self.draw(self.bank, window, size, self.generator(self.step, 0)))
        self.optimiser.zero_grad(set_to_none=True)
        losses.mean().backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        self.optimiser.step()
        self.average.update_parameters(self.model)
        self.step += 1
        self.images += size * self.process.world
        return losses.detach(), columns, norm

    @torch.no_grad()
    def validate(self) -> list[float]:
        """Loss of the averaged network on fixed held-out crops, by column."""
        window = self.settings.phase_at(self.step - 1).windows[0]
        batch = self.draw(self.held_out, window, VALIDATION_BATCH, self.generator(0, 1))
        self.average.eval()
        losses, columns = self.losses(self.averaged, batch)
        return mean_by_column(losses, columns, len(self.columns))

    def save(self) -> None:
        """Write checkpoint.pt whole or not at all, and the averaged network as a model folder."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "images": self.images,
        }
        temporary = self.out / "checkpoint.pt.tmp"
        torch.save(state, temporary)
        temporary.replace(self.out / "checkpoint.pt")
        self.averaged.save_pretrained(self.out / "model", torch.float16)

    def load(self) -> None:
        """Continue from checkpoint.pt."""
        path = self.out / "checkpoint.pt"
        try:
            state = torch.load(path, map_location=self.process.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.seconds, self.images = state["step"], state["seconds"], state["images"]
        except (OSError, EOFError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DataError(f"{path} cannot be resumed ({reason}); start a new run") from error


def trainer_for(task: str) -> type[Trainer]:
    """Return what trains a task of a recipe; SettingsError for a task that is none."""
    if task not in TASKS:
        raise SettingsError(f"task {task!r}: unknown; choose one of {', '.join(TASKS)}")
    module, name = TASKS[task]
    return getattr(import_module(module), name)


def _parameter_groups(parts: Mapping[str, list[nn.Parameter]], modulation_rate: float) -> list[dict[str, Any]]:
    """Parameters as an optimiser takes them: those of time and style modulation learn slower than the others.

    The embedding is nearly the same for every sample, so Adam's steps on the layers that read it add up. At the full
    rate their scales grew to 80 within minutes, residual streams to 2,000, and the deepest level stopped learning.
    """
    rates = {"modulation": modulation_rate}
    return [{"params": part, "rate": rates.get(name, 1.0)} for name, part in parts.items() if part]


def mean_by_column(losses: Tensor, columns: Tensor, count: int) -> list[float]:
    """Mean loss in each of ``count`` columns; nan where a column is empty."""
    total = torch.zeros(count, device=losses.device).index_add_(0, columns, losses.float())
    number = torch.zeros(count, device=losses.device).index_add_(0, columns, torch.ones_like(losses.float()))
    return (total / number).tolist()


class CsvLog:
    """Appends one line an interval: mean loss, loss by column, learning rate, gradient norm, speed."""

    HEADER = ("split", "step", "window", "images", "seconds", "images_per_s", "lr", "grad_norm", "loss")

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path = path
        if not path.exists():
            self._write([*self.HEADER, *(f"loss_{column}" for column in columns)])

    def add(self, split: str, values: list[Any], parts: list[float]) -> None:
        """Append a line; the mean loss is that of ``parts``."""
        self._write([split, *values, f"{_mean(parts):.5f}", *(f"{part:.5f}" for part in parts)])

    def _write(self, row: list[Any]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)


def _mean(parts: list[float]) -> float:
    present = [part for part in parts if not math.isnan(part)]
    return sum(present) / max(1, len(present))


def train(
    settings: TrainSettings,
    data: Path,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    minutes: float | None = None,
    compile_model: bool | None = None,
    report: Callable[[str], None] = print,
) -> TrainResult:
    """Train until the recipe is done, ``minutes`` have passed, or Ctrl-C; write checkpoint, log and sample sheets.

    ``out`` receives checkpoint.pt, model/, log.csv, settings.json and samples/*.png. Raises SettingsError when
    ``out`` holds a run and ``resume`` is false, DataError when data or checkpoint cannot be used.
    """
    started = time.monotonic()
    out = Path(out)
    if (out / "checkpoint.pt").exists() and not resume:
        raise SettingsError(f"{out} holds a run already; continue it with --resume, or choose another folder")
    process = _join(device)
    torch.set_float32_matmul_precision("high")
    out.mkdir(parents=True, exist_ok=True)
    compiled = process.device.type == "cuda" if compile_model is None else compile_model
    trainer = trainer_for(settings.task)(settings, Path(data), out, process, compiled)
    if resume and (out / "checkpoint.pt").exists():
        trainer.load()
    if process.leads:
        (out / "settings.json").write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
        report(
            f"{trainer.model.config.name}: {trainer.model.parameter_count / 1e6:.1f} M parameters on {process.world} x "
            f"{process.device.type}; {len(trainer.bank.entries)} training and {len(trainer.held_out.entries)} "
            f"held-out images; step {trainer.step} of {settings.total_steps}; data ready after "
            f"{time.monotonic() - started:.0f} s"
        )
    deadline = None if minutes is None else started + 60 * minutes
    with _stop_on_signal() as stopped:
        _run(trainer, deadline, stopped, report)
    if process.leads:
        trainer.save()
        report(f"{out}/model holds the averaged network after {trainer.step} steps, {trainer.images} images")
    if process.world > 1:
        dist.barrier()
        dist.destroy_process_group()
    return TrainResult(trainer.step, settings.total_steps, trainer.seconds, trainer.images)


def _run(trainer: Trainer, deadline: float | None, stopped: Callable[[], bool], report: Callable[[str], None]) -> None:
    """Step until done; every process sees the same decision to stop."""
    settings, process = trainer.settings, trainer.process
    log = CsvLog(trainer.out / "log.csv", trainer.columns) if process.leads else None
    losses: list[Tensor] = []
    columns: list[Tensor] = []
    mark, mark_images = time.monotonic(), trainer.images
    while trainer.step < settings.total_steps:
        loss, column, norm = trainer.train_step()
        losses.append(loss)
        columns.append(column)
        if trainer.step % settings.log_every and trainer.step < settings.total_steps:
            continue
        parts = mean_by_column(torch.cat(losses), torch.cat(columns), len(trainer.columns))  # waits for the device
        losses, columns = [], []
        now = time.monotonic()
        speed = (trainer.images - mark_images) / (now - mark)
        trainer.seconds += now - mark
        mark, mark_images = now, trainer.images
        if log is not None:
            window = settings.phase_at(trainer.step - 1).windows[0]
            rate = settings.learning_rate_at(trainer.step - 1)
            row = [trainer.step, window, trainer.images, f"{trainer.seconds:.1f}", f"{speed:.1f}", f"{rate:.2e}"]
            log.add("train", [*row, f"{float(norm):.4f}"], parts)
            if trainer.step % settings.evaluate_every == 0:
                held_out = trainer.validate()
                log.add("val", [*row, ""], held_out)
                trainer.show(window)
                report(f"step {trainer.step}: {speed:.0f} images/s, held-out loss {_mean(held_out):.4f}")
            if trainer.step % settings.checkpoint_every == 0:
                trainer.save()
            mark = time.monotonic()
        if _agree(stopped() or (deadline is not None and now > deadline), process):
            break


def _agree(stop: bool, process: Process) -> bool:
    """Whether any process wants to stop."""
    if process.world == 1:
        return stop
    flag = torch.tensor(float(stop), device=process.device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())
