import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import openslide
import pytest
import tifffile

from wsigen.errors import SlideError
from wsigen.slides.metadata import DIGITAL_SOURCE_TYPE, SlideMetadata, parse_description
from wsigen.slides.svs import write_svs

METADATA = SlideMetadata(
    0.5, 20, {"version": "0.1.0", "model": "nasdm-colon-20x", "seed": "7", "mask_sha256": "ab" * 32}
)

# Root mean square error if every coefficient is off by a uniform part of its step in JPEG's luminance table.
JPEG_NOISE = {80: 7.75, 90: 3.87, 95: 1.94}


def tissue_like(width: int, height: int, y0: int = 0) -> np.ndarray:
    """Smooth pinks with a fine texture, a function of the coordinates alone."""
    y, x = np.mgrid[y0 : y0 + height, 0:width]
    smooth = 170 + 40 * np.sin(x / 97) * np.cos(y / 61) + (x * 7919 + y * 104729) % 17 - 8
    return (smooth[..., None] * np.array([1.05, 0.75, 0.95])).clip(0, 255).astype(np.uint8)


def write(path, pixels: np.ndarray, **options) -> None:
    height, width = pixels.shape[:2]
    write_svs(path, width, height, lambda y0, y1: pixels[y0:y1], METADATA, **options)


def half(pixels: np.ndarray) -> np.ndarray:
    h, w = pixels.shape[0] // 2, pixels.shape[1] // 2
    return (pixels[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3).sum((1, 3), dtype=np.int32) + 2) // 4


def read_level(slide: openslide.OpenSlide, level: int) -> np.ndarray:
    rgba = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))
    assert (rgba[..., 3] == 255).all()
    return rgba[..., :3].astype(np.int32)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return tissue_like(1531, 1117)


@pytest.fixture(scope="module")
def svs(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("svs") / "slide.svs"
    write(path, pixels)
    return path


def test_openslide_reads_levels_scale_and_pictures(svs):
    with openslide.OpenSlide(svs) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert slide.level_dimensions == ((1531, 1117), (765, 558), (382, 279), (191, 139))
        assert slide.level_downsamples == pytest.approx((1, 2, 4, 8), rel=0.01)
        assert float(slide.properties["openslide.mpp-x"]) == 0.5
        assert float(slide.properties["openslide.mpp-y"]) == 0.5
        assert slide.properties["openslide.objective-power"] == "20"
        assert slide.properties["openslide.level[0].tile-width"] == "256"
        assert set(slide.associated_images) == {"thumbnail", "label", "macro"}
        assert slide.associated_images["thumbnail"].size == (1024, 747)


def test_tifffile_reads_levels_names_and_resolution(svs):
    with tifffile.TiffFile(svs) as tiff:
        assert tiff.is_bigtiff
        assert [series.name for series in tiff.series] == ["Baseline", "Thumbnail", "Label", "Macro"]
        assert [level.shape[:2] for level in tiff.series[0].levels] == [
            (1117, 1531),
            (558, 765),
            (279, 382),
            (139, 191),
        ]
        page = tiff.pages.first
        assert page.get_resolution("centimeter") == (20000, 20000)
        assert DIGITAL_SOURCE_TYPE.encode() in bytes(page.tags[700].value)


def test_slide_says_that_it_is_synthetic(svs):
    with openslide.OpenSlide(svs) as slide:
        assert slide.properties["aperio.ScanScope ID"] == "SYNTHETIC"
        assert slide.properties["aperio.synthetic"] == "wsigen 0.1.0"
        assert slide.properties["aperio.seed"] == "7"
        assert parse_description(slide.properties["tiff.ImageDescription"]) == METADATA


@pytest.mark.parametrize("quality", [95, 90, 80])
def test_levels_are_the_input_and_its_2x2_means_up_to_jpeg(tmp_path, pixels, quality):
    write(tmp_path / "slide.svs", pixels, jpeg_quality=quality)
    with openslide.OpenSlide(tmp_path / "slide.svs") as slide:
        expected = pixels.astype(np.int32)
        for level in range(slide.level_count):
            error = np.abs(read_level(slide, level) - expected)
            assert error.mean() < JPEG_NOISE[quality], f"level {level}: mean error {error.mean():.2f}"
            expected = half(expected)


def test_flat_levels_are_exact(tmp_path):
    """Flat 8 x 8 blocks of grey survive JPEG at quality 100: shows that levels are neither shifted nor gamma-shrunk."""
    steps = np.random.default_rng(0).integers(0, 256, (64, 64, 1), dtype=np.uint8)
    image = np.repeat(np.kron(steps[..., 0], np.ones((16, 16), np.uint8))[..., None], 3, axis=2)
    write(tmp_path / "slide.svs", image, jpeg_quality=100)
    with openslide.OpenSlide(tmp_path / "slide.svs") as slide:
        assert np.abs(read_level(slide, 0) - image).max() <= 1
        assert np.abs(read_level(slide, 1) - half(image)).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (100, 80), (257, 1), (1, 257), (256, 256), (257, 300), (3000, 2), (16, 4097)])
def test_tiny_and_narrow_slides(tmp_path, size):
    width, height = size
    image = tissue_like(width, height)
    write(tmp_path / "slide.svs", image)
    with openslide.OpenSlide(tmp_path / "slide.svs") as slide, tifffile.TiffFile(tmp_path / "slide.svs") as tiff:
        assert slide.dimensions == size
        assert set(slide.associated_images) == {"thumbnail", "label", "macro"}
        assert [picture.size for picture in slide.associated_images.values()]
        assert [(w, h) for h, w, _ in (level.shape for level in tiff.series[0].levels)] == list(slide.level_dimensions)
        assert min(slide.level_dimensions[-1]) == 1 or max(slide.level_dimensions[-1]) <= 256
        assert np.abs(read_level(slide, 0) - image).mean() < JPEG_NOISE[90]


def test_same_input_gives_the_same_bytes(tmp_path, svs, pixels):
    write(tmp_path / "another_name.svs", pixels, band_rows=100)
    assert (tmp_path / "another_name.svs").read_bytes() == svs.read_bytes()


def test_rows_are_asked_for_once_downward_in_the_callers_thread(tmp_path):
    asked, done = [], []
    image = tissue_like(300, 700)
    buffer = np.empty((256, 300, 3), np.uint8)

    def read_rows(y0, y1):
        assert threading.current_thread() is threading.main_thread()
        asked.append((y0, y1))
        buffer[: y1 - y0] = image[y0:y1]  # one buffer for all bands
        return buffer[: y1 - y0]

    write_svs(tmp_path / "slide.svs", 300, 700, read_rows, METADATA, progress=done.append)
    assert asked == [(0, 256), (256, 512), (512, 700)]
    assert done == [256, 512, 700]
    with openslide.OpenSlide(tmp_path / "slide.svs") as slide:
        assert np.abs(read_level(slide, 0) - image).mean() < JPEG_NOISE[90]


@pytest.mark.parametrize("kind", [RuntimeError, OSError, KeyboardInterrupt])
def test_exception_of_the_reader_comes_out_as_itself_and_leaves_nothing(tmp_path, kind):
    raised = kind("the canvas is gone")

    def read_rows(y0, y1):
        if y0 >= 512:
            raise raised
        return tissue_like(1000, y1 - y0, y0)

    with pytest.raises(kind) as caught:
        write_svs(tmp_path / "slide.svs", 1000, 2000, read_rows, METADATA)
    assert caught.value is raised
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a child")
def test_ctrl_c_ends_a_write_at_once(tmp_path):
    script = textwrap.dedent("""
        import signal, sys, time, numpy as np
        from wsigen.slides.metadata import SlideMetadata
        from wsigen.slides.svs import write_svs
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        def read_rows(y0, y1):
            print(y0, flush=True)
            time.sleep(0.05)
            return np.zeros((y1 - y0, 512, 3), np.uint8)
        try:
            write_svs(sys.argv[1], 512, 1_000_000, read_rows, SlideMetadata(0.5, 20))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """)
    command = [sys.executable, "-c", script, str(tmp_path / "slide.svs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        output, _ = child.communicate(timeout=20)
    assert output.endswith("interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_existing_file_is_kept_unless_overwriting(tmp_path, pixels):
    path = tmp_path / "slide.svs"
    path.write_text("precious")
    with pytest.raises(SlideError, match="exists already"):
        write(path, pixels[:50])
    with pytest.raises(SlideError):
        write(path, pixels[:50].astype(float), overwrite=True)
    assert path.read_text() == "precious"
    write(path, pixels[:50], overwrite=True)
    assert openslide.OpenSlide(path).dimensions == (1531, 50)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "wrong", [np.zeros((99, 10, 3), np.uint8), np.zeros((100, 10, 3)), np.zeros((100, 10, 4), np.uint8)]
)
def test_wrong_rows_are_named(tmp_path, wrong):
    with pytest.raises(SlideError, match=r"rows 0 to 100: got .*must give \(100, 10, 3\) uint8"):
        write_svs(tmp_path / "slide.svs", 10, 100, lambda y0, y1: wrong, METADATA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("width", "height", "quality", "message"),
    [(0, 5, 90, "size 0 x 5"), (5, 20_000_000, 90, "1 to 10000000"), (5, 5, 0, "JPEG quality 0")],
)
def test_settings_out_of_range(tmp_path, width, height, quality, message):
    with pytest.raises(SlideError, match=message):
        write_svs(tmp_path / "slide.svs", width, height, lambda y0, y1: None, METADATA, jpeg_quality=quality)


def test_folder_that_does_not_exist_or_is_the_target(tmp_path, pixels):
    with pytest.raises(SlideError, match="cannot write to folder"):
        write(tmp_path / "missing" / "slide.svs", pixels)
    with pytest.raises(SlideError, match="is a folder"):
        write(tmp_path, pixels)


@pytest.mark.skipif(sys.platform == "win32", reason="limits the file size of a child")
@pytest.mark.parametrize("share", [0.02, 0.6, 0.99, 0.9999])
def test_disk_that_fills_up_gives_one_line_and_no_file(tmp_path, svs, share):
    """A limit on the file size stands for the full disk: at the first tiles, amid the levels, in the pictures."""
    script = textwrap.dedent("""
        import resource, sys
        sys.path.insert(0, sys.argv[3])
        from test_svs import tissue_like, write
        from wsigen.errors import SlideError
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
        try:
            write(sys.argv[1], tissue_like(1531, 1117))
        except SlideError as error:
            print(error)
    """)
    limit = str(int(svs.stat().st_size * share))
    command = [sys.executable, "-c", script, str(tmp_path / "slide.svs"), limit, os.path.dirname(__file__)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "could not be written" in run.stdout, run.stderr
    assert run.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the memory in use from /proc")
def test_memory_does_not_grow_with_the_height(tmp_path):
    """12,000 x 12,000 is 432 MB of pixels; the writer may hold a few bands of 9 MB and libvips' line caches."""
    band = tissue_like(12_000, 256)
    start, peak = anonymous_megabytes(), [0.0]

    def read_rows(y0, y1):
        peak[0] = max(peak[0], anonymous_megabytes())
        return band[: y1 - y0]

    write_svs(tmp_path / "slide.svs", 12_000, 12_000, read_rows, METADATA, jpeg_quality=85)
    assert peak[0] - start < 200
    with openslide.OpenSlide(tmp_path / "slide.svs") as slide:
        assert slide.level_dimensions[-1] == (187, 187)


def anonymous_megabytes() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024
