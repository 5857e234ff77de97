"""Peak memory of renders of the same tissue on slides of growing size, by a tiny network on a CPU.

    python benchmarks/memory.py --size 4096 --size 32768

Tissue of 1,638 px lies on glass; each render runs in a process of its own, whose peak of resident memory is read at its
end. Small slides are cut into smaller blocks, which takes less.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
from pathlib import Path

import click
import numpy as np

TISSUE = 1638  # px along its side
PERIOD = 24  # px from nucleus to nucleus
NUCLEUS = 8  # px


def write_mask(path: Path, side: int) -> None:
    """Write a mask of ``side`` px with a square of tissue full of nuclei."""
    from wsigen.masks.window import MaskWindow
    from wsigen.masks.writer import write_slide_mask

    low = side // 8
    high = low + TISSUE

    def rows(y0: int, y1: int) -> MaskWindow | None:
        if y1 <= low or y0 >= high:
            return None
        tissue = np.zeros((y1 - y0, side), np.uint8)
        tissue[max(low - y0, 0) : high - y0, low:high] = 1
        lattice = (np.indices(tissue.shape) % PERIOD < NUCLEUS).all(axis=0)
        return MaskWindow(2 * (lattice & (tissue > 0)).astype(np.uint8), None, tissue)

    write_slide_mask(path, side, side, 0.5, rows, instances=False, tissue=True)


def render_once(folder: Path, side: int, answer: multiprocessing.Queue) -> None:
    """Render, in a process of its own: windows painted, and peak memory in MB."""
    from wsigen.rendering.job import render

    slide = folder / f"{side}.svs"
    done = render(folder / f"{side}.tif", slide, model=folder / "tiny", device="cpu", steps=1, window=256, overlap=32)
    slide.unlink()
    answer.put((done.painted, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


@click.command()
@click.option("--size", "sizes", type=int, multiple=True, default=(4096, 32768), show_default=True, help="px")
def main(sizes: tuple[int, ...]) -> None:
    """Render each size and print its peak."""
    from wsigen.models.config import PRESETS
    from wsigen.networks.nasdm import NasdmModel

    context = multiprocessing.get_context("spawn")
    click.echo("| side, px | windows painted | peak, MB |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        NasdmModel(PRESETS["tiny"]).save_pretrained(folder / "tiny")
        for side in sizes:
            answer: multiprocessing.Queue = context.Queue()
            process = context.Process(target=write_mask, args=(folder / f"{side}.tif", side))
            process.start()
            process.join()
            process = context.Process(target=render_once, args=(folder, side, answer))
            process.start()
            painted, peak = answer.get()
            process.join()
            click.echo(f"| {side:,} | {painted} | {peak:,.0f} |")


if __name__ == "__main__":
    main()
