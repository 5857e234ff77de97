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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from wsigen.devices import cpu_has_bfloat16
from wsigen.diffusion.gaussian import hybrid_loss, q_sample, training_target
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import DataError, SettingsError
from wsigen.masks.classes import ClassTable
from wsigen.models.config import ModelConfig
from wsigen.models.nasdm import NasdmModel
from wsigen.models.stain import StyleRange
from wsigen.training import manifest as manifests
from wsigen.training.corrupt import Corruptor, TrainingBatch
from wsigen.training.manifest import Manifest
from wsigen.training.patches import PatchBank
from wsigen.training.settings import TrainSettings
from wsigen.training.sheet import write_sample_sheet

ParameterList = tuple[Tensor, ...] | list[Tensor]  # as torch passes it to an averaging function
NOISE_BINS = 10
BORDER = 8
VALIDATION_BATCH = 64


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
    """How far a call of :func:`train` came."""

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


class Trainer:
    """State of a run: network, its average, optimiser, data and step number."""

    def __init__(self, settings: TrainSettings, data: Path, out: Path, process: Process, compile_model: bool) -> None:
        self.settings, self.out, self.process = settings, out, process
        manifest = manifests.load(data)
        device = process.device
        self.bank = PatchBank(data, manifest, "train", settings, device)
        self.validation = PatchBank(data, manifest, "val", settings, device)
        torch.manual_seed(settings.seed)
        if settings.initial_model:
            self.model = NasdmModel.from_pretrained(settings.initial_model).requires_grad_(True).to(device)
        else:
            self.model = NasdmModel(_configure(settings, manifest, self.bank)).to(device)
        config = self.model.config
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types omit it
        self.average = AveragedModel(self.model, multi_avg_fn=self._average)
        self.schedule = NoiseSchedule.from_name(config.schedule, config.schedule_steps)
        self.mixed_precision = device.type == "cuda" or (device.type == "cpu" and cpu_has_bfloat16())
        fused = device.type == "cuda"
        self.optimiser = torch.optim.AdamW(
            _parameter_groups(self.model, settings.modulation_rate),
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
        self.corrupt, self.corrupt_validation = (self._corruptor(bank) for bank in (self.bank, self.validation))
        self.step, self.seconds, self.images = 0, 0.0, 0

    def _corruptor(self, bank: PatchBank) -> Corruptor:
        config, settings = self.model.config, self.settings
        _, raw, glass = bank.style_tensors(config.style_range)
        return Corruptor(
            len(config.classes), raw, glass, config.style_range, settings.context, settings.condition, settings.augment
        )

    @property
    def averaged(self) -> NasdmModel:
        """The averaged network: the one that is evaluated and shipped."""
        assert isinstance(self.average.module, NasdmModel)
        return self.average.module

    def generator(self, step: int, stream: int) -> torch.Generator:
        """Generator of one step of one process; streams keep training and validation apart."""
        key = (self.settings.seed * 1_000_003 + step) * 4096 + self.process.rank * 2 + stream
        return torch.Generator(self.process.device).manual_seed(key % 2**63)

    def _average(self, averaged: ParameterList, current: ParameterList, _count: Tensor | int) -> None:
        """Exponential moving average whose memory grows with the run, so that the untrained start is forgotten."""
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def loss(self, network: Callable[..., Tensor], batch: TrainingBatch, t: Tensor, noise: Tensor) -> Tensor:
        """Per-sample loss (B,), weighted as :func:`pixel_weights` says."""
        config = self.model.config
        if config.learned_variance:  # the variational bound belongs to the discrete chain
            t = t.round()
        with torch.autocast(self.process.device.type, torch.bfloat16, enabled=self.mixed_precision):
            x = q_sample(self.schedule, batch.x0, t, noise)
            output = network(x, t, batch.planes, batch.context, batch.known, batch.style)
        if config.learned_variance:
            mean, raw = output.float().chunk(2, dim=1)
            return hybrid_loss(self.schedule, config.prediction, mean, raw, batch.x0, t, noise)
        target = training_target(config.prediction, self.schedule, batch.x0, t, noise)
        weight = pixel_weights(batch.known, self.settings.known_weight, self.settings.border_weight)
        error = (output.float() - target).square().mean(dim=1, keepdim=True) * weight
        return error.sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3)).clamp(min=1)

    def draw(self, bank: PatchBank, corrupt: Corruptor, window: int, size: int, generator: torch.Generator):
        """Draw a batch, its timesteps (real numbers, stratified over the batch) and its noise."""
        batch = corrupt(bank.sample(window, size, generator), generator)
        device = self.process.device
        place = (torch.arange(size, device=device) + torch.rand(size, generator=generator, device=device)) / size
        t = place * (self.schedule.T - 1)
        noise = torch.randn(batch.x0.shape, generator=generator, device=device)
        return batch, t, noise

    def train_step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step; return per-sample losses, timesteps and the gradient norm, on the device."""
        settings = self.settings
        window, size = settings.phase_at(self.step).crops_at(self.step)
        self.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate_at(self.step) * group["rate"]
        batch, t, noise = self.draw(self.bank, self.corrupt, window, size, self.generator(self.step, 0))
        losses = self.loss(self.network, batch, t, noise)
        self.optimiser.zero_grad(set_to_none=True)
        losses.mean().backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        self.optimiser.step()
        self.average.update_parameters(self.model)
        self.step += 1
        self.images += size * self.process.world
        return losses.detach(), t, norm

    @torch.no_grad()
    def validate(self) -> list[float]:
        """Loss of the averaged network on fixed held-out crops, by noise level (NOISE_BINS values)."""
        window = self.settings.phase_at(self.step - 1).windows[0]
        generator = self.generator(0, 1)
        batch, t, noise = self.draw(self.validation, self.corrupt_validation, window, VALIDATION_BATCH, generator)
        self.average.eval()
        losses = self.loss(self.averaged, batch, t, noise)
        return _by_noise_level(losses, t, self.schedule.T)

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


def _configure(settings: TrainSettings, manifest: Manifest, bank: PatchBank) -> ModelConfig:
    """Fill a preset with what the data says: classes, scale, range of stain styles, named styles."""
    preset = ModelConfig.preset(settings.architecture)
    if len(preset.classes) != len(manifest.classes):
        preset = replace(preset, classes=ClassTable.from_config(manifest.classes))
    vectors = np.array([style.vector for style in bank.styles])
    style_range = preset.style_range
    if len(vectors) >= 4:
        spread = np.maximum(vectors.std(axis=0), 0.01)
        style_range = StyleRange(
            tuple(round(float(v), 5) for v in vectors.mean(axis=0)), tuple(round(float(v), 5) for v in spread)
        )
    by_group = dict(zip(bank.groups, bank.styles))
    if missing := [group for group in settings.styles.values() if group not in by_group]:
        raise SettingsError(f"styles: the training split has no group {missing[0]!r}; it has {', '.join(by_group)}")
    styles = tuple(replace(by_group[group], name=name) for name, group in settings.styles.items())
    return replace(
        preset,
        mpp=manifest.mpp,
        style_range=style_range,
        styles=styles or preset.styles,
        default_style=settings.default_style or (next(iter(settings.styles)) if styles else preset.default_style),
    )


def _parameter_groups(model: nn.Module, modulation_rate: float) -> list[dict[str, Any]]:
    """Split parameters into those of time and style modulation, which learn slower, and the others.

    The embedding is nearly the same for every sample, so Adam's steps on the layers that read it add up. At the full
    rate their scales grew to 80 within minutes, residual streams to 2,000, and the deepest level stopped learning.
    """
    modulation: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (modulation if ".time." in name or "_mlp." in name else others).append(parameter)
    return [{"params": others, "rate": 1.0}, {"params": modulation, "rate": modulation_rate}]


def pixel_weights(known: Tensor, known_weight: float, border_weight: float) -> Tensor:
    """Weights of the loss (B, 1, H, W): 1 on unknown pixels, ``known_weight`` on known ones (``known`` is 0 or 1).

    Known pixels are overwritten when sampling, but a network that need not reproduce them carries nothing of them to
    its last layers, and paints on as if they were not there: its error one pixel away from them was larger than that of
    repeating them. Unknown pixels within BORDER px of known ones get ``border_weight`` more, since that is where an
    eye finds a seam.
    """
    near = F.max_pool2d(known, 2 * BORDER + 1, stride=1, padding=BORDER)
    return torch.where(known > 0, known_weight, 1 + border_weight * near)


def _by_noise_level(losses: Tensor, t: Tensor, steps: int) -> list[float]:
    """Mean loss in each of NOISE_BINS equal ranges of timesteps; nan where a range is empty."""
    bins = (t / steps * NOISE_BINS).long().clamp(0, NOISE_BINS - 1)
    total = torch.zeros(NOISE_BINS, device=losses.device).index_add_(0, bins, losses.float())
    count = torch.zeros(NOISE_BINS, device=losses.device).index_add_(0, bins, torch.ones_like(losses.float()))
    return (total / count).tolist()


class CsvLog:
    """Appends one line an interval: mean loss, loss by noise level, learning rate, gradient norm, speed."""

    HEADER = ("split", "step", "window", "images", "seconds", "images_per_s", "lr", "grad_norm", "loss")

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            self._write([*self.HEADER, *(f"loss_t{index}" for index in range(NOISE_BINS))])

    def add(self, split: str, values: list[Any], levels: list[float]) -> None:
        """Append a line; the mean loss is that of ``levels``."""
        present = [level for level in levels if not math.isnan(level)]
        mean = sum(present) / max(1, len(present))
        self._write([split, *values, f"{mean:.5f}", *(f"{level:.5f}" for level in levels)])

    def _write(self, row: list[Any]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)


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
    trainer = Trainer(settings, Path(data), out, process, compiled)
    if resume and (out / "checkpoint.pt").exists():
        trainer.load()
    if process.leads:
        (out / "settings.json").write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
        config = trainer.model.config
        report(
            f"{config.name}: {trainer.model.parameter_count / 1e6:.1f} M parameters on {process.world} x "
            f"{process.device.type}; {len(trainer.bank.entries)} training and {len(trainer.validation.entries)} "
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
    log = CsvLog(trainer.out / "log.csv") if process.leads else None
    losses: list[Tensor] = []
    times: list[Tensor] = []
    mark, mark_images = time.monotonic(), trainer.images
    while trainer.step < settings.total_steps:
        loss, t, norm = trainer.train_step()
        losses.append(loss)
        times.append(t)
        if trainer.step % settings.log_every and trainer.step < settings.total_steps:
            continue
        levels = _by_noise_level(torch.cat(losses), torch.cat(times), trainer.schedule.T)  # waits for the device
        losses, times = [], []
        now = time.monotonic()
        speed = (trainer.images - mark_images) / (now - mark)
        trainer.seconds += now - mark
        mark, mark_images = now, trainer.images
        if log is not None:
            window = settings.phase_at(trainer.step - 1).windows[0]
            rate = settings.learning_rate_at(trainer.step - 1)
            row = [trainer.step, window, trainer.images, f"{trainer.seconds:.1f}", f"{speed:.1f}", f"{rate:.2e}"]
            log.add("train", [*row, f"{float(norm):.4f}"], levels)
            if trainer.step % settings.evaluate_every == 0:
                held_out = trainer.validate()
                log.add("val", [*row, ""], held_out)
                write_sample_sheet(trainer.averaged, trainer.validation, window, _sheet_path(trainer))
                mean = sum(held_out) / len(held_out)
                report(f"step {trainer.step}: {speed:.0f} images/s, held-out loss {mean:.4f}")
            if trainer.step % settings.checkpoint_every == 0:
                trainer.save()
            mark = time.monotonic()
        if _agree(stopped() or (deadline is not None and now > deadline), process):
            break


def _sheet_path(trainer: Trainer) -> Path:
    return trainer.out / "samples" / f"step-{trainer.step:06d}.png"


def _agree(stop: bool, process: Process) -> bool:
    """Whether any process wants to stop."""
    if process.world == 1:
        return stop
    flag = torch.tensor(float(stop), device=process.device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())
