"""What painted windows look like: the same masks in few and many steps, their contrast, and a count of droplets.

    python benchmarks/painting.py sheet --data data -o docs/quality/steps.jpg --run 4 --run 4:1 --run unipc:50
    python benchmarks/painting.py contrast --data data --run ddim:8:1 --run dpm++2m:8:1 --run unipc:8:1
    python benchmarks/painting.py droplets --data data --run 4 --run unipc:8:1
    python benchmarks/painting.py edges --data data --run 4 --run 4:1
    python benchmarks/painting.py tones --data data
    python benchmarks/painting.py spots slide.svs
    python benchmarks/painting.py styles examples/slide_masks.tif -o styles.png

A run is ``[SAMPLER:]STEPS[:GUIDANCE]``; what is left out is the model's.

Windows are held-out ones of a training folder (``wsigen data prepare``), on a grid of half their side, and know no
neighbours. A droplet is a speckled spot of undenoised noise; what tells it from tissue is its energy of hue: the mean
square over 7 px of the Laplacian of green minus half of red and blue, whose largest value in the window counts.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import openslide
import torch
from PIL import Image
from scipy import ndimage

import wsigen
from wsigen.evaluation.material import Material, PaintOptions, load_painter, paint_patches, real_patches
from wsigen.evaluation.stain import CHANNELS
from wsigen.models.registry import DEFAULT_MODEL, load_config
from wsigen.models.stain import TISSUE_MIN_OD, optical_density
from wsigen.networks.nasdm import NasdmModel
from wsigen.system.devices import choose_device

GAP = 4  # px between rows of the sheet
APART = 30  # px between two places that are told
EDGE = 4  # px of a window's edge that are not looked at
WHITE = 215  # of 255 in every channel: a pixel of glass or of a lumen
WHITEST = 0.3  # share of white pixels above which a window has few nuclei for another reason
THRESHOLDS = (2000, 1000)
GAP = 4  # px between pictures
DISTANCES = (0, 4, 8, 12, 16, 20, 24, 32, 48, 64)  # px from a window's edge


@click.group()
@click.option("--model", default=DEFAULT_MODEL, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.pass_context
def main(context: click.Context, model: str, device: str) -> None:
    """Look at painted windows of held-out masks."""
    choice = choose_device(device)
    context.obj = load_painter(model, choice), choice


def held_out(data: Path, model: NasdmModel, count: int, device: str) -> Material:
    """Windows of the painter's size from the held-out side."""
    return real_patches(data, "val", model.config.window, count, torch.device(device))


def options_of(run: str) -> PaintOptions:
    """Read ``[SAMPLER:]STEPS[:GUIDANCE]``."""
    parts = run.split(":")
    sampler = None if parts[0].isdigit() else parts.pop(0)
    return PaintOptions(int(parts[0]), sampler, float(parts[1]) if len(parts) > 1 else None)


@main.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--run", "runs", multiple=True, metavar="RUN", default=("4", "4:1", "unipc:50"), show_default=True)
@click.option("--mask", "masks", type=int, multiple=True, default=(0, 4, 6, 7), show_default=True, help="Of 8.")
@click.pass_obj
def sheet(work: tuple, data: Path, out: Path, runs: tuple[str, ...], masks: tuple[int, ...]) -> None:
    """Paint the same masks and noise in different ways, a row for each."""
    model, choice = work
    material = held_out(data, model, 8, choice.device)
    side = model.config.window
    picture = np.full(((side + GAP) * len(runs) - GAP, side * len(masks), 3), 255, np.uint8)
    for number, run in enumerate(runs):
        row = np.hstack(list(paint_patches(model, material, options_of(run), choice, np.array(masks))))
        picture[(side + GAP) * number :][:side] = row
    Image.fromarray(picture).save(out, quality=90, subsampling=0)


@main.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--count", default=40, show_default=True, help="Patches.")
@click.option("--window", default=128, show_default=True, help="Side of a patch, px.")
@click.option("--run", "runs", multiple=True, metavar="RUN", default=("4",), show_default=True)
@click.pass_obj
def contrast(work: tuple, data: Path, count: int, window: int, runs: tuple[str, ...]) -> None:
    """Optical density of green over tissue, painted and real: deviation in all and within patches, mean, gradient."""
    model, choice = work
    material = real_patches(data, "val", window, count, torch.device(choice.device))
    click.echo("| | deviation | within patches | mean | mean gradient |\n| --- | --- | --- | --- | --- |")
    for run in ("real", *runs):
        images = material.patches.images
        if run != "real":
            images = paint_patches(model, material, options_of(run), choice)
        density = optical_density(images)
        tissue, green = density.mean(-1) > TISSUE_MIN_OD, density[..., 1]
        within = np.mean([part[there].std() for part, there in zip(green, tissue) if there.sum() > window])
        gradient = np.abs(np.diff(green, axis=1)).mean()
        deviation, mean = green[tissue].std(), green[tissue].mean()
        click.echo(f"| {run} | {deviation:.3f} | {within:.3f} | {mean:.3f} | {gradient:.3f} |")


@main.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--windows", default=24, show_default=True, help="With the fewest nuclei.")
@click.option("--final-step", type=float, multiple=True, help="In lengths of the others. [default: the model's]")
@click.option("--run", "runs", multiple=True, metavar="RUN", default=("4",), show_default=True)
@click.pass_obj
def droplets(work: tuple, data: Path, windows: int, final_step: tuple[float, ...], runs: tuple[str, ...]) -> None:
    """Count windows with droplets among those with the fewest nuclei, painted and real."""
    model, choice = work
    material = held_out(data, model, 1 << 30, choice.device)
    nuclei = np.array([len(np.unique(ids)) - 1 for ids in material.patches.instances])
    white = (material.patches.images.min(-1) > WHITE).mean((1, 2))
    some = np.flatnonzero(white < WHITEST)
    which = some[np.argsort(nuclei[some], kind="stable")][:windows]
    click.echo(f"{len(which)} windows of at most {nuclei[which].max()} nuclei")
    report("real", material.patches.images[which])
    config = model.config
    for length in final_step or (config.final_step,):
        model.config = replace(config, final_step=length)
        for run in runs:
            report(f"{run}, final step {length}", paint_patches(model, material, options_of(run), choice, which))


@main.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--count", default=16, show_default=True, help="Windows.")
@click.option("--run", "runs", multiple=True, metavar="RUN", default=("4",), show_default=True)
@click.pass_obj
def edges(work: tuple, data: Path, count: int, runs: tuple[str, ...]) -> None:
    """Gradient of optical density by distance from the window's edges, in that of its middle, painted and real."""
    model, choice = work
    material = held_out(data, model, count, choice.device)
    ends = [*DISTANCES[1:], model.config.window // 2 - 1]
    columns = " | ".join(f"{start} to {end} px" for start, end in zip(DISTANCES, ends))
    click.echo(f"| | {columns} |\n|{' --- |' * (len(ends) + 1)}")
    for run in ("real", *runs):
        images = material.patches.images
        if run != "real":
            images = paint_patches(model, material, options_of(run), choice)
        steps = across(images)
        parts = [steps[start:end].mean() / steps[ends[-2] :].mean() for start, end in zip(DISTANCES, ends)]
        click.echo(f"| {run} | " + " | ".join(f"{part:.2f}" for part in parts) + " |")


def across(images: np.ndarray) -> np.ndarray:
    """Mean absolute difference of neighbouring pixels by distance from the nearest of four edges: (W / 2 - 1,).

    Of (N, W, W, 3) uint8; of each edge's stretch the middle half counts, so that corners are no part of it.
    """
    density = optical_density(images)
    half = density.shape[1] // 2
    middle = slice(half // 2, -(half // 2))
    found = np.zeros(half - 1)
    for turned in (density, density.transpose(0, 2, 1, 3)):
        steps = np.abs(np.diff(turned[:, middle], axis=2)).mean((0, 1, 3))
        found += (steps[: half - 1] + steps[::-1][: half - 1]) / 4
    return found


@main.command()
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--sources", default=24, show_default=True, help="Source images of the training side.")
@click.option("--style", "styles", multiple=True, help="[default: the model's]")
@click.option("--run", "runs", multiple=True, metavar="RUN", default=("4",), show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="A picture of the windows.")
@click.pass_obj
def tones(
    work: tuple, data: Path, sources: int, styles: tuple[str, ...], runs: tuple[str, ...], out: Path | None
) -> None:
    """How far what a mask shows decides the colour, where the style should: windows of many sources in one style.

    The window with most tissue between nuclei of each source image is painted in one style. *Follows* is the slope of
    the tone, the mean optical density between nuclei, over that of the source itself: 0 where the style alone
    decides, 1 where each mask is painted in the colours of the slide that it comes from.
    """
    model, choice = work
    config = model.config
    material = real_patches(data, "train", config.window, 1 << 30, torch.device(choice.device), machine=True)
    patches = material.patches
    between = np.array([tissue_between(*pair).mean() for pair in zip(patches.images, patches.classes)])
    groups = np.array(patches.groups)
    best = [rows[between[rows].argmax()] for rows in (np.flatnonzero(groups == name) for name in np.unique(groups))]
    which = np.sort(np.array(sorted(best, key=lambda row: -between[row])[:sources]))
    own = tone(patches.images[which], patches.classes[which])
    header = " | ".join(f"deviation, {name} | follows, {name}" for name in CHANNELS)
    click.echo(f"{len(which)} windows\n| style | run | {header} |\n|{' --- |' * 8}")
    rows = [patches.images[which]]
    click.echo(tone_row("real", "", own, own))
    for style in map(config.style, styles or (config.default_style,)):
        bank = copy.copy(material.bank)
        bank.groups, bank.styles = [style.name], [style]
        crops = replace(material.crops, group=torch.zeros_like(material.crops.group))
        told = replace(material, crops=crops, bank=bank)
        for run in runs:
            rows.append(paint_patches(model, told, options_of(run), choice, which))
            click.echo(tone_row(style.name, run, tone(rows[-1], patches.classes[which]), own))
    if out:
        Image.fromarray(np.vstack([np.hstack(list(row[:, ::2, ::2])) for row in rows])).save(out)


def tissue_between(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Where (H, W, 3) uint8 shows tissue that is no nucleus: (H, W) bool."""
    return (classes == 0) & (optical_density(image).mean(-1) > TISSUE_MIN_OD)


def tone(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Mean optical density between nuclei of each window: (N, 3)."""
    return np.stack([optical_density(i)[tissue_between(i, c)].mean(0) for i, c in zip(images, classes)])


def tone_row(style: str, run: str, found: np.ndarray, own: np.ndarray) -> str:
    """Deviation of tones ``found`` (N, 3) over windows and their slope over their sources' ``own``, by channel."""
    slopes = [np.polyfit(own[:, channel], found[:, channel], 1)[0] for channel in range(3)]
    parts = " | ".join(f"{d:.3f} | {s:.2f}" for d, s in zip(found.std(0), slopes))
    return f"| {style} | {run} | {parts} |"


@main.command()
@click.argument("mask", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--rect", nargs=4, type=int, default=(740, 300, 256, 256), show_default=True, help="x y width height.")
@click.option("--columns", default=3, show_default=True)
@click.pass_context
def styles(context: click.Context, mask: Path, out: Path, rect: tuple[int, int, int, int], columns: int) -> None:
    """Paint a part of a slide mask in every style of the model, side by side."""
    options = context.parent.params if context.parent else {}
    names = [style.name for style in load_config(options["model"]).styles]
    x, y, width, height = rect
    rows = -(-len(names) // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for number, name in enumerate(names):
        with wsigen.open_generated(mask, style=name, model=options["model"], device=options["device"]) as slide:
            part = np.asarray(slide.read_region((x, y), 0, (width, height)).convert("RGB"))
        top, left = number // columns * (height + GAP), number % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = part
    Image.fromarray(sheet).save(out)
    click.echo(f"{out}: {', '.join(names)}")


@main.command()
@click.argument("slide", type=click.Path(path_type=Path))
@click.option("--count", default=4, show_default=True, help="Places.")
def spots(slide: Path, count: int) -> None:
    """Print where a whole, small slide has the largest energy of hue."""
    with openslide.OpenSlide(slide) as opened:
        energy = hue_energy(np.array(opened.read_region((0, 0), 0, opened.dimensions).convert("RGB")))
    for _ in range(count):
        y, x = np.unravel_index(energy.argmax(), energy.shape)
        click.echo(f"{energy[y, x]:,.0f} at ({x}, {y})")
        energy[max(0, y - APART) : y + APART, max(0, x - APART) : x + APART] = 0


def report(what: str, images: np.ndarray) -> None:
    """Print how many of ``images`` (N, H, W, 3) uint8 pass each threshold, the median and the largest energy."""
    largest = np.array([hue_energy(image)[EDGE:-EDGE, EDGE:-EDGE].max() for image in images])
    counts = ", ".join(f"{(largest > threshold).sum()} above {threshold:,}" for threshold in THRESHOLDS)
    click.echo(f"{what}: {counts}; median {np.median(largest):,.0f}, largest {largest.max():,.0f}")


def hue_energy(image: np.ndarray) -> np.ndarray:
    """Energy of hue of (H, W, 3) uint8 around each pixel: (H, W)."""
    red, green, blue = np.moveaxis(image.astype(float), -1, 0)
    return ndimage.uniform_filter(ndimage.laplace(green - 0.5 * (red + blue)) ** 2, 7)


if __name__ == "__main__":
    main()
