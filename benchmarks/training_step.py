"""Forward and backward of the denoiser, compiled, with torch's norms and with the Triton ones.

Gradients of the Triton norm are a formula in plain torch (wsigen_kernels.ops), which torch.compile fuses. Where this
shows them faster, WSIGEN_NORM=triton trains with them; auto does not.

    python benchmarks/training_step.py --batch 256 --window 128
    python benchmarks/training_step.py --device cpu --tiny
"""

from __future__ import annotations

import os
import statistics
import sys
import time

import click

if "--tiny" in sys.argv:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are imported

import torch
from denoiser import Inputs, load, seconds_of
from wsigen_kernels import norm as norm_module


def step_seconds(
    name: str, norm: str, device: str, batch: int, window: int, repeats: int, compiled: bool
) -> tuple[float, float]:
    """Median seconds of a forward and backward, and seconds of the first one."""
    torch.compiler.reset()
    torch.manual_seed(0)
    norm_module.BACKEND, norm_module.FORCED = norm, True
    model = load(name).to(device).train().requires_grad_(True)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = Inputs.random(model.config, batch, window, device, torch.float32)
    network = torch.compile(model, dynamic=False) if compiled else model

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = network(*inputs.arguments).float().square().mean()
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None

    started = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    first = time.perf_counter() - started
    step()
    return statistics.median(seconds_of(step, device) for _ in range(repeats)), first


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", default="preset:nasdm-colon-20x", show_default=True, help="Name, folder, or preset:NAME.")
@click.option("--device", default="cuda", type=click.Choice(["cpu", "cuda"]), show_default=True)
@click.option("--batch", default=256, type=click.IntRange(min=1), show_default=True)
@click.option("--window", default=128, type=click.IntRange(min=1), show_default=True)
@click.option("--repeats", default=10, type=click.IntRange(min=1), show_default=True)
@click.option("--compile/--no-compile", "compiled", default=True, show_default=True)
@click.option("--tiny", is_flag=True, help="The tiny architecture, batch 2 x 8 px, once, eager.")
def main(model: str, device: str, batch: int, window: int, repeats: int, compiled: bool, tiny: bool) -> None:
    """Time a training step with both implementations of the norm."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("--device cuda: torch sees no CUDA GPU here; try --device cpu --tiny")
    if tiny:
        model, batch, window, repeats, compiled = "preset:tiny", 2, 8, 1, False
    for norm in ("torch", "triton"):
        median, first = step_seconds(model, norm, device, batch, window, repeats, compiled)
        click.echo(
            f"{model}, batch {batch} x {window} px, {norm} norms, {'compiled' if compiled else 'eager'}: "
            f"{median * 1e3:.1f} ms, {batch / median:.0f} images/s (first step {first:.0f} s)"
        )


if __name__ == "__main__":
    main()
