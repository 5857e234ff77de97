"""A file that cannot be a mask is refused with one line that names the file, what is wrong, and the mend."""

import struct

import numpy as np
import pytest
import tifffile

from wsigen.errors import MaskError
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask

CLASSES = np.zeros((60, 80), np.uint8)
CLASSES[10:20, 10:20] = 2


def _refusal(path, class_count=6, scan=True):
    with pytest.raises(MaskError) as caught, SlideMask.open(path, class_count) as opened:
        if scan:
            opened.scan()
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def _written(tmp_path, *pages, **options):
    path = tmp_path / "mask.tif"
    with tifffile.TiffWriter(path) as tif:
        for page in pages:
            tif.write(page, **({"metadata": None, "photometric": "minisblack"} | options))
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"hello, this is text\n", "not a TIFF"), (b"\x89PNG\r\n\x1a\n" * 9, "not a TIFF"),
     (b"II*\0", "truncated or damaged"), (b"II*\0\x00\x10\0\0", "trunc"), (b"II*\0" + b"\xff" * 40, "trunc")],
)  # fmt: skip
def test_what_is_not_a_tiff_is_refused(tmp_path, content, words):
    path = tmp_path / "mask.tif"
    path.write_bytes(content)
    assert words in _refusal(path, scan=False)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "no such file" in _refusal(tmp_path / "absent.tif", scan=False)
    assert "is a directory" in _refusal(tmp_path, scan=False)


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16), "compression": "zlib"}, {"rowsperstrip": 4}])
@pytest.mark.parametrize("lost", [1, 500, 3000])
def test_a_truncated_file_is_refused_when_it_is_opened(tmp_path, options, lost):
    noise = np.random.default_rng(0).integers(0, 7, (60, 80), dtype=np.uint8)
    path = _written(tmp_path, noise, **options)
    data = path.read_bytes()
    path.write_bytes(data[: max(20, len(data) - lost)])
    assert "truncated" in _refusal(path, scan=False)


def test_a_file_whose_directory_lies_beyond_its_end_is_refused(tmp_path):
    path = tmp_path / "mask.tif"
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 100_000) + bytes(500))
    assert "trunc" in _refusal(path, scan=False)


def test_a_damaged_segment_is_refused_when_it_is_read(tmp_path):
    path = _written(tmp_path, np.random.default_rng(0).integers(0, 7, (60, 80), np.uint8), compression="zlib")
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[0].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    assert "cannot be decoded" in _refusal(path)


def test_a_mask_of_no_size_is_refused(tmp_path):
    path = _written(tmp_path, CLASSES)
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[0].tags["ImageLength"].valueoffset
    data = bytearray(path.read_bytes())
    data[offset : offset + 2] = b"\0\0"
    path.write_bytes(data)
    assert "80 x 0" in _refusal(path, scan=False)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int16", "int32", "uint64"])
def test_a_dtype_that_is_not_of_labels_is_refused_by_name(tmp_path, dtype):
    message = _refusal(_written(tmp_path, CLASSES.astype(dtype)), scan=False)
    assert dtype in message and "convert it to uint8" in message


def test_pictures_are_refused(tmp_path):
    rgb = np.zeros((60, 80, 3), np.uint8)
    assert "RGB" in _refusal(_written(tmp_path, rgb, photometric="rgb"), scan=False)
    assert "JPEG" in _refusal(_written(tmp_path, CLASSES, compression="jpeg"), scan=False)
    assert "1 bit" in _refusal(_written(tmp_path, CLASSES > 0), scan=False)


def test_a_class_out_of_range_is_named_with_its_first_position(tmp_path):
    bad = CLASSES.copy()
    bad[31, 44] = bad[31, 50] = bad[40, 2] = 9
    for options in ({"tile": (16, 16)}, {"rowsperstrip": 1}, {}):
        message = _refusal(_written(tmp_path, bad, **options))
        assert "holds 9 at pixel (44, 31)" in message and "1 to 6" in message
        with SlideMask.open(tmp_path / "mask.tif", 6) as opened:
            assert opened.read(0, 0, 44, 31).classes.max() == 2
            with pytest.raises(MaskError, match=r"\(44, 31\)"):
                opened.read(40, 30, 200, 200)
            with pytest.raises(MaskError, match=r"\(44, 31\)"):
                opened.sha256()
    assert "holds 2" in _refusal(_written(tmp_path, CLASSES), class_count=1)


def test_tissue_values_and_instance_planes_in_the_wrong_place_are_refused(tmp_path):
    path = tmp_path / "tissue.tif"
    tissue = np.zeros_like(CLASSES)
    tissue[5, 6] = 128
    write_slide_mask(path, 80, 60, 0.5, [MaskWindow(CLASSES, None, tissue)], False, True)
    assert "tissue plane holds 128 at pixel (6, 5)" in _refusal(path)
    ids = CLASSES.astype(np.uint32) * 1000
    assert "looks like an instance plane" in _refusal(_written(tmp_path, ids))


def test_a_tissue_mask_is_recognised(tmp_path):
    tissue = np.zeros((600, 800), np.uint8)
    tissue[100:500, 100:700] = 1
    assert "looks like a tissue mask" in _refusal(_written(tmp_path, tissue))
    assert "looks like a tissue mask" in _refusal(_written(tmp_path, tissue * np.uint8(255)))


def test_a_mask_with_nothing_in_it_is_refused(tmp_path):
    empty = np.zeros_like(CLASSES)
    assert "neither nuclei nor tissue" in _refusal(_written(tmp_path, empty))
    path = tmp_path / "glass.tif"
    write_slide_mask(path, 80, 60, 0.5, [MaskWindow(empty, None, empty)], False, True)
    assert "neither nuclei nor tissue" in _refusal(path)
    write_slide_mask(path, 80, 60, 0.5, [MaskWindow(empty, None, empty + np.uint8(255))], False, True, overwrite=True)
    assert "255 means tissue" in _refusal(path)
    write_slide_mask(path, 80, 60, 0.5, [MaskWindow(empty, None, empty + np.uint8(1))], False, True, overwrite=True)
    with SlideMask.open(path, 6) as opened:
        assert opened.scan().tissue_share == 1.0


def test_planes_of_different_sizes_or_without_a_name_are_refused(tmp_path):
    ids = CLASSES.astype(np.uint16)
    assert "differ in size" in _refusal(_written(tmp_path, CLASSES, ids[:50]), scan=False)
    assert "differ in size" in _refusal(_written(tmp_path, CLASSES, np.tile(ids, (2, 2))), scan=False)
    assert "without a name" in _refusal(_written(tmp_path, CLASSES, CLASSES), scan=False)
    assert "without a name" in _refusal(_written(tmp_path, CLASSES, ids, ids), scan=False)
    assert "without a name" in _refusal(_written(tmp_path, CLASSES, CLASSES.astype(np.float32)), scan=False)
    with SlideMask.open(_written(tmp_path, CLASSES, ids), 6) as opened:
        assert opened.planes == ("class", "instance")


def test_ome_names_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "m.ome.tif"
    for names, words in ((("tissue",), "no class plane"), (("class", "class"), "two planes are named")):
        with tifffile.TiffWriter(path, ome=True) as tif:
            for name in names:
                tif.write(CLASSES, metadata={"Name": name})
        assert words in _refusal(path, scan=False)


def test_a_compressed_strip_too_large_to_window_is_refused_with_the_way_to_tile_it(tmp_path):
    path = _written(tmp_path, CLASSES, compression="zlib")
    with tifffile.TiffFile(path) as tif:
        tags = tif.pages[0].tags
        places = {name: tags[name].valueoffset for name in ("ImageWidth", "ImageLength", "RowsPerStrip")}
        kinds = {name: tags[name].dtype for name in places}
    data = bytearray(path.read_bytes())
    for name, offset in places.items():
        data[offset : offset + (2 if kinds[name] == 3 else 4)] = struct.pack("<H" if kinds[name] == 3 else "<I", 40_000)
    path.write_bytes(data)
    assert "rewrite it tiled" in _refusal(path, scan=False)


def test_the_writer_refuses_what_it_cannot_write(tmp_path):
    path = tmp_path / "out.tif"
    band = MaskWindow(CLASSES)
    for arguments, words in (
        ((path, 80, 61, 0.5, [band], False, False), "end at row 60"),
        ((path, 81, 60, 0.5, [band], False, False), "must be uint8 \\(60, 81\\)"),
        ((path, 80, 60, 0.5, [band], True, False), "instance plane of a band is missing"),
        ((path, 0, 60, 0.5, [band], False, False), "size of 1 or more"),
        ((tmp_path / "no" / "out.tif", 80, 60, 0.5, [band], False, False), "does not exist"),
    ):
        with pytest.raises(MaskError, match=words):
            write_slide_mask(*arguments)
    assert list(tmp_path.iterdir()) == []
    write_slide_mask(path, 80, 60, 0.5, [band], False, False)
    with pytest.raises(MaskError, match="already exists"):
        write_slide_mask(path, 80, 60, 0.5, [band], False, False)
    write_slide_mask(path, 80, 60, 0.5, [band], False, False, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.tif"]
