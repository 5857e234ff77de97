"""The window grid: which windows there are, in which order they are painted, and which pixels each of them holds.

Windows of ``window`` pixels overlap by ``overlap`` and follow one another with the stride S = window - overlap. Window
(i, j) has the parity (i % 2, j % 2) and is painted in one of three stages: (0, 0), then (1, 0) and (0, 1) together,
then (1, 1). The outermost M pixels of a window, a quarter of the overlap, are never kept: a network that sees nothing
beyond them paints them worse. The first windows begin M pixels before the slide, which makes all windows alike. Of what
is left, even windows hold all along an axis, W - 2 M pixels, and odd ones what the even ones leave them,
W - 2 O + 2 M, and B = ``blend`` pixels more at each end: in these bands two windows hold a pixel, in two dimensions up
to four, and the slide shows their weighted mean. All of it repeats with the period 2 S:

    |<------ even: W - 2 M ------>|           |<------ even: W - 2 M ------>| ...
                             |<- odd: W - 2 O + 2 M + 2 B ->|
    0                        |band|           |band|
                    W - 2 M - B   W - 2 M     2 S   2 S + B

The weight of the left window falls over a band from (2 B - 1) / 2 B to 1 / 2 B in equal steps, that of the right one is
the rest; weights of columns and rows are multiplied. A pixel is known once all windows that hold it are painted, so
that context is always final: an odd window sees O - M - B pixels of it at each side, and paints what it holds itself
without knowing what others hold of that. Nothing is ever painted twice. With B = 0 every pixel has one window.

All of it is arithmetic on integers, one axis at a time; nothing here reads a file or knows about torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from wsigen.errors import SettingsError


class Parity(NamedTuple):
    """Parity of a window's column and row."""

    x: int
    y: int

    @property
    def stage(self) -> int:
        """Stage in which windows of this parity are painted: 0, 1 or 2."""
        return self.x + self.y


STAGE_PARITIES: tuple[tuple[Parity, ...], ...] = ((Parity(0, 0),), (Parity(1, 0), Parity(0, 1)), (Parity(1, 1),))
PARITIES = tuple(parity for stage in STAGE_PARITIES for parity in stage)
STAGES = len(STAGE_PARITIES)
MARGIN_SHARE = 4  # one part in so many of the overlap, at each side of a window, is not kept


def usual_blend(overlap: int) -> int:
    """Pixels over which the windows of a slide are blended: 3/8 of the overlap, and 3/8 of it stay for context.

    Borders of a hard cut show (`wsigen study seams`), and narrower bands show more; wider ones gain nothing.
    """
    return 3 * overlap // 8


class Window(NamedTuple):
    """Column and row of a window in the grid."""

    i: int
    j: int

    @property
    def parity(self) -> Parity:
        """Parity of column and row."""
        return Parity(self.i % 2, self.j % 2)

    @property
    def stage(self) -> int:
        """Stage in which the window is painted: 0, 1 or 2."""
        return self.parity.stage


class Block(NamedTuple):
    """Column and row of a block of windows."""

    p: int
    q: int


class Rectangle(NamedTuple):
    """Pixels [x, x + width) x [y, y + height) at level 0."""

    x: int
    y: int
    width: int
    height: int


def bounding(rectangles: Sequence[Rectangle]) -> Rectangle:
    """The smallest rectangle that holds all of some (one or more)."""
    x, y = min(part.x for part in rectangles), min(part.y for part in rectangles)
    right = max(part.x + part.width for part in rectangles)
    return Rectangle(x, y, right - x, max(part.y + part.height for part in rectangles) - y)


class Segment(NamedTuple):
    """A run of pixels [start, stop) of one axis that the same windows hold: one, or two that lie side by side.

    into: pixels that the band of two windows goes on before ``start``; 0 where one window holds the run.
    """

    windows: range
    start: int
    stop: int
    into: int = 0


@dataclass(frozen=True)
class Axis:
    """One axis of the grid. Pixels may lie outside the slide, on the left too: windows are counted without end."""

    length: int
    window: int
    overlap: int
    blend: int = 0

    @property
    def stride(self) -> int:
        """Distance of neighbouring windows in pixels."""
        return self.window - self.overlap

    @property
    def margin(self) -> int:
        """Pixels at both ends of a window that are not kept."""
        return self.overlap // MARGIN_SHARE

    @cached_property
    def count(self) -> int:
        """Number of windows: the slide reaches each even one, and each odd one beyond its first band.

        So the same windows exist whatever ``blend`` is. What the last one might share is its own.
        """
        period, rest = divmod(self.length - 1, 2 * self.stride)
        return 2 * period + 1 + (rest >= self.held_length(0))

    def origin(self, i: int) -> int:
        """First pixel of window ``i``, before the slide for the first one."""
        return i * self.stride - self.margin

    def held_length(self, parity: int) -> int:
        """Pixels that a window of this parity holds: W - 2 M if even, W - 2 O + 2 M + 2 B if odd."""
        kept = self.window - 2 * self.margin
        return 2 * (self.stride + self.blend) - kept if parity else kept

    def held_start(self, i: int) -> int:
        """First pixel that window ``i`` holds."""
        return i * self.stride + (self.overlap - 2 * self.margin - self.blend) * (i % 2)

    def holders(self, pixel: int) -> range:
        """Existing windows that hold a pixel: one or two, none where there are no windows."""
        period, rest = divmod(pixel, 2 * self.stride)
        even, end = 2 * period, self.held_length(0)
        first, last = even + (rest >= end) - (rest < self.blend), even + (rest >= end - self.blend)
        return range(max(first, 0), min(last + 1, self.count))

    def neighbours(self, i: int) -> range:
        """Existing windows of whose pixels window ``i`` sees some, itself included: only odd windows look aside."""
        return range(i - i % 2, min(i + i % 2 + 1, self.count))

    def covering(self, start: int, stop: int) -> range:
        """Existing windows that hold a pixel of [start, stop)."""
        start, stop = max(start, 0), min(stop, self.length)
        return range(self.holders(start).start, self.holders(stop - 1).stop) if start < stop else range(0)

    def segments(self, start: int, stop: int) -> Iterator[Segment]:
        """Cut [start, stop) into runs that the same existing windows hold; what no such window holds is left out.

        The last window may hold pixels beyond the slide; they are painted like all others and cropped at the end.
        """
        start, end = max(start, 0), self.held_length(0)
        while start < stop and (windows := self.holders(start)):
            rest = start % (2 * self.stride)
            # The even window's first band, what it holds alone, its last band, and what the odd one holds alone.
            changes = (0, self.blend, end - self.blend, end, 2 * self.stride)
            before = max(change for change in changes if change <= rest)
            after = min(change for change in changes if change > rest)
            following = min(stop, start + after - rest)
            yield Segment(windows, start, following, rest - before if len(windows) > 1 else 0)
            start = following


@dataclass(frozen=True)
class WindowGrid:
    """Windows of a slide of ``width`` x ``height`` pixels.

    Raises SettingsError for sizes that do not fit: the slide has at least one pixel, ``window`` is a multiple of 16,
    ``overlap`` a multiple of 8 with 8 <= overlap <= 3/8 window (beyond that odd windows hold too little of themselves),
    ``blend`` from 0 to half the overlap (beyond that odd windows would blend what is not kept).
    """

    width: int
    height: int
    window: int = 256
    overlap: int = 32
    blend: int = 0

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise SettingsError(f"slide size {self.width} x {self.height}: both must be at least 1 pixel")
        if self.window < 32 or self.window % 16:
            raise SettingsError(f"--window {self.window}: must be a multiple of 16, at least 32")
        highest = 3 * self.window // 8 // 8 * 8
        if self.overlap % 8 or not 8 <= self.overlap <= highest:
            raise SettingsError(
                f"--overlap {self.overlap}: must be a multiple of 8 from 8 to {highest} for --window {self.window}"
            )
        widest = self.overlap - 2 * (self.overlap // MARGIN_SHARE)
        if not 0 <= self.blend <= widest:
            raise SettingsError(f"blend {self.blend}: must lie from 0 to {widest} px for --overlap {self.overlap}")

    @cached_property
    def x_axis(self) -> Axis:
        """The horizontal axis."""
        return Axis(self.width, self.window, self.overlap, self.blend)

    @cached_property
    def y_axis(self) -> Axis:
        """The vertical axis."""
        return Axis(self.height, self.window, self.overlap, self.blend)

    @property
    def stride(self) -> int:
        """Distance of neighbouring windows in pixels."""
        return self.window - self.overlap

    @cached_property
    def columns(self) -> int:
        """Number of window columns."""
        return self.x_axis.count

    @cached_property
    def rows(self) -> int:
        """Number of window rows."""
        return self.y_axis.count

    def windows(self, region: Rectangle | None = None) -> Iterator[Window]:
        """Windows that hold a pixel of the region (default: of the slide), row by row."""
        x, y, width, height = region or (0, 0, self.width, self.height)
        columns = self.x_axis.covering(x, x + width)
        return (Window(i, j) for j in self.y_axis.covering(y, y + height) for i in columns)

    def origin(self, window: Window) -> tuple[int, int]:
        """Upper left pixel (x, y) of a window, outside the slide for those at its upper and left edge."""
        return self.x_axis.origin(window[0]), self.y_axis.origin(window[1])

    def extent(self, window: Window) -> Rectangle:
        """All pixels of a window: what the model sees, context included."""
        return Rectangle(*self.origin(window), self.window, self.window)

    def held(self, window: Window) -> Rectangle:
        """The pixels that a window holds. At the right and lower edge they may reach beyond the slide."""
        (i, j), (width, height) = window, self.held_size(Window(*window).parity)
        return Rectangle(self.x_axis.held_start(i), self.y_axis.held_start(j), width, height)

    def held_size(self, parity: Parity) -> tuple[int, int]:
        """Width and height of what a window of this parity holds."""
        return self.x_axis.held_length(parity.x), self.y_axis.held_length(parity.y)

    def held_within(self, window: Window) -> tuple[slice, slice]:
        """Rows and columns of what a window holds, counted from the window's origin."""
        (x, y), held = self.origin(window), self.held(window)
        return slice(held.y - y, held.y - y + held.height), slice(held.x - x, held.x - x + held.width)

    def dependencies(self, window: Window) -> tuple[Window, ...]:
        """Windows whose pixels a window sees as context, of earlier stages all: none, 2 or 8 away from the edges."""
        columns, rows = self.x_axis.neighbours(window[0]), self.y_axis.neighbours(window[1])
        return tuple(Window(i, j) for j in rows for i in columns if (i, j) != tuple(window))

    def closure(self, region: Rectangle) -> tuple[Window, ...]:
        """Every window that must be painted to know a region, in the order of stages."""
        needed: set[Window] = set()
        for window in self.windows(region):
            # The neighbours of neighbours are neighbours already: even windows look no further along their axis.
            needed.update((window, *self.dependencies(window)))
        return tuple(sorted(needed, key=lambda w: (w.stage, w.j, w.i)))


@dataclass(frozen=True)
class BlockGrid:
    """The windows of a grid in blocks of 2 b x 2 b: the unit of work and of storage.

    A block covers the pixels [2 b S p, 2 b S (p + 1)) of an axis, without a gap, since the grid's period is 2 S. With
    ``blend`` its last odd windows hold that many pixels of the next block too: to know the pixels of a block takes the
    blocks to the left and above as well.
    """

    grid: WindowGrid
    b: int

    def __post_init__(self) -> None:
        if self.b < 1:
            raise SettingsError(f"block of {2 * self.b} windows: must be at least 2")

    @property
    def columns(self) -> int:
        """Number of block columns."""
        return -(-self.grid.columns // (2 * self.b))

    @property
    def rows(self) -> int:
        """Number of block rows."""
        return -(-self.grid.rows // (2 * self.b))

    @property
    def pixels(self) -> int:
        """Pixels of a block along each axis."""
        return 2 * self.b * self.grid.stride

    def blocks(self) -> Iterator[Block]:
        """All blocks, row by row."""
        return (Block(p, q) for q in range(self.rows) for p in range(self.columns))

    def block_of(self, window: Window) -> Block:
        """The block that holds a window."""
        return Block(window[0] // (2 * self.b), window[1] // (2 * self.b))

    def region(self, block: Block) -> Rectangle:
        """The pixels that a block covers, cropped to the slide."""
        x, y = block[0] * self.pixels, block[1] * self.pixels
        return Rectangle(x, y, min(self.pixels, self.grid.width - x), min(self.pixels, self.grid.height - y))

    def windows(self, block: Block, parity: Parity) -> tuple[Window, ...]:
        """Existing windows of one parity in a block, row by row."""
        first_i, first_j = 2 * self.b * block[0], 2 * self.b * block[1]
        columns = range(first_i + parity[0], min(first_i + 2 * self.b, self.grid.columns), 2)
        rows = range(first_j + parity[1], min(first_j + 2 * self.b, self.grid.rows), 2)
        return tuple(Window(i, j) for j in rows for i in columns)

    def chunk_size(self, parity: Parity) -> tuple[int, int]:
        """Width and height of what the windows of one parity of a block hold, stored side by side."""
        width, height = self.grid.held_size(parity)
        return self.b * width, self.b * height

    def within_chunk(self, window: Window) -> tuple[slice, slice]:
        """Rows and columns that what a window holds takes within the chunk of its block and parity."""
        width, height = self.grid.held_size(Window(*window).parity)
        x, y = window[0] // 2 % self.b * width, window[1] // 2 % self.b * height
        return slice(y, y + height), slice(x, x + width)


def block_windows(grid: WindowGrid, batch_size: int, workers: int, largest: int = 16, tasks_per_worker: int = 4) -> int:
    """Windows along the side of a block, a power of two from 2 to ``largest``; pixels do not depend on it.

    Large blocks cost less to schedule and to store; small slides are cut finer, so that every worker gets several
    blocks, but not so fine that a stage of one block no longer fills a batch, unless workers would go without any.
    """
    side = largest
    while side > 2:
        blocks = -(-grid.columns // side) * -(-grid.rows // side)
        half_fills_batch = (side // 4) ** 2 >= batch_size
        if blocks >= tasks_per_worker * workers or (blocks >= workers and not half_fills_batch):
            break
        side //= 2
    return side
