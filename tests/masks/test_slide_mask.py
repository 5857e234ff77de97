"""Slide masks of every layout read alike, by window, over the border, and with flat memory."""

import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label

from wsigen.errors import MaskError
from wsigen.masks.resampling import ResampledMask, resampled_to
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.summary import summarise
from wsigen.masks.window import MaskWindow, reflected
from wsigen.masks.writer import write_slide_mask

WIDTH, HEIGHT = 700, 530


def _random_mask(width=WIDTH, height=HEIGHT, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 7, (height // 9 + 1, width // 9 + 1)) * (
        rng.random((height // 9 + 1, width // 9 + 1)) < 0.4
    )
    classes = np.kron(coarse, np.ones((9, 9)))[:height, :width].astype(np.uint8)
    instances = label(classes > 0)[0].astype(np.uint32) + np.uint32(70_000) * (classes > 0)
    tissue = rng.choice(np.array([0, 1, 255], np.uint8), (height, width))
    return MaskWindow(classes, instances.astype(np.uint32), tissue)


@pytest.fixture(scope="module")
def mask():
    return _random_mask()


@pytest.fixture(scope="module")
def mask_path(mask, tmp_path_factory):
    path = tmp_path_factory.mktemp("masks") / "mask.tif"
    write_slide_mask(path, WIDTH, HEIGHT, 0.5, [mask], instances=True, tissue=True)
    return path


def _equal(read: MaskWindow, expected: MaskWindow) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in (
            (read.classes, expected.classes),
            (read.instances, expected.instances),
            (read.tissue, expected.tissue),
        )
    )


def test_a_written_mask_reads_back_pixel_by_pixel(mask, mask_path):
    with SlideMask.open(mask_path, 6) as opened:
        assert opened.planes == ("class", "instance", "tissue")
        assert (opened.width, opened.height, opened.mpp) == (WIDTH, HEIGHT, 0.5)
        assert opened.has_instances and opened.has_tissue
        read = opened.read(0, 0, WIDTH, HEIGHT)
        assert _equal(read, mask)
        assert [read.classes.dtype, read.instances.dtype, read.tissue.dtype] == [np.uint8, np.uint32, np.uint8]


@pytest.mark.parametrize("planes", [(False, False), (True, False), (False, True)])
def test_planes_that_are_not_written_are_absent(mask, tmp_path, planes):
    instances, tissue = planes
    write_slide_mask(tmp_path / "m.tif", WIDTH, HEIGHT, None, [mask], instances, tissue)
    with SlideMask.open(tmp_path / "m.tif", 6) as opened:
        assert (opened.has_instances, opened.has_tissue, opened.mpp) == (instances, tissue, None)
        read = opened.read(3, 4, 5, 6)
        assert (read.instances is None, read.tissue is None) == (not instances, not tissue)


def test_bands_of_any_height_and_a_row_reader_write_the_same_file(mask, mask_path, tmp_path):
    cuts = [0, 1, 200, 519, HEIGHT]
    bands = (mask.take(slice(a, b), slice(None)) for a, b in pairwise(cuts))
    write_slide_mask(tmp_path / "bands.tif", WIDTH, HEIGHT, 0.5, bands, True, True)
    write_slide_mask(
        tmp_path / "rows.tif", WIDTH, HEIGHT, 0.5, lambda y0, y1: mask.take(slice(y0, y1), slice(None)), True, True
    )
    assert (tmp_path / "bands.tif").read_bytes() == mask_path.read_bytes() == (tmp_path / "rows.tif").read_bytes()


LAYOUTS = {
    "raw strips": {"rowsperstrip": 8},
    "one raw strip": {},
    "LZW strips": {"compression": "lzw", "rowsperstrip": 16},
    "LZW strips, predictor": {"compression": "lzw", "rowsperstrip": 7, "predictor": 2},
    "deflate tiles": {"compression": "zlib", "tile": (64, 128)},
    "zstd tiles": {"compression": "zstd", "tile": (256, 256)},
    "raw tiles": {"tile": (128, 64)},
    "packbits": {"compression": "packbits", "rowsperstrip": 1},
}


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_byte_order_reads_alike(mask, tmp_path, layout, bigtiff, byteorder):
    path = tmp_path / "m.tif"
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as tif:
        tif.write(mask.classes, metadata=None, **LAYOUTS[layout])
        tif.write(mask.instances, metadata=None, **LAYOUTS[layout])
    with SlideMask.open(path, 6) as opened:
        read = opened.read(-20, 31, 411, 300)
        assert np.array_equal(read.classes, np.pad(mask.classes, ((0, 0), (20, 0)), "symmetric")[31:331, :411])
        assert np.array_equal(read.instances, np.pad(mask.instances, ((0, 0), (20, 0)), "symmetric")[31:331, :411])


def test_the_hash_is_of_the_content_not_of_the_file(mask, mask_path, tmp_path):
    with tifffile.TiffWriter(tmp_path / "m.tif", byteorder=">", ome=True) as tif:
        for name, plane in (("tissue", mask.tissue), ("instance", mask.instances), ("class", mask.classes)):
            tif.write(plane, metadata={"Name": name}, compression="lzw")
    changed = mask.classes.copy()
    changed[-1, -1] = (changed[-1, -1] + 1) % 7
    write_slide_mask(
        tmp_path / "c.tif", WIDTH, HEIGHT, 0.5, [MaskWindow(changed, mask.instances, mask.tissue)], True, True
    )
    with SlideMask(mask_path, 6) as a, SlideMask(tmp_path / "m.tif", 6) as b, SlideMask(tmp_path / "c.tif", 6) as c:
        assert a.sha256() == b.sha256() != c.sha256()


def test_reduced_pages_and_sub_images_are_ignored(mask, tmp_path):
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path) as tif:
        tif.write(mask.classes, subifds=1, metadata=None)
        tif.write(mask.classes[::2, ::2], subfiletype=1, metadata=None)
        tif.write(mask.instances, metadata=None)
        tif.write(mask.classes[::4, ::4], subfiletype=1, metadata=None)
        tif.write(mask.classes[::2, ::2], metadata=None)
        tif.write(mask.instances[::2, ::2], metadata=None)
    with SlideMask.open(path, 6) as opened:
        assert opened.planes == ("class", "instance")
        assert np.array_equal(opened.read(0, 0, WIDTH, HEIGHT).instances, mask.instances)


def test_planes_may_be_channels_of_one_ome_image(mask, tmp_path):
    stack = np.stack([mask.tissue, mask.classes])
    names = {"axes": "CYX", "Channel": {"Name": ["Tissue", "Classes"]}, "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm"}
    tifffile.imwrite(tmp_path / "m.ome.tif", stack, metadata=names, ome=True)
    with SlideMask.open(tmp_path / "m.ome.tif", 6) as opened:
        assert opened.planes == ("class", "tissue")
        assert opened.mpp == pytest.approx(0.5)
        assert np.array_equal(opened.read(0, 0, WIDTH, HEIGHT).classes, mask.classes)


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [((20_000, 20_000), "CENTIMETER", 0.5), ((50_800, 50_800), "INCH", 0.5), ((20_000, 19_200), "CENTIMETER", 0.5104),
     ((1, 1), "NONE", None), ((72, 72), "INCH", None), ((10, 10), "CENTIMETER", None)],
)  # fmt: skip
def test_microns_per_pixel_come_from_the_resolution_tags(mask, tmp_path, resolution, unit, mpp):
    tifffile.imwrite(tmp_path / "m.tif", mask.classes, resolution=resolution, resolutionunit=unit, metadata=None)
    with SlideMask.open(tmp_path / "m.tif", 6) as opened:
        assert opened.mpp == (mpp if mpp is None else pytest.approx(mpp, rel=1e-4))


def test_pixels_that_are_not_square_are_refused(mask, tmp_path):
    tifffile.imwrite(tmp_path / "m.tif", mask.classes, resolution=(20_000, 10_000), resolutionunit="CENTIMETER")
    with pytest.raises(MaskError, match=r"0\.5 x 1 um .* resample it to square pixels"):
        SlideMask.open(tmp_path / "m.tif", 6)


@given(st.integers(-5000, 5000), st.integers(1, 60), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_reflection_is_symmetric_padding_at_any_distance(start, count, size):
    expected = np.pad(np.arange(size), (5000, 5100), "symmetric")[5000 + start : 5000 + start + count]
    assert np.array_equal(reflected(start, count, size), expected)


@pytest.mark.parametrize(
    "window", [(-30, -40, 100, 90), (650, 500, 120, 80), (-2000, 3000, 64, 64), (-900, -900, 2600, 2400)]
)
def test_windows_outside_the_slide_show_it_reflected(mask, mask_path, window):
    x, y, w, h = window
    rows, columns = reflected(y, h, HEIGHT), reflected(x, w, WIDTH)
    with SlideMask.open(mask_path, 6) as opened:
        assert _equal(opened.read(x, y, w, h), mask.take(rows, columns))


@pytest.mark.parametrize("mpp", [1.0, 0.25, 0.37, 0.9, 2.6, 0.11])
def test_a_resampled_pixel_shows_the_source_pixel_under_its_centre(mask, mask_path, mpp):
    with SlideMask.open(mask_path, 6) as opened:
        resampled = resampled_to(opened, mpp)
        assert isinstance(resampled, ResampledMask) and resampled.mpp == mpp
        p, q = round(mpp * 10**6), round(0.5 * 10**6)
        assert resampled.width == pytest.approx(WIDTH * q / p, abs=0.5)
        columns = np.array([(2 * x + 1) * p // (2 * q) for x in range(resampled.width)])
        rows = np.array([(2 * y + 1) * p // (2 * q) for y in range(resampled.height)])
        assert columns[-1] < WIDTH and rows[-1] < HEIGHT
        whole = mask.take(rows, columns)
        w, h = min(60, resampled.width), min(50, resampled.height)
        for x, y in ((0, 0), (resampled.width - w, resampled.height - h), (7, 3), (-9, -11)):
            expected = whole.take(reflected(y, h, resampled.height), reflected(x, w, resampled.width))
            assert _equal(resampled.read(x, y, w, h), expected)


def test_a_mask_within_five_percent_is_not_resampled(mask_path, mask, tmp_path):
    write_slide_mask(tmp_path / "m.tif", WIDTH, HEIGHT, None, [mask], False, False)
    with SlideMask.open(mask_path, 6) as opened, SlideMask.open(tmp_path / "m.tif", 6) as without_mpp:
        assert resampled_to(opened, 0.52) is opened and resampled_to(opened, 0.48) is opened
        assert resampled_to(opened, 0.54) is not opened
        assert resampled_to(without_mpp, 2.0) is without_mpp


def test_a_resampled_mask_that_is_written_equals_what_was_shown(mask_path, tmp_path):
    with SlideMask.open(mask_path, 6) as opened:
        resampled = resampled_to(opened, 0.9)
        write_slide_mask(
            tmp_path / "r.tif", resampled.width, resampled.height, 0.9,
            lambda y0, y1: resampled.read(0, y0, resampled.width, y1 - y0), True, True,
        )  # fmt: skip
        with SlideMask.open(tmp_path / "r.tif", 6) as written:
            assert written.sha256() == resampled.sha256()
            assert written.count_nuclei() == resampled.count_nuclei()


def test_a_mask_is_pickled_by_path_and_read_by_threads(mask, mask_path):
    with SlideMask.open(mask_path, 6) as opened, ThreadPoolExecutor(8) as pool:
        copies = pickle.loads(pickle.dumps((opened, resampled_to(opened, 1.0))))
        assert copies[0].sha256() == opened.sha256() and copies[1].width == WIDTH // 2
        corners = [(x, y) for x in range(0, 600, 50) for y in range(0, 400, 50)]
        for (x, y), read in zip(corners, pool.map(lambda c: opened.read(*c, 90, 80), corners)):
            assert _equal(read, mask.take(slice(y, y + 80), slice(x, x + 90)))
        for copy in copies:
            copy.close()


@pytest.mark.parametrize("rows", [1, 2, 7, 64, HEIGHT])
def test_counts_and_hash_do_not_depend_on_the_bands(mask, rows):
    bands = [mask.take(slice(y, y + rows), slice(None)) for y in range(0, HEIGHT, rows)]
    whole = summarise([mask], WIDTH, HEIGHT, 6)
    assert summarise(bands, WIDTH, HEIGHT, 6) == whole
    unnumbered = summarise([MaskWindow(band.classes) for band in bands], WIDTH, HEIGHT, 6)
    assert unnumbered.nuclei == tuple(label(mask.classes == k)[1] for k in range(1, 7))
    first = np.unique(mask.instances[mask.classes > 0], return_index=True)[1]
    assert whole.nuclei == tuple(np.bincount(mask.classes[mask.classes > 0][first], minlength=7)[1:])


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 30), st.floats(0.2, 0.9))
@settings(max_examples=50, deadline=None)
def test_components_that_wind_through_the_bands_are_counted_once(seed, rows, width, density):
    rng = np.random.default_rng(seed)
    classes = (rng.integers(1, 3, (40, width)) * (rng.random((40, width)) < density)).astype(np.uint8)
    bands = [MaskWindow(classes[y : y + rows]) for y in range(0, 40, rows)]
    assert summarise(bands, width, 40, 2).nuclei == (label(classes == 1)[1], label(classes == 2)[1])


def test_the_summary_tells_the_share_of_tissue_and_hints(mask, mask_path, tmp_path):
    with SlideMask.open(mask_path, 6) as opened:
        summary = opened.scan()
        assert summary.tissue_share == pytest.approx((mask.tissue == 1).mean())
        assert summary.hint is None
        assert list(summary.nuclei) == opened.count_nuclei(6)
        with pytest.raises(MaskError, match="class 6"):
            opened.count_nuclei(5)
    ones = (mask.classes == 1).astype(np.uint8)
    write_slide_mask(tmp_path / "ones.tif", WIDTH, HEIGHT, 0.5, [MaskWindow(ones)], False, False)
    with SlideMask.open(tmp_path / "ones.tif", 6) as opened:
        assert "tissue mask" in opened.scan().hint


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the memory from /proc")
def test_a_gigapixel_mask_is_written_and_read_with_flat_memory(tmp_path):
    script = f"""
        import re
        from pathlib import Path
        import numpy as np
        from wsigen.masks.slide_mask import SlideMask
        from wsigen.masks.writer import write_slide_mask
        from wsigen.masks.window import MaskWindow
        SIZE = 60_000
        def rows(y0, y1):
            if not y0 <= 30_000 < y1:
                return None
            classes = np.zeros((y1 - y0, SIZE), np.uint8)
            classes[30_000 - y0, 40_000:40_010] = 3
            return MaskWindow(classes, classes.astype(np.uint32) * 9, classes // 3)
        path = {str(tmp_path / "big.tif")!r}
        write_slide_mask(path, SIZE, SIZE, 0.5, rows, True, True)
        # Not ru_maxrss: a process inherits the peak of the one that started it.
        peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
        written = peak()
        with SlideMask.open(path, 6) as mask:
            before = peak()
            for x in range(0, SIZE - 1000, 2000):
                for y in (0, 29_900, SIZE - 1000):
                    mask.read(x, y, 1000, 1000)
            assert mask.read(39_990, 29_990, 256, 256).classes.sum() == 30
            assert mask.read(-256, -256, 512, 512).classes.shape == (512, 512)
            print(written, peak() - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written, growth = map(int, done.stdout.split())
    assert written < 1000 and growth < 300, f"{written} MB after writing, {growth} MB more while reading"
