"""Levels of an OME-Zarr image written in one pass: every size, no empty chunks, errors of the writing thread."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from wsigen.system.zarr_levels import CHUNK, LevelWriter, create_level


def every_second(rows: np.ndarray) -> np.ndarray:
    height, width = rows.shape
    return rows[: height // 2 * 2 : 2, : width // 2 * 2 : 2].copy()


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1300), (511, 513), (1025, 700), (2 * CHUNK, 2 * CHUNK), (1667, 1031)]
)
@pytest.mark.parametrize("rows", [100, CHUNK, 3 * CHUNK])
def test_levels_do_not_depend_on_how_rows_come(height: int, width: int, rows: int, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 1000, (height, width), np.uint32)
    group = zarr.open_group(str(tmp_path / "image.zarr"), mode="w", zarr_format=3)
    expected = [image]
    while min(expected[-1].shape) > 1 and len(expected) < 4:
        expected.append(every_second(expected[-1]))
    arrays = [create_level(group, str(i), level.shape, np.uint32, "yx", 0) for i, level in enumerate(expected)]
    with LevelWriter(arrays, every_second) as writer:
        for y in range(0, height, rows):
            writer.add(image[y : y + rows])
    for array, level in zip(arrays, expected):
        assert np.array_equal(array[:], level)


def test_chunks_of_the_fill_value_are_left_out(tmp_path: Path) -> None:
    group = zarr.open_group(str(tmp_path / "image.zarr"), mode="w", zarr_format=3)
    array = create_level(group, "0", (3, 2 * CHUNK, 4 * CHUNK), np.uint8, "cyx", 255)
    rows = np.full((2 * CHUNK, 4 * CHUNK, 3), 255, np.uint8)
    rows[0, 0], rows[CHUNK - 1, 2 * CHUNK, 1], rows[CHUNK, -1, 2] = 9, 8, 0
    with LevelWriter([array], lambda part: part) as writer:
        writer.add(rows)
    chunks = {p.relative_to(tmp_path / "image.zarr/0/c").as_posix() for p in tmp_path.rglob("c/*/*/*")}
    assert chunks == {"0/0/0", "0/0/2", "0/1/3"}
    assert np.array_equal(array[:], rows.transpose(2, 0, 1))


def test_what_goes_wrong_while_writing_is_raised(tmp_path: Path) -> None:
    group = zarr.open_group(str(tmp_path / "image.zarr"), mode="w", zarr_format=3)
    arrays = [create_level(group, str(i), (CHUNK >> i, CHUNK >> i), np.uint8, "yx", 0) for i in range(2)]

    def fail(rows: np.ndarray) -> np.ndarray:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"), LevelWriter(arrays, fail) as writer:
        writer.add(np.ones((CHUNK, CHUNK), np.uint8))
