"""Which tasks are missing on a canvas, what each of them waits for, and in which order they are handed out.

A task is one stage of one block of windows. Its windows see pixels of earlier stages in its own block and in the blocks
to the right and below, never to the left or above: a block begins with an even window, which owns all that it covers.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from wsigen.tiling.canvas import DECODERS, Canvas
from wsigen.tiling.grid import COLOURS, STAGE_COLOURS, Block, BlockGrid, Colour, Rectangle

Chunk = tuple[Block, Colour]


class Task(NamedTuple):
    """One stage of one block: the chunks of ``colours`` are to be painted and written."""

    stage: int
    block: Block
    colours: tuple[Colour, ...]


@dataclass(frozen=True)
class Plan:
    """Missing tasks in the order of priority, each behind all that it waits for.

    waits_for: for each task the missing tasks that it waits for. total: windows of all tasks, done ones too.
    resumed: windows that were found done.
    """

    tasks: tuple[Task, ...]
    waits_for: Mapping[Task, frozenset[Task]]
    total: int
    resumed: int


def make_plan(canvas: Canvas, region: Rectangle | None = None) -> Plan:
    """Plan what is missing to know a region (default: the slide). Reads every chunk there is, to verify it."""
    layout = canvas.layout
    chunks = [c for c in _needed(layout, region) if layout.windows(*c)]
    with ThreadPoolExecutor(DECODERS) as pool:
        done = dict(zip(chunks, pool.map(lambda chunk: canvas.is_done(*chunk), chunks), strict=True))
    missing: dict[tuple[int, Block], list[Colour]] = {}
    for block, colour in chunks:
        if not done[block, colour]:
            missing.setdefault((colour.stage, block), []).append(colour)
    tasks = sorted((Task(stage, block, tuple(cs)) for (stage, block), cs in missing.items()), key=_priority)
    writer = {(task.block, colour): task for task in tasks for colour in task.colours}
    waits_for = {
        task: frozenset(
            writer[source]
            for colour in task.colours
            for source in chunk_sources(task.block, colour)
            if source in writer
        )
        for task in tasks
    }
    counts = {chunk: len(layout.windows(*chunk)) for chunk in chunks}
    resumed = sum(counts[chunk] for chunk in chunks if done[chunk])
    return Plan(tuple(tasks), waits_for, sum(counts.values()), resumed)


def chunk_sources(block: Block, colour: Colour) -> Iterator[Chunk]:
    """Chunks that the windows of a chunk see: odd windows see both even neighbours, of which one may be a block on."""
    for x in range(colour[0] + 1):
        for y in range(colour[1] + 1):
            if (x, y) != tuple(colour):
                for p in range(block[0], block[0] + 1 + (x < colour[0])):
                    for q in range(block[1], block[1] + 1 + (y < colour[1])):
                        yield Block(p, q), Colour(x, y)


def _needed(layout: BlockGrid, region: Rectangle | None) -> list[Chunk]:
    if region is None:
        return [(block, colour) for block in layout.blocks() for colour in COLOURS]
    wanted = {(layout.block_of(window), window.colour) for window in layout.grid.windows(region)}
    for stage in reversed(STAGE_COLOURS):
        # A chunk is painted whole, so its sources are those of the whole chunk, not of the windows in the region alone.
        for block, colour in [chunk for chunk in wanted if chunk[1] in stage]:
            wanted.update(chunk_sources(block, colour))
    return sorted(wanted)


def _priority(task: Task) -> tuple[int, int, int]:
    """A front that moves down the slide: a stage of one row of blocks needs the stage before of the row below."""
    return task.block.q + task.stage, task.stage, task.block.p
