"""How fast one forward of the denoiser is, and how near it comes to what the device can multiply.

A slide costs windows x steps forwards. A forward is timed with the SPADE maps of its mask computed anew, as in
training, and with the maps of an earlier call, as in painting (see UNet.spade_cache). The ceiling is a large bfloat16
matmul of random data on the same device in the same run: data sheets quote clocks that no machine holds.

    python benchmarks/denoiser.py --model preset:nasdm-colon-20x --device cuda --batch 64 --compile
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wsigen.devices import choose_device
from wsigen.errors import WsigenError
from wsigen.models.conditioning import condition_planes
from wsigen.models.config import ModelConfig
from wsigen.models.nasdm import NasdmModel

WARM_UP = 2  # forwards before the clock starts: allocator, cuDNN's and oneDNN's choice of algorithm
CEILING_SIDE = {"cuda": 8192, "cpu": 2048}  # matrix side: large enough to be bound by arithmetic, short enough to wait


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, shortest and longest of the repeats."""

    median: float
    shortest: float
    longest: float

    @classmethod
    def of(cls, samples: list[float]) -> Timing:
        """Summarise samples."""
        return cls(statistics.median(samples), min(samples), max(samples))

    def __str__(self) -> str:
        return f"{self.median * 1e3:.1f} ms (min {self.shortest * 1e3:.1f}, max {self.longest * 1e3:.1f})"


@dataclass(frozen=True)
class Inputs:
    """What NasdmModel.forward takes, in its order."""

    x: Tensor  # (B, 3, W, W)
    t: Tensor  # (B,)
    planes: Tensor  # (B, P, W, W)
    context: Tensor  # (B, 3, W, W)
    known: Tensor  # (B, 1, W, W)
    style: Tensor  # (B, 6)

    @classmethod
    def random(cls, config: ModelConfig, batch: int, window: int, device: str, dtype: torch.dtype) -> Inputs:
        """Noise, and a mask of random labels; the time does not depend on what the mask shows."""
        image, count = (batch, window, window), len(config.classes)
        classes = torch.randint(0, count + 1, image, dtype=torch.uint8, device=device)
        edges, tissue = (torch.randint(0, 2, image, dtype=torch.uint8, device=device) for _ in range(2))
        noise = torch.randn(batch, 10, window, window, device=device).to(dtype)
        x, context, known = (
            part.contiguous(memory_format=torch.channels_last)
            for part in (noise[:, :3], noise[:, 3:6], (noise[:, 6:7] > 0).to(dtype))
        )
        t = torch.full((batch,), 500, device=device)
        planes = condition_planes(classes, edges, tissue, count, dtype)
        return cls(x, t, planes, context, known, torch.randn(batch, 6, device=device).to(dtype))

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """The arguments of a forward without a cache."""
        return self.x, self.t, self.planes, self.context, self.known, self.style


def load(name: str) -> NasdmModel:
    """Load a model by name or path, or build ``preset:NAME`` with random weights."""
    if not name.startswith("preset:"):
        return NasdmModel.from_pretrained(name)
    model = NasdmModel(ModelConfig.preset(name.removeprefix("preset:"))).eval().requires_grad_(False)
    for parameter in model.parameters():  # zeroed layers would multiply at less power than trained ones
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model


def count_flops(model: NasdmModel, inputs: Inputs) -> tuple[int, int]:
    """Floating-point operations of a forward that computes its SPADE maps, and of one that is given them.

    Counted without computing, on torch's meta device, with attention as two matrix products: the counter knows no
    fused attention of CPUs.
    """
    meta = copy.deepcopy(model).to("meta")
    arguments = [argument.to("meta") for argument in inputs.arguments]

    def counted(function: Callable[[], Any]) -> int:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    cache = meta.spade_cache(arguments[2])
    return counted(lambda: meta(*arguments)), counted(lambda: meta(*arguments, cache))


def seconds_of(function: Callable[[], Any], device: str) -> float:
    """Time one call: with CUDA events on a GPU, by the clock elsewhere."""
    if device != "cuda":
        started = time.perf_counter()
        function()
        return time.perf_counter() - started
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def time_in_turn(functions: list[Callable[[], Any]], device: str, repeats: int) -> list[Timing]:
    """Time functions in turn, so that a busy moment of the machine does not fall on one of them alone."""
    for function in functions:
        for _ in range(WARM_UP):
            function()
    rounds = [[seconds_of(function, device) for function in functions] for _ in range(repeats)]
    return [Timing.of(list(samples)) for samples in zip(*rounds, strict=True)]


def ceiling_tflops(device: str, repeats: int) -> float:
    """The best of repeated bfloat16 matmuls of random data, in TFLOP/s."""
    side = CEILING_SIDE.get(device, CEILING_SIDE["cpu"])
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    (timing,) = time_in_turn([lambda: left @ right], device, max(repeats, 10))
    return 2 * side**3 / timing.shortest / 1e12


@torch.inference_mode()
def measure(
    name: str, device: str, dtype: str, batch: int, window: int | None, repeats: int, compiled: bool
) -> dict[str, Any]:
    """Run the benchmark and return its figures, as plain JSON."""
    torch.manual_seed(0)
    number = getattr(torch, dtype)
    model = load(name)
    config = model.config
    window = window or config.window
    model = model.to(device, number).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = Inputs.random(config, batch, window, device, number)
    flops = count_flops(model, inputs)
    ceiling = ceiling_tflops(device, repeats)
    forward = torch.compile(model) if compiled else model
    cache = model.spade_cache(inputs.planes)

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    forward(*inputs.arguments)
    forward(*inputs.arguments, cache)
    if device == "cuda":
        torch.cuda.synchronize()
    first_calls = time.perf_counter() - started
    timings = time_in_turn(
        [
            lambda: forward(*inputs.arguments),
            lambda: forward(*inputs.arguments, cache),
            lambda: model.spade_cache(inputs.planes),
        ],
        device,
        repeats,
    )

    def figures(timing: Timing, operations: int) -> dict[str, Any]:
        tflops = operations / timing.median / 1e12
        return {
            "seconds": asdict(timing),
            "gflop": operations / 1e9,
            "windows_per_s": batch / timing.median,
            "mpx_per_s": batch * window**2 / timing.median / 1e6,
            "tflops": tflops,
            "share_of_ceiling": tflops / ceiling,
        }

    steps = config.num_inference_steps
    return {
        "benchmark": "denoiser",
        "model": name,
        "parameters": model.parameter_count,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": dtype,
        "batch": batch,
        "window": window,
        "repeats": repeats,
        "compiled": compiled,
        "first_calls_s": first_calls,
        "ceiling_tflops": ceiling,
        "maps_computed": figures(timings[0], flops[0]),
        "maps_cached": figures(timings[1], flops[1]),
        "maps_s": asdict(timings[2]),
        "steps": steps,
        "painted_windows_per_s": batch / (steps * timings[1].median + timings[2].median),
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
    }


def report(result: dict[str, Any]) -> None:
    """Print the figures for people."""
    click.echo(
        f"{result['model']}: {result['parameters'] / 1e6:.1f} M parameters, {result['dtype']}, "
        f"batch {result['batch']} x {result['window']} px, "
        f"{result['device']}, torch {result['torch']}, {result['threads']} threads, "
        f"{'compiled' if result['compiled'] else 'eager'}; first calls {result['first_calls_s']:.1f} s"
    )
    for key, label in (("maps_computed", "maps computed"), ("maps_cached", "maps cached")):
        row = result[key]
        click.echo(
            f"{label}: {Timing(**row['seconds'])} a forward, {row['gflop']:.1f} GFLOP; {row['windows_per_s']:.2f} "
            f"windows/s, {row['mpx_per_s']:.3f} Mpx/s per step; {row['tflops']:.3f} TFLOP/s, "
            f"{row['share_of_ceiling']:.0%} of {result['ceiling_tflops']:.3f} (bf16 matmul)"
        )
    click.echo(f"the maps alone: {Timing(**result['maps_s'])}")
    click.echo(f"{result['steps']} steps: {result['painted_windows_per_s']:.3f} windows/s")
    if result["peak_memory_gib"] is not None:
        click.echo(f"peak memory: {result['peak_memory_gib']:.2f} GiB")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--model", default="nasdm-colon-20x-small", show_default=True, help="Name, folder, or preset:NAME (untrained)."
)
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]), show_default=True)
@click.option("--dtype", default="auto", type=click.Choice(["auto", "bfloat16", "float16", "float32"]))
@click.option("--batch", default=2, type=click.IntRange(min=1), show_default=True, help="Windows a forward.")
@click.option("--window", type=click.IntRange(min=1), help="Side of a window, px. [default: the model's]")
@click.option("--repeats", default=5, type=click.IntRange(min=1), show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Time torch.compile's forward.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Append one line of JSON to this file.")
def main(
    model: str,
    device: str,
    dtype: str,
    batch: int,
    window: int | None,
    repeats: int,
    compiled: bool,
    json_file: Path | None,
) -> None:
    """Time the denoiser's forward."""
    try:
        choice = choose_device(device, dtype)
        result = measure(model, choice.device, choice.dtype, batch, window, repeats, compiled)
    except WsigenError as error:
        raise click.ClickException(str(error)) from error
    report(result)
    if json_file:
        with json_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
