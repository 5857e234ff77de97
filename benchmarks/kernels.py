"""Every kernel against torch eager, torch.compile, cuDNN or xformers, and its own floor, over a network's real shapes.

The floor is the larger of the bytes that must move over the bandwidth of a copy, and the operations over the rate of a
matrix product, both measured in the same run. Group norm counts 6 bytes an element in 16 bits: the input is read
twice, once for its statistics; norms whose statistics were taken earlier count 4. SPADE's maps add 4.

    python benchmarks/kernels.py --device cuda                     # all shapes of the network, about 3 minutes
    python benchmarks/kernels.py --device cuda --quick             # the heaviest of each kind
    python benchmarks/kernels.py --device cpu --tiny               # whether it runs, in Triton's interpreter
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import click

if "--tiny" in sys.argv:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are imported

import torch
import torch.nn.functional as F
from timing import copy_bandwidth, graphed, matmul_rate, seconds
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from wsigen_kernels import attention_triton, launch, norm_triton, ops
from wsigen_kernels.attention import attention_torch
from wsigen_kernels.dispatch import xformers_obstacle
from wsigen_kernels.norm import group_norm_torch

from wsigen.models.config import ModelConfig
from wsigen.networks.nasdm import NasdmModel
from wsigen.networks.unet import ResBlock, UNet

OURS = "triton"


@dataclass(frozen=True)
class Site:
    """A place of the network where a kernel runs: what decides its cost."""

    kind: str  # norm, merge, attention
    own: int  # channels of the input, or of the result of a merge
    side: int  # pixels of a side of the input
    behind: int = 0  # channels of the skip connection's tensor
    spade: bool = False
    time: bool = False
    resample: int = 0
    projected: int = 0  # channels of the input of a merge's 1 x 1 convolution; 0 for the identity
    heads: int = 0

    @property
    def label(self) -> str:
        """Describe the site in a table."""
        width = f"{self.own}+{self.behind}" if self.behind and self.kind == "norm" else f"{self.own}"
        extras = [name for name, there in (("spade", self.spade), ("time", self.time)) if there]
        extras += [("", "up", "down")[self.resample]] if self.resample else []
        extras += [f"1x1 of {self.projected}+{self.behind}"] if self.projected else []
        extras += [f"{self.heads} heads"] if self.heads else []
        return f"{self.kind} {width} @ {self.side}² {' '.join(extras)}".strip()


@dataclass
class Row:
    """One site measured: seconds by candidate, and the floors."""

    site: Site
    count: int  # times in a forward
    floor_s: float
    bytes: int
    operations: int
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def sites_of(unet: UNet, window: int) -> Counter[Site]:
    """Walk a network and count its sites."""
    found: Counter[Site] = Counter()
    sides = [window // unet.config.patch // 2**level for level in range(len(unet.config.channels))]
    modes = {"": 0, "up": 1, "down": 2}

    def block(part: ResBlock, side: int, behind: int) -> int:
        own, out = part.conv_in.in_channels - behind, part.conv_in.out_channels
        mode = modes[part.resample]
        after = (side, 2 * side, side // 2)[mode]
        found[Site("norm", own, side, behind, part.spade, resample=mode)] += 1
        found[Site("norm", out, after, 0, part.spade, time=True)] += 1
        projected = own if isinstance(part.skip, torch.nn.Conv2d) else 0
        found[Site("merge", out, after, behind, resample=mode, projected=projected)] += 1
        return after

    def attend(attention: Any, side: int) -> None:
        if attention is not None:
            channels = attention.proj.in_channels
            found[Site("norm", channels, side)] += 1
            found[Site("attention", channels, side, heads=attention.heads)] += 1
            found[Site("merge", channels, side)] += 1

    skips = [unet.conv_in.out_channels]
    for stage in [*unet.encoder, *unet.middle]:
        attend(stage.attention, block(stage.block, sides[stage.level], 0))
        if stage in list(unet.encoder):
            skips.append(stage.block.conv_in.out_channels)
    for stage in unet.decoder:
        attend(stage.attention, block(stage.block, sides[stage.level], 0 if stage.upsamples else skips.pop()))
    found[Site("norm", unet.norm_out.weight.numel(), sides[0])] += 1
    return found


def feature(batch: int, channels: int, side: int, device: str, dtype: torch.dtype) -> Tensor:
    """Random feature map in channels_last."""
    return torch.randn(batch, side, side, channels, device=device).to(dtype).permute(0, 3, 1, 2)


def resampled(x: Tensor, resample: int) -> Tensor:
    """Bring a feature map to another resolution with torch."""
    if resample == 1:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.avg_pool2d(x, 2) if resample == 2 else x


Candidates = dict[str, Callable[[], Any]]


def norm_candidates(site: Site, batch: int, device: str, dtype: torch.dtype) -> tuple[Candidates, int, int]:
    """Functions to compare, bytes that must move, operations."""
    channels, groups = site.own + site.behind, 32 if (site.own + site.behind) % 32 == 0 else 8
    x = feature(batch, site.own, site.side, device, dtype)
    skip = feature(batch, site.behind, site.side, device, dtype) if site.behind else None
    formula: dict[str, Any] = dict.fromkeys(("weight", "bias", "gamma", "beta", "scale", "shift"))
    if site.spade:
        maps = feature(batch, 2 * channels, site.side, device, dtype)
        formula |= {"gamma": maps[:, :channels], "beta": maps[:, channels:]}
    else:
        formula |= {name: torch.randn(channels, device=device).to(dtype) for name in ("weight", "bias")}
    if site.time:
        scale_shift = torch.randn(batch, 2 * channels, device=device).to(dtype)
        formula |= {"scale": scale_shift[:, :channels], "shift": scale_shift[:, channels:]}

    def plain() -> Tensor:
        return resampled(group_norm_torch(x, groups, **formula, skip=skip), site.resample)

    def normalise(own: Tensor, behind: Tensor | None) -> Tensor:
        more = {"silu": True, "eps": 1e-5, "resample": site.resample}
        return ops.normalise(x, skip, own, behind, groups, None, **formula, **more)

    def both() -> Tensor:
        return normalise(ops.moments(x), None if skip is None else ops.moments(skip))

    taken, taken_behind = ops.moments(x), None if skip is None else ops.moments(skip)
    read = batch * channels * site.side**2 * x.element_size()
    written = read * (1, 4, 0.25)[site.resample]
    compiled = torch.compile(plain, dynamic=False)
    candidates: Candidates = {
        "torch": plain,
        "compiled": compiled,
        OURS: both,
        "triton, moments known": lambda: normalise(taken, taken_behind),
    }
    return candidates, int(2 * read + written + (2 * read if site.spade else 0)), 0


def merge_candidates(site: Site, batch: int, device: str, dtype: torch.dtype) -> tuple[Candidates, int, int]:
    """The same for a residual block's end."""
    h = feature(batch, site.own, site.side, device, dtype)
    bias = torch.randn(site.own, device=device).to(dtype)
    source = site.side * (4, 2, 8)[site.resample] // 4
    x = feature(batch, site.projected or site.own, source, device, dtype)
    skip = feature(batch, site.behind, site.side, device, dtype) if site.projected and site.behind else None
    inputs = site.projected + (site.behind if site.projected else 0)
    weight = torch.randn(site.own, inputs, 1, 1, device=device).to(dtype) * 0.1 if site.projected else None

    def plain() -> Tensor:
        base = h + bias[:, None, None]
        if weight is None:
            return base + resampled(x, site.resample)
        return base + F.conv2d(x if skip is None else torch.cat([x, skip], dim=1), weight)

    compiled = torch.compile(plain, dynamic=False)
    candidates: Candidates = {
        "torch": plain,
        "compiled": compiled,
        OURS: lambda: ops.merge(h, bias, x, skip, weight, site.resample),
    }
    moved = 2 * h.nbytes + x.nbytes + (0 if skip is None else skip.nbytes)
    return candidates, moved, 2 * batch * site.side**2 * site.own * inputs


def attention_candidates(site: Site, batch: int, device: str, dtype: torch.dtype) -> tuple[Candidates, int, int]:
    """The same for self-attention."""
    qkv, heads = feature(batch, 3 * site.own, site.side, device, dtype), site.heads

    def with_backend(backend: SDPBackend) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with sdpa_kernel(backend):
                return attention_torch(qkv, heads)

        return run

    candidates: Candidates = {"torch": lambda: attention_torch(qkv, heads), OURS: lambda: ops.attention(qkv, heads)}
    if device == "cuda":
        candidates["cuDNN"] = with_backend(SDPBackend.CUDNN_ATTENTION)
        candidates["flash"] = with_backend(SDPBackend.FLASH_ATTENTION)
        if xformers_obstacle() is None:
            candidates["xformers"] = lambda: attention_torch(qkv, heads, xformers=True)
    tokens = site.side**2
    return candidates, qkv.nbytes * 4 // 3, 4 * batch * tokens**2 * site.own


MAKERS = {"norm": norm_candidates, "merge": merge_candidates, "attention": attention_candidates}


def measure_site(
    site: Site, count: int, batch: int, device: str, dtype: torch.dtype, repeats: int, ceilings: tuple[float, float]
) -> Row:
    """Time all candidates of a site; one that cannot run is reported, not fatal."""
    torch.compiler.reset()
    candidates, moved, operations = MAKERS[site.kind](site, batch, device, dtype)
    row = Row(site, count, max(moved / ceilings[0], operations / ceilings[1]), moved, operations)
    ready: Candidates = {}
    for name, function in candidates.items():
        try:
            ready[name] = graphed(function, device)
        except Exception as error:
            row.failed[name] = str(error).splitlines()[0][:200]
            if name == OURS:
                raise
    row.seconds = dict(zip(ready, seconds(list(ready.values()), device, repeats), strict=True))
    return row


def heaviest(found: Counter[Site], number: int) -> list[tuple[Site, int]]:
    """Keep the sites of each kind that move most, ``number`` of norms and merges; all of attention."""

    def weight(item: tuple[Site, int]) -> int:
        site, count = item
        return count * site.side**2 * (site.own + site.behind + site.projected) * (2 if site.spade else 1)

    ranked = sorted(found.items(), key=weight, reverse=True)
    kept = [[item for item in ranked if item[0].kind == kind][:number] for kind in ("norm", "merge")]
    return [*kept[0], *kept[1], *[item for item in ranked if item[0].kind == "attention"]]


@contextmanager
def cut(elements: int, tiles: int) -> Iterator[None]:
    """Cut norms otherwise for a while: elements of a tile, tiles of a program that applies a norm."""
    before = launch._TILE, norm_triton._APPLY_TILES
    launch._TILE, norm_triton._APPLY_TILES = elements, tiles
    try:
        yield
    finally:
        launch._TILE, norm_triton._APPLY_TILES = before


@contextmanager
def attention_cut(chosen: launch.AttentionCut) -> Iterator[None]:
    """Cut attention otherwise for a while."""

    class Chosen:
        of = staticmethod(lambda tokens, depth: chosen)

    attention_triton.AttentionCut = Chosen  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        attention_triton.AttentionCut = launch.AttentionCut  # type: ignore[misc]


def cuts_of(site: Site) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """What to try at a site: a label, a context, and the candidates that it concerns."""
    if site.kind == "norm":
        for elements, tiles in product((2048, 4096, 8192), (1, 4, 8)):
            yield f"{elements} elements, {tiles} tiles", cut(elements, tiles), (OURS, "triton, moments known")
    if site.kind == "attention":
        depth = launch.next_power_of_2(site.own // site.heads)
        for queries, keys, warps, stages in product((64, 128), (32, 64, 128, 256), (4, 8), (2, 3)):
            if queries * keys // warps <= 8192 and warps * 16 <= queries:
                chosen = launch.AttentionCut(queries, keys, max(16, depth), warps, stages)
                yield str(chosen), attention_cut(chosen), (OURS,)


def tune(rows: list[tuple[Site, int]], batch: int, device: str, dtype: torch.dtype, repeats: int) -> list[dict]:
    """Time norms and attention under several cuts."""
    results = []
    for site, _ in rows:
        for label, context, names in cuts_of(site):
            try:
                with context:
                    candidates, moved, _ = MAKERS[site.kind](site, batch, device, dtype)
                    timed = seconds([graphed(candidates[name], device) for name in names], device, repeats)
            except Exception as error:  # a cut may ask for more shared memory than there is
                click.echo(f"{site.label}: {label}: {str(error).splitlines()[0]}")
                continue
            results.append({"site": site.label, "cut": label, "moved": moved, "s": timed})
            click.echo(f"{site.label}: {label}: {', '.join(f'{value * 1e6:.1f} us' for value in timed)}")
    return results


def table(rows: list[Row]) -> str:
    """Markdown, one line a site; times in microseconds."""
    names = list(dict.fromkeys(name for row in rows for name in row.seconds))
    lines = [
        f"| site | a forward | floor, us | {' | '.join(f'{name}, us' for name in names)} | floor / ours | ours, TB/s |",
        "| --- " * (len(names) + 5) + "|",
    ]
    for row in rows:
        cells = [f"{row.seconds[name] * 1e6:.1f}" if name in row.seconds else "-" for name in names]
        mine = row.seconds[OURS]
        lines.append(
            f"| {row.site.label} | {row.count} | {row.floor_s * 1e6:.1f} | {' | '.join(cells)} | "
            f"{row.floor_s / mine:.0%} | {row.bytes / mine / 1e12:.2f} |"
        )
    for kind in MAKERS:
        of_kind = [row for row in rows if row.site.kind == kind]
        shared = [name for name in names if of_kind and all(name in row.seconds for row in of_kind)]
        sums = {name: sum(row.count * row.seconds[name] for row in of_kind) for name in shared}
        sums["floor"] = sum(row.count * row.floor_s for row in of_kind)
        figures = ", ".join(f"{name} {total * 1e3:.3f}" for name, total in sums.items())
        lines.append(f"\n{kind}, ms a forward at these sites: {figures}")
    lines += [f"\n{row.site.label}: {name} failed: {why}" for row in rows for name, why in row.failed.items()]
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Draw times as multiples of the floor; a line says so where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        click.echo("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for row in rows for name in row.seconds))
    figure, axes = pyplot.subplots(figsize=(10, 0.45 * len(rows) + 1.5), layout="constrained")
    for index, name in enumerate(names):
        there = [(position, row) for position, row in enumerate(rows) if name in row.seconds]
        axes.barh(
            [position + 0.8 * (index + 0.5) / len(names) - 0.4 for position, _ in there],
            [row.seconds[name] / row.floor_s for _, row in there],
            height=0.8 / len(names),
            label=name,
        )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.site.label for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("time / floor (1 = the copy bandwidth or the matrix rate of this machine)")
    axes.legend()
    figure.savefig(path, dpi=120)
    click.echo(f"wrote {path}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", default="nasdm-colon-20x", show_default=True, help="Architecture whose shapes are measured.")
@click.option("--device", default="cuda", type=click.Choice(["cpu", "cuda"]), show_default=True)
@click.option("--dtype", default="bfloat16", type=click.Choice(["bfloat16", "float16", "float32"]), show_default=True)
@click.option("--batch", default=64, type=click.IntRange(min=1), show_default=True)
@click.option("--window", default=256, type=click.IntRange(min=1), show_default=True)
@click.option("--repeats", default=30, type=click.IntRange(min=1), show_default=True)
@click.option("--quick", is_flag=True, help="The 4 heaviest norms and merges, 15 repeats.")
@click.option("--tiny", is_flag=True, help="The tiny architecture, batch 2 x 32 px, once, in float32.")
@click.option("--tune", "tuning", is_flag=True, help="Time norms and attention under several cuts instead.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures to this file.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw them (needs matplotlib).")
@torch.inference_mode()
def main(
    model: str,
    device: str,
    dtype: str,
    batch: int,
    window: int,
    repeats: int,
    quick: bool,
    tiny: bool,
    tuning: bool,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Time the kernels."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("--device cuda: torch sees no CUDA GPU here; try --device cpu --tiny")
    if tiny:
        model, batch, window, repeats, dtype = "tiny", 2, 32, 1, "float32"
    if quick:
        repeats = min(repeats, 15)
    torch.manual_seed(0)
    number = getattr(torch, dtype)
    with torch.device("meta"):
        unet = NasdmModel(ModelConfig.preset(model)).unet
    chosen = heaviest(sites_of(unet, window), 2 if tiny else 4 if quick else 99)
    if tuning:
        results = tune(chosen, batch, device, number, repeats)
        if json_file:
            json_file.write_text(json.dumps(results, indent=1), encoding="utf-8")
        return
    bandwidth, rate = copy_bandwidth(device, max(repeats, 5)), matmul_rate(device, max(repeats, 5))
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    click.echo(
        f"{model}, {dtype}, batch {batch} x {window} px, {name}, torch {torch.__version__}; "
        f"copy {bandwidth / 1e12:.2f} TB/s, bf16 matmul {rate / 1e12:.0f} TFLOP/s\n"
    )
    rows = [measure_site(site, count, batch, device, number, repeats, (bandwidth, rate)) for site, count in chosen]
    click.echo(table(rows))
    if json_file:
        facts = {"device": name, "torch": torch.__version__, "model": model, "batch": batch, "window": window}
        facts |= {"dtype": dtype, "copy_bytes_per_s": bandwidth, "matmul_per_s": rate}
        json_file.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1), encoding="utf-8")
    if plot_file:
        plot(rows, plot_file)


if __name__ == "__main__":
    main()
