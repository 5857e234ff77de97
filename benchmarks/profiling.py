"""Where the time of painting goes: kernels of one denoising step, of the SPADE maps, and of all steps with the solver.

    python benchmarks/profiling.py --device cuda --batch 64                          # 8 steps
    python benchmarks/profiling.py --device cuda --batch 64 --model nasdm-colon-20x  # as shipped: 4 guided ones
    python benchmarks/profiling.py --device cpu --model preset:tiny --batch 1

Times of kernels are of one call, by torch's profiler, convolutions together; the time of all steps is the clock's, on a
GPU of a recorded CUDA graph, as the painter runs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import torch
from denoiser import Inputs, load
from timing import graphed
from torch.profiler import ProfilerActivity, profile

from wsigen.diffusion.guidance import is_guided
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.networks.denoise import denoise, model_sampler
from wsigen.networks.guided import ConditionedNetwork
from wsigen.system.devices import choose_device

CONVOLUTIONS = ("fprop", "cutlass", "conv")  # in names of kernels
REPEATS = 10
ROWS = 12


def times(function: Callable[[], object], device: str) -> dict[str, tuple[int, float]]:
    """Calls and milliseconds of each kernel that a call launches; of each operator on a CPU."""
    function()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiled:
        function()
        if device == "cuda":
            torch.cuda.synchronize()
    found: dict[str, tuple[int, float]] = {}
    for event in profiled.key_averages():
        spent = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if device == "cuda" and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        name = "convolutions" if any(part in event.key for part in CONVOLUTIONS) else event.key
        calls, before = found.get(name, (0, 0.0))
        found[name] = calls + event.count, before + spent / 1e3
    return found


def table(title: str, found: dict[str, tuple[int, float]]) -> None:
    """Print the kernels that take longest."""
    total = sum(spent for _, spent in found.values())
    click.echo(f"\n{title}: {total:.2f} ms\n\n| kernel | calls | ms | share |\n| --- | --- | --- | --- |")
    for name, (calls, spent) in sorted(found.items(), key=lambda item: -item[1][1])[:ROWS]:
        click.echo(f"| {name[:60]} | {calls} | {spent:.2f} | {spent / total:.0%} |")


def clock(function: Callable[[], object], device: str) -> float:
    """Median seconds of a call."""
    taken = []
    for _ in range(REPEATS if device == "cuda" else 1):
        started = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return sorted(taken)[len(taken) // 2]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", default="preset:nasdm-colon-20x", show_default=True, help="Name, folder, or preset:NAME.")
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]), show_default=True)
@click.option("--batch", default=64, show_default=True, help="Windows.")
def main(model: str, device: str, batch: int) -> None:
    """Profile a painter."""
    choice = choose_device(device)
    number = getattr(torch, choice.dtype)
    network = load(model).to(choice.device, number).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    config = network.config
    given = Inputs.random(config, batch, config.window, choice.device, number)
    schedule = NoiseSchedule.from_name(config.schedule, config.schedule_steps)
    sampler = model_sampler(config, schedule, config.num_inference_steps)
    inputs = given.conditions.replaced(context=given.conditions.context.float(), known=given.conditions.known > 0)
    noise = given.x.float().contiguous()
    with torch.inference_mode():
        told_network = ConditionedNetwork(network, given.conditions)
        table("The maps", times(lambda: network.prepare(given.conditions), choice.device))
        table("A step", times(lambda: told_network(given.x, 500.0), choice.device))

        def paint() -> object:
            return denoise(network, schedule, sampler, inputs, noise)

        table(f"All {len(sampler.steps)} steps", times(paint, choice.device))
        taken = clock(graphed(paint, choice.device), choice.device)
    guided = f" with guidance {config.guidance_scale:g}" if is_guided(config.guidance_scale) else ""
    how = f"All {len(sampler.steps)} steps{guided} of {batch} windows"
    click.echo(f"\n{how} by the clock: {taken * 1e3:.1f} ms, {batch / taken:.1f} windows/s")


if __name__ == "__main__":
    main()
