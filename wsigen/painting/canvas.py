"""The canvas: the painted pixels on disk, and with them the journal of what is done.

A Zarr v3 group with one array per parity. An array holds only what the windows of its parity hold, side by side; a
chunk is what those of one block hold. It is written whole, once and atomically (Zarr's LocalStore writes a temporary
file and renames it), with a checksum, and also when it is blank. A chunk that decodes is therefore a finished piece of
work and nothing else needs to be recorded. Two traps shape this: a repeated task must not see pixels of its own stage,
so the arrays of earlier stages are the only ones it opens; and concurrent writers must never share a chunk.

Where windows meet, several hold a pixel; nothing is mixed on disk. Each keeps what it painted, and whoever reads gets
the blended pixel, once all of its windows are there: what is stored never changes.

``run.json`` lies beside the arrays, is written first, and says which run the pixels belong to.
"""

import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import BytesCodec, ZstdCodec
from zarr.storage import LocalStore, MemoryStore

from wsigen.errors import StoreError
from wsigen.painting.blending import Mosaic
from wsigen.painting.grid import PARITIES, STAGES, Axis, Block, BlockGrid, Parity, Rectangle, Window, WindowGrid
from wsigen.painting.spec import first_difference, in_words
from wsigen.system.caching import ArrayCache
from wsigen.system.replacing import written_whole

RUN_FILE = "run.json"
FORMAT = "wsigen canvas 3"
CACHE_BYTES = 128 << 20  # decoded chunks kept in memory; a task of default size touches about 90 MB of them
PANEL_CACHE_BYTES = 128 << 20  # the chunks of a panel, and those that panels share
PANEL_MULTIPLE = 512  # two tiles of 256 px, so that a panel holds whole tiles of levels 0 and 1
LARGEST_PANEL = 8192
DECODERS = 4  # threads that verify chunks; zstd and the checksum release the interpreter

Chunk = tuple[Block, Parity]


class Canvas:
    """A canvas store on disk. Threads may share it; processes each open their own."""

    def __init__(self, path: Path, layout: BlockGrid, run: Mapping[str, Any], cache_bytes: int = CACHE_BYTES) -> None:
        self.path = path
        self.layout = layout
        self.grid = layout.grid
        self.run = dict(run)
        self._arrays: dict[Parity, zarr.Array] = {}
        self._cache = ArrayCache(cache_bytes)  # done chunks never change
        self._blanks: dict[tuple[Parity, tuple[int, ...]], bytes] = {}

    @classmethod
    def create(cls, path: str | os.PathLike, layout: BlockGrid, run: Mapping[str, Any]) -> "Canvas":
        """Start an empty canvas in a folder that does not exist yet, or is empty.

        ``run`` is plain JSON that says what decides the pixels, from run_record. Raises StoreError if there is
        something at ``path``.
        """
        path = Path(path)
        if path.exists() and not _is_empty(path):
            raise StoreError(f"{path}: exists already; resume it, remove it, or choose another place")
        path.mkdir(parents=True, exist_ok=True)
        record = {"format": FORMAT, "grid": asdict(layout.grid), "block_windows": 2 * layout.b, "run": dict(run)}
        write_json(path / RUN_FILE, record)
        return cls.open(path)._create_arrays()

    @classmethod
    def open(cls, path: str | os.PathLike, cache_bytes: int = CACHE_BYTES) -> "Canvas":
        """Open a canvas. Raises StoreError if there is none, or one of another format."""
        path = Path(path)
        try:
            record = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path}: no canvas here ({RUN_FILE} is missing or damaged); choose another place"
            ) from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise StoreError(f"{path / RUN_FILE}: not of format {FORMAT!r}; written by another version, render again")
        layout = BlockGrid(WindowGrid(**record["grid"]), record["block_windows"] // 2)
        return cls(path, layout, record["run"], cache_bytes)

    @classmethod
    def resume(cls, path: str | os.PathLike, layout: BlockGrid, run: Mapping[str, Any]) -> "Canvas":
        """Open the canvas of the same run, or create it. A canvas keeps its block size: pixels do not depend on it.

        Raises StoreError naming what differs if the canvas belongs to another run.
        """
        if not Path(path).exists() or _is_empty(Path(path)):
            return cls.create(path, layout, run)
        canvas = cls.open(path)
        if difference := first_difference(canvas.run, _as_json(run)) or first_difference(
            asdict(canvas.grid), asdict(layout.grid)
        ):
            raise StoreError(
                f"{path}: belongs to another run ({in_words(difference)}); remove it or choose another place"
            )
        for leftover in canvas.path.rglob("*.partial"):  # of a writer that was killed
            leftover.unlink(missing_ok=True)
        return canvas._create_arrays()

    def remove(self) -> None:
        """Delete the store."""
        self._arrays.clear()
        self._cache.clear()
        shutil.rmtree(self.path)

    def is_done(self, block: Block, parity: Parity) -> bool:
        """Whether a chunk is there and decodes with the right checksum. One without windows is done from the start.

        Reads the chunk: what a crash of the machine truncated or damaged counts as not done and is painted again.
        """
        if not self.layout.windows(block, parity):
            return True
        try:
            return self._decode(block, parity) is not None
        except StoreError:
            return False

    def write(self, block: Block, parity: Parity, pixels: np.ndarray) -> None:
        """Write the chunk of one (block, parity): uint8 (b * held height, b * held width, 3), see BlockGrid.

        Raises StoreError if the file system refuses it.
        """
        width, height = self.layout.chunk_size(parity)
        if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8:
            raise ValueError(f"chunk {parity} is uint8 {(height, width, 3)}, not {pixels.dtype} {pixels.shape}")
        self._require_store()  # Zarr would make the folders anew
        try:
            self._array(parity)[self._selection(block, parity)] = pixels
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({error}); mend that and resume") from error

    def write_blank(self, chunks: Iterable[Chunk], rgb: Sequence[int]) -> None:
        """Write chunks of clear glass in one RGB; each costs a small file and no encoding."""
        self._require_store()
        try:
            for block, parity in chunks:
                file = self._file(block, parity)
                file.parent.mkdir(parents=True, exist_ok=True)
                partial = file.with_suffix(f".{os.getpid()}.partial")
                partial.write_bytes(self._blank_bytes(parity, tuple(rgb)))
                partial.replace(file)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({error}); mend that and resume") from error

    def is_blank(self, region: Rectangle, rgb: Sequence[int]) -> bool:
        """Whether all chunks that hold pixels of a region were written by `write_blank` in this colour."""
        return all(self._holds_blank(*chunk, tuple(rgb)) for chunk in self._by_chunk(self.grid.windows(region)))

    def _require_store(self) -> None:
        if not (self.path / RUN_FILE).is_file():
            raise StoreError(f"{self.path}: the canvas has vanished; render again")

    def _holds_blank(self, block: Block, parity: Parity, rgb: tuple[int, ...]) -> bool:
        file, blank = self._file(block, parity), self._blank_bytes(parity, rgb)
        try:
            return file.stat().st_size == len(blank) and file.read_bytes() == blank
        except OSError:
            return False

    def _blank_bytes(self, parity: Parity, rgb: tuple[int, ...]) -> bytes:
        """What a chunk of one parity looks like on disk."""
        key = (parity, rgb)
        if key not in self._blanks:
            width, height = self.layout.chunk_size(parity)
            store: dict[str, Any] = {}
            array = _new_array(MemoryStore(store), (height, width, 3), (height, width, 3))
            array.with_config({"write_empty_chunks": True})[:] = np.broadcast_to(np.array(rgb, np.uint8), array.shape)
            self._blanks[key] = store["c/0/0/0"].to_bytes()
        return self._blanks[key]

    def read_region(
        self, x: int, y: int, width: int, height: int, stages_below: int = STAGES, require: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pixels that are final before a stage: uint8 (height, width, 3), and bool (height, width) known.

        The region may reach beyond the slide. Unknown pixels are 0. Chunks that are not there yet, or damaged, are
        unknown; with ``require`` they raise StoreError instead, for a task that relies on its predecessors.
        """
        mosaic = Mosaic(self.grid, Rectangle(x, y, width, height), stages_below)
        for (block, parity), windows in self._by_chunk(mosaic.windows).items():
            chunk = self._chunk(block, parity, require)
            if chunk is not None:
                for window in windows:
                    mosaic.add(window, chunk[self.layout.within_chunk(window)])
        return mosaic.rgb, mosaic.known

    def painted_samples(
        self, chunk: Chunk, region: Rectangle, every: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """What the windows of a chunk show of every so many-th column and row of a region; None if it is missing.

        Columns (n,) and rows (m,), counted from the region's corner, and pixels (m, n, 3) uint8. Before all windows
        around are there: as if windows were cut where bands end. No pixel comes from two chunks.
        """
        pixels = self._chunk(*chunk, require=False)
        if pixels is None:
            return None
        windows = self.layout.windows(*chunk)
        across, down = sorted({window.i for window in windows}), sorted({window.j for window in windows})
        columns, left = _sampled(self.grid.x_axis, across, region.x, region.width, every)
        rows, top = _sampled(self.grid.y_axis, down, region.y, region.height, every)
        return columns, rows, pixels[top[:, None], left]

    def _by_chunk(self, windows: Iterable[Window]) -> Mapping[Chunk, list[Window]]:
        """Windows by the chunk that they are stored in."""
        chunks: defaultdict[Chunk, list[Window]] = defaultdict(list)
        for window in windows:
            chunks[self.layout.block_of(window), window.parity].append(window)
        return chunks

    def _chunk(self, block: Block, parity: Parity, require: bool) -> np.ndarray | None:
        try:
            chunk = self._cache.get((block, parity), lambda: self._decode(block, parity))
        except StoreError:
            if require:
                raise
            return None
        if chunk is None and require:
            self._require_store()
            raise StoreError(f"{self._file(block, parity)}: missing, though it should be painted; render again")
        return chunk

    def _decode(self, block: Block, parity: Parity) -> np.ndarray | None:
        """Read a chunk from disk, None if it is not there. Raises StoreError if it is damaged."""
        # Zarr answers a chunk that is not there with the fill value, so the file has to be asked for first.
        file = self._file(block, parity)
        if not file.is_file():
            return None
        try:
            return np.asarray(self._array(parity)[self._selection(block, parity)])
        except (ValueError, RuntimeError, OSError) as error:
            raise StoreError(f"{file}: damaged ({error}); render again, it will be painted anew") from error

    def _selection(self, block: Block, parity: Parity) -> tuple[slice, slice]:
        width, height = self.layout.chunk_size(parity)
        return slice(block[1] * height, (block[1] + 1) * height), slice(block[0] * width, (block[0] + 1) * width)

    def _file(self, block: Block, parity: Parity) -> Path:
        # The default chunk keys of Zarr v3.
        return self.path / _array_name(parity) / "c" / str(block[1]) / str(block[0]) / "0"

    def _create_arrays(self) -> "Canvas":
        """Create the arrays that are missing; only the process that drives a run does so."""
        for parity in PARITIES:
            folder = self.path / _array_name(parity)
            if not (folder / "zarr.json").is_file():
                width, height = self.layout.chunk_size(parity)
                shape = (height * self.layout.rows, width * self.layout.columns, 3)
                _new_array(LocalStore(folder), shape, (height, width, 3))
        return self

    def _array(self, parity: Parity) -> zarr.Array:
        if parity not in self._arrays:
            folder = self.path / _array_name(parity)
            try:
                array = zarr.open_array(LocalStore(folder), mode="r+")
            except (OSError, ValueError) as error:
                raise StoreError(f"{folder}: missing or damaged ({error}); remove the canvas, render again") from error
            # Blank chunks leave no file unless each handle is told so; it is not stored in the array's metadata.
            self._arrays[parity] = array.with_config({"write_empty_chunks": True})
        return self._arrays[parity]


def _new_array(store: Store, shape: tuple[int, int, int], chunk: tuple[int, int, int]) -> zarr.Array:
    return zarr.create_array(
        store,
        shape=shape,
        chunks=chunk,
        dtype="uint8",
        fill_value=0,
        serializer=BytesCodec(),
        compressors=[ZstdCodec(level=1, checksum=True)],  # verified without holding up other threads
        dimension_names=("y", "x", "rgb"),
    )


def _sampled(axis: Axis, windows: list[int], origin: int, length: int, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of [origin, origin + length) that windows, stored side by side, show; and where they are stored."""
    cut, samples, places = replace(axis, blend=0), [], []
    for number, i in enumerate(windows):
        start, stop = cut.held_start(i) - origin, cut.held_start(i) + cut.held_length(i % 2) - origin
        found = np.arange(-(-max(start, 0) // every) * every, min(stop, length), every)
        samples.append(found)
        places.append(found + origin - axis.held_start(i) + number * axis.held_length(i % 2))
    return np.concatenate(samples), np.concatenate(places)


class CanvasPanels:
    """Reads a finished canvas for a writer of panels: ``panels(x, y, width, height)`` -> uint8 (height, width, 3).

    ``region`` is what is read, (x, y) count from its corner. Panels of clear glass are told by their files and take
    neither time nor memory; ``cached`` serves panels of any size. Threads may share it. Raises StoreError where the
    canvas is not finished.
    """

    def __init__(
        self, canvas: Canvas, glass_rgb: Sequence[int], region: Rectangle | None = None, cached: bool = False
    ) -> None:
        # A panel of the usual size holds whole chunks; without bands each of them is read once and needs no cache.
        side, blend = self.side_of(canvas.grid), canvas.grid.blend
        whole = not cached and region is None and not blend and side % canvas.layout.pixels == 0
        self._canvas = Canvas(canvas.path, canvas.layout, canvas.run, 0 if whole else PANEL_CACHE_BYTES)
        self._glass_rgb = tuple(glass_rgb)
        self.region = region or Rectangle(0, 0, canvas.grid.width, canvas.grid.height)

    @property
    def side(self) -> int:
        """Side of a panel that suits the canvas."""
        return self.side_of(self._canvas.grid)

    @staticmethod
    def side_of(grid: WindowGrid) -> int:
        """Side of a panel that suits a grid: whole blocks and whole tiles where that is not too large."""
        whole = math.lcm(PANEL_MULTIPLE, 2 * grid.stride)
        return whole if whole <= LARGEST_PANEL else LARGEST_PANEL // 2

    def __call__(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Read a panel."""
        part = Rectangle(self.region.x + x, self.region.y + y, width, height)
        if self._canvas.is_blank(part, self._glass_rgb):
            return np.broadcast_to(np.array(self._glass_rgb, np.uint8), (height, width, 3))
        return self._canvas.read_region(*part, require=True)[0]


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write JSON atomically: a reader finds the old file or the new one, never a part."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _is_empty(path: Path) -> bool:
    """Whether a folder holds nothing: what is left if a run ends before its first file."""
    return path.is_dir() and not any(path.iterdir())


def _array_name(parity: Parity) -> str:
    return f"colour-{parity[0]}{parity[1]}"


def _as_json(value: Any) -> Any:
    """What ``value`` is after a round trip through a file: tuples become lists."""
    return json.loads(json.dumps(value))
