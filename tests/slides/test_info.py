import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from wsigen.cli.main import main
from wsigen.errors import SlideError
from wsigen.slides.formats import FORMATS, write_slide
from wsigen.slides.info import read_slide_info
from wsigen.slides.metadata import SlideMetadata
from wsigen.slides.svs import write_svs

PROVENANCE = {"version": "0.1.0", "model": "a|b = c", "seed": "9", "style": "magenta-violet"}


@pytest.fixture(scope="module")
def svs(tmp_path_factory):
    path = tmp_path_factory.mktemp("info") / "slide.svs"
    rows = np.full((400, 600, 3), 200, np.uint8)
    write_svs(path, 600, 400, lambda y0, y1: rows[y0:y1], SlideMetadata(0.25, 40, PROVENANCE))
    return path


def test_own_slide(svs):
    info = read_slide_info(svs)
    assert (info.width, info.height) == (600, 400)
    assert [(level.width, level.height) for level in info.levels] == [(600, 400), (300, 200), (150, 100)]
    assert [level.downsample for level in info.levels] == [1, 2, 4]
    assert (info.mpp, info.objective_power, info.vendor) == (0.25, 40, "aperio")
    assert (info.tile, info.compression) == ((256, 256), "JPEG")
    assert set(info.associated) == {"label", "macro", "thumbnail"}
    assert info.synthetic
    assert info.provenance == PROVENANCE


def test_foreign_slide_without_scale(tmp_path):
    path = tmp_path / "foreign.tiff"
    tifffile.imwrite(path, np.zeros((300, 300, 3), np.uint8), tile=(128, 128), photometric="rgb", compression="zlib")
    info = read_slide_info(path)
    assert (info.mpp, info.objective_power, info.vendor) == (None, None, "generic-tiff")
    assert (info.compression, info.tile, info.associated) == ("ADOBE_DEFLATE", (128, 128), {})
    assert not info.synthetic
    assert info.provenance == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"not a slide at all\n" * 50, "not a slide"), (b"", "not a slide")],
)
def test_files_that_are_no_slides(tmp_path, content, message):
    path = tmp_path / "bad.svs"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SlideError, match=message):
        read_slide_info(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_slide_that_was_cut_off(tmp_path, svs, share):
    path = tmp_path / "cut.svs"
    path.write_bytes(svs.read_bytes()[: int(svs.stat().st_size * share)])
    with pytest.raises(SlideError, match=r"cut\.svs"):
        read_slide_info(path)


def test_folder_is_no_slide(tmp_path):
    with pytest.raises(SlideError):
        read_slide_info(tmp_path)


@pytest.mark.parametrize("name", ["dzi", "ome.zarr", "dicom"])
def test_slides_in_all_our_formats_are_described_and_followed_by_masks(name, tmp_path):
    if name == "dicom":
        pytest.importorskip("wsidicomizer", reason="DICOM needs the extra wsigen[dicom]")
    path = tmp_path / f"slide{FORMATS[name].ending}"
    rows = np.full((400, 601, 3), 200, np.uint8)
    metadata = SlideMetadata(0.25, 40, {"version": "0.1.0", "model": "a", "seed": "9"})
    write_slide(path, 601, 400, lambda y0, y1: rows[y0:y1], metadata, FORMATS[name])
    if name == "dicom":
        (path / ".DS_Store").write_bytes(b"")
    result = CliRunner().invoke(main, ["info", str(path)])
    assert result.exit_code == 0, result.output
    assert "601 x 400 px" in result.output and "0.25 um/px" in result.output
    assert "synthetic: version 0.1.0, model a, seed 9" in result.output
    cell = '{"geometry": {"coordinates": [[[1, 1], [9, 1], [9, 9]]]}, "properties": {"classification": "Plasma"}}'
    (tmp_path / "c.geojson").write_text(f"[{cell}]")
    arguments = ["mask", "import", str(tmp_path / "c.geojson"), "--like", str(path), "-o", str(tmp_path / "m.tif")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0 and "601 x 400 px, 0.25 um/px" in result.output


def test_pixels_that_are_not_square_are_said_and_no_mask_is_made_like_them(tmp_path):
    path = tmp_path / "slide.tif"
    tifffile.imwrite(
        path, np.zeros((300, 300, 3), np.uint8), tile=(128, 128), photometric="rgb",
        resolution=(40_000, 20_000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    result = CliRunner().invoke(main, ["info", str(path)])
    assert result.exit_code == 0 and "scale: 0.25 x 0.5 um/px (width x height)" in result.output
    (tmp_path / "c.geojson").write_text("[]")
    arguments = ["mask", "import", str(tmp_path / "c.geojson"), "--like", str(path), "-o", str(tmp_path / "m.tif")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "square" in result.output and not (tmp_path / "m.tif").exists()
