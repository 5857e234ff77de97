"""How many nuclei survive being drawn into the picture that a mask model paints and decoded again, without a network.

    python benchmarks/decoding.py data

``data`` is a training folder; both sides of its split count, by who drew the labels. A nucleus is kept if one decoded
nucleus covers it by more than half of their union.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from wsigen.evaluation.fidelity import MATCH, Found, match
from wsigen.layouts.decoding import Decoder
from wsigen.layouts.mask_code import MaskCode
from wsigen.masks.demo.mask import demo_mask
from wsigen.models.config import LIZARD_CLASSES
from wsigen.training.data import manifest as manifests

DEMO = (2048, 1536, 1)  # width, height, seed


def planes(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Who drew the labels, classes (H, W) uint8 and ids (H, W) of every picture of a folder, and of a demo mask."""
    for entry in manifests.load(folder).images:
        labels = manifests.read_label(manifests.label_path(folder, entry.name))
        ids = manifests.read_label(manifests.instance_path(folder, entry.name))
        there = (labels > 0) & (labels <= len(LIZARD_CLASSES))
        yield f"labels: {entry.label_quality}", np.where(there, labels, 0).astype(np.uint8), np.where(there, ids, 0)
    demo = demo_mask(*DEMO)
    assert demo.instances is not None
    yield "wsigen mask demo", demo.classes, demo.instances


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
def main(folder: Path) -> None:
    """Draw, decode and count."""
    code = MaskCode.of(LIZARD_CLASSES)
    decoder, counts = Decoder(code), {}
    for source, classes, ids in planes(folder):
        decoded = decoder(code.encode(classes, ids))
        nuclei = match(classes, ids, Found(decoded.index, np.append(0, decoded.kind), decoded.classes)).nuclei
        found, there = counts.get(source, (0, 0))
        counts[source] = found + sum(nucleus.iou > MATCH for nucleus in nuclei), there + len(nuclei)
    click.echo("| source | nuclei | kept |\n| --- | --- | --- |")
    for source, (found, there) in counts.items():
        click.echo(f"| {source} | {there:,} | {found / there:.1%} |")


if __name__ == "__main__":
    main()
