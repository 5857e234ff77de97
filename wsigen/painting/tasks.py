"""Which tasks are missing on a canvas, what each of them waits for, and in which order they are handed out.

A task is one stage of one dense block of windows, or of several sparse ones of a row, so that it fills batches. Its
windows see pixels of earlier stages in their own block and in the blocks to the right and below, never to the left or
above: a block begins with an even window, which keeps all that it covers but its margin.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from wsigen.painting.canvas import DECODERS, Canvas, Chunk
from wsigen.painting.grid import PARITIES, STAGE_PARITIES, Block, BlockGrid, Parity, Rectangle
from wsigen.painting.occupancy import occupied_windows

MOST_CHUNKS = 64  # of a task: what is lost when a worker dies stays small
MOST_BLOCKS = 4  # that a task may hold the windows of, to fill its last batch


class Task(NamedTuple):
    """Chunks of one stage that are painted and written together."""

    stage: int
    chunks: tuple[Chunk, ...]

    @property
    def key(self) -> str:
        """A name that follows from the task alone."""
        (first, _), (last, _) = self.chunks[0], self.chunks[-1]
        parities = "".join(f"{parity.x}{parity.y}" for _, parity in self.chunks[:2])
        return f"stage{self.stage}-row{first.q}-{first.p}-{last.p}-{len(self.chunks)}-{parities}"


@dataclass(frozen=True)
class Plan:
    """Missing tasks in the order of priority, each behind all that it waits for.

    blank: missing chunks of nothing but glass, to be written before all tasks. waits_for: for each task the missing
    tasks that it waits for. total: windows of all chunks, done ones too. resumed: windows that were found done.
    """

    tasks: tuple[Task, ...]
    blank: tuple[Chunk, ...]
    waits_for: Mapping[Task, frozenset[Task]]
    total: int
    resumed: int


def make_plan(
    canvas: Canvas, region: Rectangle | None = None, occupied: np.ndarray | None = None, batch_size: int = 1
) -> Plan:
    """Plan what is missing to know a region (default: the slide). Reads every chunk there is, to verify it.

    ``occupied`` is what `window_occupancy` found; without it all windows are taken to need the model. Tasks of fewer
    windows than a dense block has of a parity, or than a batch holds, are joined.
    """
    layout = canvas.layout
    chunks = [c for c in _needed(layout, region) if layout.windows(*c)]
    with ThreadPoolExecutor(DECODERS) as pool:
        done = dict(zip(chunks, pool.map(lambda chunk: canvas.is_done(*chunk), chunks), strict=True))
    missing = [chunk for chunk in chunks if not done[chunk]]
    blank = [chunk for chunk in missing if occupied is not None and not occupied_windows(layout, chunk, occupied)]
    known = set(blank)
    tasks = _grouped(layout, [chunk for chunk in missing if chunk not in known], occupied, batch_size)
    writer = {chunk: task for task in tasks for chunk in task.chunks}
    waits_for = {
        task: frozenset(writer[source] for chunk in task.chunks for source in chunk_sources(*chunk) if source in writer)
        for task in tasks
    }
    counts = {chunk: len(layout.windows(*chunk)) for chunk in chunks}
    resumed = sum(counts[chunk] for chunk in chunks if done[chunk])
    return Plan(tuple(tasks), tuple(blank), waits_for, sum(counts.values()), resumed)


def _grouped(layout: BlockGrid, missing: Iterable[Chunk], occupied: np.ndarray | None, batch_size: int) -> list[Task]:
    """Tasks in the order of priority. Neighbours in a row of blocks are joined while that fills batches.

    A batch holds windows of one task, so a task takes more while its last batch would not be full: up to what a dense
    block has of a parity, or to MOST_BLOCKS times that if windows would be left over.
    The order is a front that moves down the slide: a stage of a row of blocks needs the stage before of the row below.
    """
    by_block: dict[tuple[int, int, Block], list[Chunk]] = {}
    for block, parity in sorted(missing, key=lambda chunk: (chunk[0].p, chunk[1])):
        by_block.setdefault((block.q + parity.stage, parity.stage, block), []).append((block, parity))
    tasks: list[Task] = []
    full = max(layout.b**2, batch_size)
    open_row, weight = (-1, -1), 0
    for (front, stage, _), chunks in sorted(by_block.items(), key=lambda item: (item[0][:2], item[0][2].p)):
        more = sum(
            len(layout.windows(*c)) if occupied is None else occupied_windows(layout, c, occupied) for c in chunks
        )
        most = full if weight % batch_size == 0 else MOST_BLOCKS * full
        joins = open_row == (front, stage) and weight + more <= most and len(tasks[-1].chunks) < MOST_CHUNKS
        if joins:
            tasks[-1] = Task(stage, (*tasks[-1].chunks, *chunks))
        else:
            tasks.append(Task(stage, tuple(chunks)))
        open_row, weight = (front, stage), more + (weight if joins else 0)
    return tasks


def chunk_sources(block: Block, parity: Parity) -> Iterator[Chunk]:
    """Chunks that the windows of a chunk see: odd windows see both even neighbours, of which one may be a block on."""
    for x in range(parity[0] + 1):
        for y in range(parity[1] + 1):
            if (x, y) != tuple(parity):
                for p in range(block[0], block[0] + 1 + (x < parity[0])):
                    for q in range(block[1], block[1] + 1 + (y < parity[1])):
                        yield Block(p, q), Parity(x, y)


def _needed(layout: BlockGrid, region: Rectangle | None) -> list[Chunk]:
    if region is None:
        return [(block, parity) for block in layout.blocks() for parity in PARITIES]
    wanted = {(layout.block_of(window), window.parity) for window in layout.grid.windows(region)}
    for stage in reversed(STAGE_PARITIES):
        # A chunk is painted whole, so its sources are those of the whole chunk, not of the windows in the region alone.
        for block, parity in [chunk for chunk in wanted if chunk[1] in stage]:
            wanted.update(chunk_sources(block, parity))
    return sorted(wanted)
