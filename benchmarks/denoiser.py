"""How fast one forward of the denoiser is, and how near it comes to what the device can multiply.

A slide costs windows x steps forwards. A forward is timed with the SPADE maps of its mask computed anew, as in
training, and with the maps of an earlier call, as in painting (see Denoiser.prepare). The ceiling is a large bfloat16
matmul of random data on the same device in the same run: data sheets quote clocks that no machine holds.

Variants: ``eager`` and ``compiled`` (torch.compile, dynamic=False) use torch alone; ``ours`` the Triton kernels, in as
few passes as they allow (wsigen.networks.unet_fused); ``ours+compiled`` lets torch.compile fuse what is left between
them; ``auto`` is what this machine would choose. On a GPU every variant is replayed from a CUDA graph.

    python benchmarks/denoiser.py --model preset:nasdm-colon-20x --device cuda --batch 64 --variant all
    python benchmarks/denoiser.py --device cuda --batch 64 --variant all --quick
    python benchmarks/denoiser.py --device cpu --variant all --tiny
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import click

if "--tiny" in sys.argv:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are imported

import torch
from timing import graphed
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from wsigen_kernels import attention as attention_module
from wsigen_kernels import norm as norm_module
from wsigen_kernels.ops import register_fallbacks

from wsigen.conditions.contract import ConditionBatch, TensorSpec
from wsigen.conditions.registry import specs_of
from wsigen.errors import WsigenError
from wsigen.models.config import ModelConfig
from wsigen.networks.nasdm import NasdmModel
from wsigen.system.devices import choose_device

VARIANTS = ("eager", "compiled", "ours", "ours+compiled")
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
    """What a denoiser takes: noisy windows x (B, 3, W, W), timesteps t (B,), and what it is told."""

    x: Tensor
    t: Tensor
    told: ConditionBatch

    @classmethod
    def random(cls, config: ModelConfig, batch: int, window: int, device: str, dtype: torch.dtype) -> Inputs:
        """Noise, and conditions of random values, 0 or 1 in planes; the time does not depend on what they show."""

        def drawn(channels: int, binary: bool) -> Tensor:
            noise = torch.randn(batch, channels, window, window, device=device)
            noise = (noise > 0).to(dtype) if binary else noise.to(dtype)
            return noise.contiguous(memory_format=torch.channels_last)

        told = {
            spec.name: torch.randn(batch, spec.channels, device=device).to(dtype)
            if spec.entry == "vector"
            else drawn(spec.channels, binary=spec.name != "context")
            for spec in specs_of(config)
        }
        given = {"context": drawn(3, binary=False), "known": drawn(1, binary=True)}  # the sampler needs them anyway
        t = torch.full((batch,), 500, device=device)
        return cls(drawn(3, binary=False), t, ConditionBatch({**given, **told}))

    def to(self, device: str) -> Inputs:
        """The same on another device."""
        return Inputs(self.x.to(device), self.t.to(device), self.conditions.map(lambda tensor: tensor.to(device)))

    def forward(self, model: Callable[..., Any], specs: tuple[TensorSpec, ...]) -> Any:
        """Call a model as training does: it prepares its conditions anew."""
        return model(self.x, self.t, *self.conditions.in_order(specs))


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
    given = inputs.to("meta")

    def counted(function: Callable[[], Any]) -> int:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    with back_ends("torch"):
        ready = meta.prepare(given.conditions)
        computed = counted(lambda: given.forward(meta, meta.specs))
        return computed, counted(lambda: meta.predict(ready, given.x, given.t))


@contextmanager
def back_ends(name: str) -> Iterator[None]:
    """Choose the implementation of attention and norms for a while; "auto" leaves this machine's choice."""
    before = attention_module.BACKEND, norm_module.BACKEND
    if name != "auto":
        attention_module.BACKEND = norm_module.BACKEND = name
    try:
        yield
    finally:
        attention_module.BACKEND, norm_module.BACKEND = before


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


@dataclass(frozen=True)
class Prepared:
    """A variant, compiled and captured: its three calls, and how long that took."""

    computed: Callable[[], Any] | None  # None where it was left out for time
    cached: Callable[[], Any]
    maps: Callable[[], Any]
    first_calls_s: float


def prepare(variant: str, model: NasdmModel, inputs: Inputs, device: str, quick: bool) -> Prepared:
    """Compile and warm up a variant; ``quick`` leaves the forward out that computes its maps, if it is compiled."""
    name = "auto" if variant.startswith("auto") else "triton" if variant.startswith("ours") else "torch"
    compiles = variant.endswith("compiled")
    torch.compiler.reset()
    if variant == "ours+compiled":
        register_fallbacks()
    started = time.perf_counter()
    with back_ends(name):

        def chosen(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, dynamic=False) if compiles else function

        forward, make_maps, predict = chosen(model), chosen(model.prepare), chosen(model.predict)
        ready = model.prepare(inputs.conditions)
        prepared = [
            graphed(function, device)
            for function in (
                lambda: predict(ready, inputs.x, inputs.t),
                lambda: make_maps(inputs.conditions),
                *([] if compiles and quick else [lambda: inputs.forward(forward, model.specs)]),
            )
        ]
    if device == "cuda":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - started
    if device != "cuda":  # nothing was captured: the choice must hold while it runs
        prepared = [_within(function, name) for function in prepared]
    return Prepared(prepared[2] if len(prepared) == 3 else None, prepared[0], prepared[1], elapsed)


def _within(function: Callable[[], Any], name: str) -> Callable[[], Any]:
    def run() -> Any:
        with back_ends(name):
            return function()

    return run


@torch.inference_mode()
def measure(
    name: str,
    device: str,
    dtype: str,
    batch: int,
    window: int | None,
    repeats: int,
    variants: list[str],
    quick: bool = False,
) -> list[dict[str, Any]]:
    """Run the benchmark and return the figures of each variant, as plain JSON."""
    torch.manual_seed(0)
    number = getattr(torch, dtype)
    model = load(name)
    config = model.config
    window = window or config.window
    model = model.to(device, number).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = Inputs.random(config, batch, window, device, number)
    flops = count_flops(model, inputs)
    ceiling = ceiling_tflops(device, repeats)
    return [
        {
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
            "ceiling_tflops": ceiling,
            "steps": config.num_inference_steps,
            **_measure_variant(variant, model, inputs, device, repeats, flops, ceiling, quick),
        }
        for variant in variants
    ]


def _measure_variant(
    variant: str,
    model: NasdmModel,
    inputs: Inputs,
    device: str,
    repeats: int,
    flops: tuple[int, int],
    ceiling: float,
    quick: bool,
) -> dict[str, Any]:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    batch, window, steps = len(inputs.x), inputs.x.shape[-1], model.config.num_inference_steps
    calls = prepare(variant, model, inputs, device, quick)
    timed = [calls.cached, calls.maps, *([calls.computed] if calls.computed else [])]
    cached, maps, *rest = time_in_turn(timed, device, repeats)
    computed = rest[0] if rest else Timing(*(a + b for a, b in zip(astuple(cached), astuple(maps), strict=True)))

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

    return {
        "variant": variant,
        "first_calls_s": calls.first_calls_s,
        "maps_computed": figures(computed, flops[0]),
        "maps_computed_is_a_sum": not rest,
        "maps_cached": figures(cached, flops[1]),
        "maps_s": asdict(maps),
        "step_with_share_of_maps_s": cached.median + maps.median / steps,
        "painted_windows_per_s": batch / (steps * cached.median + maps.median),
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
    }


def report(results: list[dict[str, Any]]) -> None:
    """Print the figures for people, as a table in Markdown."""
    one = results[0]
    click.echo(
        f"{one['model']}: {one['parameters'] / 1e6:.1f} M parameters, {one['dtype']}, batch {one['batch']} x "
        f"{one['window']} px, {one['device']}, torch {one['torch']}, {one['threads']} threads; "
        f"{one['maps_computed']['gflop']:.0f} GFLOP with maps, {one['maps_cached']['gflop']:.0f} without; "
        f"bf16 matmul {one['ceiling_tflops']:.3f} TFLOP/s\n"
    )
    click.echo(
        "| variant | maps computed, ms | maps cached, ms | maps alone, ms | a step with its share of the maps, ms | "
        "Mpx/s: computed, cached, with share | cached, TFLOP/s | windows/s, all steps | first calls, s | peak, GiB |\n"
        + "| --- " * 10
        + "|"
    )
    for row in results:
        computed, cached = row["maps_computed"], row["maps_cached"]
        share = row["step_with_share_of_maps_s"]
        with_share = row["batch"] * row["window"] ** 2 / share / 1e6
        memory = f"{row['peak_memory_gib']:.1f}" if row["peak_memory_gib"] else "-"
        sum_mark = " (sum)" if row["maps_computed_is_a_sum"] else ""
        click.echo(
            f"| {row['variant']} | {Timing(**computed['seconds'])}{sum_mark} | "
            f"{Timing(**cached['seconds'])} | {Timing(**row['maps_s'])} | {share * 1e3:.2f} | "
            f"{computed['mpx_per_s']:.3g}, {cached['mpx_per_s']:.3g}, {with_share:.3g} | "
            f"{cached['tflops']:.3g} ({cached['share_of_ceiling']:.0%}) | {row['painted_windows_per_s']:.3f} | "
            f"{row['first_calls_s']:.0f} | {memory} |"
        )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", default="nasdm-colon-20x", show_default=True, help="Name, folder, or preset:NAME (untrained).")
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]), show_default=True)
@click.option("--dtype", default="auto", type=click.Choice(["auto", "bfloat16", "float16", "float32"]))
@click.option("--batch", default=2, type=click.IntRange(min=1), show_default=True, help="Windows a forward.")
@click.option("--window", type=click.IntRange(min=1), help="Side of a window, px. [default: the model's]")
@click.option("--repeats", default=5, type=click.IntRange(min=1), show_default=True)
@click.option(
    "--variant", "variants", multiple=True, type=click.Choice([*VARIANTS, "auto", "all"]), help="[default: auto]"
)
@click.option("--compile", "compiled", is_flag=True, help="Short for --variant compiled.")
@click.option("--quick", is_flag=True, help="Compile one forward a variant: computed maps are then a sum of two times.")
@click.option("--tiny", is_flag=True, help="The tiny architecture, batch 2 x 16 px, once, in float32.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Append a line of JSON a variant.")
def main(
    model: str,
    device: str,
    dtype: str,
    batch: int,
    window: int | None,
    repeats: int,
    variants: tuple[str, ...],
    compiled: bool,
    quick: bool,
    tiny: bool,
    json_file: Path | None,
) -> None:
    """Time the denoiser's forward."""
    if tiny:
        model, dtype, batch, window, repeats = "preset:tiny", "float32", 2, 16, 1
    wanted = [*variants, *(["compiled"] if compiled else [])] or ["auto"]
    chosen = list(VARIANTS) if "all" in wanted else wanted
    try:
        choice = choose_device(device, dtype)
        results = measure(model, choice.device, choice.dtype, batch, window, repeats, chosen, quick)
    except WsigenError as error:
        raise click.ClickException(str(error)) from error
    report(results)
    if json_file:
        with json_file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(result) + "\n" for result in results)


if __name__ == "__main__":
    main()
