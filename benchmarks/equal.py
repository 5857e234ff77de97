"""Are slides of the same inputs equal? Paints one slide in different ways and compares the canvases pixel by pixel.

    python benchmarks/equal.py --device cuda --size 16384
    python benchmarks/equal.py --device cpu --size 1500

The same command twice; one process and two (on a GPU machine with two GPUs, one each); two processes twice; a process
that is killed midway and resumed; a part of the slide (`--rect`); a region of `wsigen.open_generated`. Prints how many
tiles of 64 px differ, and by how much at most. Exit code 1 if any does.

This script imports torch at its top, as users' scripts do: worker processes import it again before they are told which
GPU is theirs.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from engine import demo_mask

import wsigen
from wsigen.painting.canvas import Canvas
from wsigen.painting.grid import Rectangle
from wsigen.rendering.stage import canvas_beside

TILE = 64
BAND = 1024  # rows that are compared at a time
READERS = 4  # threads


class Pixels:
    """Pixels of a part of a slide, in bands; each band is read once for its hash, and again only where it differs."""

    def __init__(self, read: Callable[[Rectangle], np.ndarray], part: Rectangle) -> None:
        self.read, self.part = read, part
        tops = range(part.y, part.y + part.height, BAND)
        self.bands = [Rectangle(part.x, top, part.width, min(BAND, part.y + part.height - top)) for top in tops]

    @classmethod
    def of(cls, canvas: Canvas, part: Rectangle) -> Pixels:
        """Of a canvas, all of which must be there."""

        def read(band: Rectangle) -> np.ndarray:
            found, known = canvas.read_region(*band, require=True)
            if not known.all():
                raise click.ClickException(f"{canvas.path}: {int((~known).sum()):,} pixels of {band} are missing")
            return found

        return cls(read, part)

    @cached_property
    def hashes(self) -> list[str]:
        """Of every band."""
        with ThreadPoolExecutor(READERS) as pool:
            return list(
                pool.map(lambda band: hashlib.sha256(np.ascontiguousarray(self.read(band))).hexdigest(), self.bands)
            )


def compare(first: Pixels, second: Pixels) -> dict[str, Any]:
    """Tiles of a part that differ between two slides, and the largest difference."""
    tiles = differing = largest = 0
    for band, *digests in zip(first.bands, first.hashes, second.hashes, strict=True):
        tiles += -(-band.width // TILE) * -(-band.height // TILE)
        if digests[0] != digests[1]:
            difference = np.abs(first.read(band).astype(np.int16) - second.read(band)).max(2)
            starts = [np.arange(0, size, TILE) for size in difference.shape]
            worst = np.maximum.reduceat(np.maximum.reduceat(difference, starts[0], 0), starts[1], 1)
            differing, largest = differing + int((worst > 0).sum()), max(largest, int(worst.max()))
    return {"tiles": tiles, "differing": differing, "share": differing / tiles, "largest": largest}


class Slides:
    """Slides of one mask, painted when they are first asked for; their canvases are kept."""

    def __init__(self, folder: Path, mask: Path, settings: dict[str, Any]) -> None:
        self.folder, self.mask, self.settings = folder, mask, settings
        self.seconds: dict[str, float] = {}
        self._canvases: dict[str, Canvas] = {}

    def paint(self, name: str, **more: Any) -> Canvas:
        """The canvas of a slide of this name."""
        if name not in self._canvases:
            started = time.perf_counter()
            out = self.folder / f"{name}.svs"
            wsigen.render(self.mask, out, keep_canvas=True, **self.settings, **more)
            self.seconds[name] = round(time.perf_counter() - started, 2)
            self._canvases[name] = Canvas.open(canvas_beside(out))
        return self._canvases[name]

    def killed(self) -> Canvas:
        """Paint in a process of its own, kill it when a third is there, and resume here."""
        out = self.folder / "killed.svs"
        options = [
            text for name, value in self.settings.items() for text in (f"--{name.replace('_', '-')}", str(value))
        ]
        command = [sys.executable, "-m", "wsigen", "render", str(self.mask), "-o", str(out), *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        canvas, whole = canvas_beside(out), self.paint("one")
        wanted = sum(1 for file in whole.path.rglob("c/*/*/*") if file.is_file()) // 3
        while process.poll() is None and sum(1 for file in canvas.rglob("c/*/*/*") if file.is_file()) < wanted:
            time.sleep(0.02)
        if process.poll() is not None:
            raise click.ClickException(f"the slide was finished before it could be killed (exit code {process.poll()})")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return self.paint("killed", resume=True)


@click.command()
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]), show_default=True)
@click.option("--size", default=16384, show_default=True, help="Side of the slide, px.")
@click.option("--model", help="Name or folder. [default: the shipped painter]")
@click.option("--batch-size", type=int)
@click.option("--folder", type=click.Path(path_type=Path), help="Where slides and canvases go. [default: temporary]")
def main(device: str, size: int, model: str | None, batch_size: int | None, folder: Path | None) -> None:
    """Compare slides that must be equal."""
    chosen = {"device": device, "model": model, "batch_size": batch_size}
    settings = {name: value for name, value in chosen.items() if value is not None}
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    with tempfile.TemporaryDirectory(prefix="wsigen-equal-", dir=folder) as name:
        slides = Slides(Path(name), demo_mask(folder or Path(name), size), settings)
        whole = Rectangle(0, 0, size, size)
        side = min(size // 2, 1536)
        part = Rectangle(size // 3, size // 5, side, side)
        one = Pixels.of(slides.paint("one"), whole)
        rows = {"the same command twice": compare(one, Pixels.of(slides.paint("again"), whole))}
        if not on_gpu or torch.cuda.device_count() > 1:
            two = Pixels.of(slides.paint("two", workers=2), whole)
            rows["one process, then two"] = compare(one, two)
            rows["two processes, twice"] = compare(two, Pixels.of(slides.paint("two_again", workers=2), whole))
        rows["killed and resumed"] = compare(one, Pixels.of(slides.killed(), whole))
        one_part = Pixels.of(slides.paint("one"), part)
        rows["a part (--rect)"] = compare(one_part, Pixels.of(slides.paint("part", rect=tuple(part)), part))
        with wsigen.open_generated(slides.mask, **settings) as slide:
            rows["a region of open_generated"] = compare(
                one_part, Pixels(lambda band: np.asarray(slide.read_region(band[:2], 0, band[2:]))[..., :3], part)
            )
    where = torch.cuda.get_device_name() if on_gpu else torch.backends.cpu.get_cpu_capability()
    gpus = torch.cuda.device_count() if on_gpu else 0
    click.echo(json.dumps({"device": where, "gpus": gpus, "torch": torch.__version__, "size": size, **slides.seconds}))
    click.echo("\n| the same slide | 64 px tiles that differ | largest difference of 255 |\n| --- | --- | --- |")
    for what, row in rows.items():
        click.echo(f"| {what} | {row['differing']:,} of {row['tiles']:,} ({row['share']:.2%}) | {row['largest']} |")
    click.echo(f"\nsha256 of the canvas: {hashlib.sha256(''.join(one.hashes).encode()).hexdigest()[:16]}")
    if any(row["differing"] for row in rows.values()):
        sys.exit(1)


if __name__ == "__main__":  # worker processes import this file
    main()
