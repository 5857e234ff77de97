"""Slides in other formats, each opened by a reader of its own: levels, scale, pixels and marks."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import openslide
import pytest
import pyvips
import tifffile
import zarr

from wsigen.errors import SlideError
from wsigen.slides.formats import FORMATS, export_slide, format_of, write_slide
from wsigen.slides.info import read_slide_info
from wsigen.slides.metadata import SlideMetadata

WIDTH, HEIGHT = 1300, 1100
METADATA = SlideMetadata(
    0.5, 20, {"version": "9.9", "model": "tiny <v1> & more", "seed": "4", "mask_sha256": "ab" * 32}
)


def picture() -> np.ndarray:
    """A smooth picture, so that JPEG changes it little."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([120 + 80 * np.sin(x / 90), 120 + 80 * np.cos(y / 70), (x + y) / 12], 2).astype(np.uint8)


PICTURE = picture()


def written(folder: Path, name: str, **options: object) -> Path:
    path = folder / f"slide{FORMATS[name].ending}"
    write_slide(path, WIDTH, HEIGHT, lambda a, b: PICTURE[a:b], METADATA, FORMATS[name], jpeg_quality=95, **options)  # type: ignore[arg-type]
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
    return path


def close(pixels: np.ndarray, limit: float = 1.5) -> bool:
    return float(np.abs(pixels.astype(float) - PICTURE).mean()) < limit


def test_plain_tiff_in_openslide_and_tifffile(tmp_path: Path) -> None:
    path = written(tmp_path, "tiff")
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.dimensions == (WIDTH, HEIGHT) and slide.level_count == 4
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert close(np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3])
    with tifffile.TiffFile(path) as tif:
        assert [level.shape[:2] for level in tif.series[0].levels] == [(HEIGHT >> k, WIDTH >> k) for k in range(4)]
    facts = read_slide_info(path)
    assert facts.synthetic and facts.provenance["model"] == "tiny <v1> & more" and facts.provenance["seed"] == "4"


def test_ome_tiff_in_tifffile_and_libvips(tmp_path: Path) -> None:
    ome_types = pytest.importorskip("ome_types")
    path = written(tmp_path, "ome.tiff")
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ome
        assert [level.shape[:2] for level in tif.series[0].levels] == [(HEIGHT >> k, WIDTH >> k) for k in range(4)]
        assert close(tif.series[0].levels[0].asarray())
        assert tif.ome_metadata is not None
        described = tif.ome_metadata
    ElementTree.fromstring(described)
    pixels = ome_types.from_xml(described).images[0].pixels  # checked against the schema
    assert (pixels.size_x, pixels.size_y, pixels.size_c) == (WIDTH, HEIGHT, 3)
    assert pixels.physical_size_x == 0.5 and pixels.physical_size_x_unit.value == "µm"
    assert pyvips.Image.tiffload(str(path), subifd=1).width == WIDTH >> 2
    assert read_slide_info(path).synthetic


def test_deep_zoom_in_libvips_and_by_its_files(tmp_path: Path) -> None:
    path = written(tmp_path, "dzi")
    image = ElementTree.parse(path).getroot()
    assert (image.get("Format"), image.get("TileSize"), image.get("Overlap")) == ("jpg", "254", "1")
    assert [(s.get("Width"), s.get("Height")) for s in image] == [(str(WIDTH), str(HEIGHT))]
    tiles = tmp_path / "slide_files"
    assert {p.name for p in tiles.iterdir() if p.is_dir()} == {str(k) for k in range(12)}
    tile = pyvips.Image.new_from_file(str(tiles / "11" / "1_1.jpg")).numpy()
    assert np.abs(tile.astype(float) - PICTURE[253:509, 253:509]).mean() < 1.5
    facts = json.loads((tiles / "slide.json").read_text())
    assert facts["synthetic"] is True and facts["mpp"] == 0.5 and facts["seed"] == "4"


def test_ome_zarr_by_its_metadata_and_pixels(tmp_path: Path) -> None:
    path = written(tmp_path, "ome.zarr")
    group = zarr.open_group(str(path), mode="r")
    scales = group.attrs["ome"]["multiscales"][0]
    assert group.attrs["ome"]["version"] == "0.5" and [a["name"] for a in scales["axes"]] == ["c", "y", "x"]
    assert [d["coordinateTransformations"][0]["scale"] for d in scales["datasets"]] == [
        [1.0, 0.5 * 2**k, 0.5 * 2**k] for k in range(3)
    ]
    assert np.array_equal(group["0"][:], PICTURE.transpose(2, 0, 1))  # without loss
    means = PICTURE[:1100, :1300].reshape(550, 2, 650, 2, 3).astype(int).sum((1, 3))
    assert np.array_equal(group["1"][:], ((means + 2) // 4).transpose(2, 0, 1))
    assert group.attrs["wsigen"]["synthetic"] is True and group.attrs["wsigen"]["seed"] == "4"


def test_dicom_in_pydicom_wsidicom_and_openslide(tmp_path: Path) -> None:
    pytest.importorskip("wsidicomizer", reason="DICOM needs the extra wsigen[dicom]")
    import pydicom
    from wsidicom import WsiDicom

    path = written(tmp_path, "dicom")
    datasets = [pydicom.dcmread(file, stop_before_pixels=True) for file in sorted(path.iterdir())]
    for dataset in datasets:
        assert dataset.SyntheticData == "YES" and dataset.ImageType[0] == "DERIVED"
        assert dataset.PatientName == "SYNTHETIC^WSIGEN" and dataset.PatientID.startswith("WSIGEN-")
        assert dataset.Modality == "SM"
    widths = {d.TotalPixelMatrixColumns for d in datasets if d.ImageType[2] == "VOLUME"}
    assert widths == {WIDTH >> k for k in range(4)}
    with WsiDicom.open(path) as slide:
        assert slide.size.to_tuple() == (WIDTH, HEIGHT) and slide.mpp.width == pytest.approx(0.5, rel=1e-3)
        assert (
            np.abs(np.asarray(slide.read_region((0, 0), 0, (900, 700))).astype(float) - PICTURE[:700, :900]).mean() < 3
        )
    with openslide.OpenSlide(next(iter(sorted(path.iterdir())))) as opened:
        assert opened.properties["openslide.vendor"] == "dicom" and opened.dimensions == (WIDTH, HEIGHT)
    identifiers = sorted((str(d.SOPInstanceUID), str(d.StudyInstanceUID), list(d.ImageType)) for d in datasets)
    (tmp_path / "again").mkdir()
    again = written(tmp_path / "again", "dicom", patient_id="TEST-7")
    repeated = [pydicom.dcmread(file, stop_before_pixels=True) for file in sorted(again.iterdir())]
    assert sorted((str(d.SOPInstanceUID), str(d.StudyInstanceUID), list(d.ImageType)) for d in repeated) == identifiers
    assert {d.PatientID for d in repeated} == {"TEST-7"}


@pytest.mark.parametrize("name", ["ome.tiff", "tiff", "dzi", "ome.zarr"])
def test_a_slide_that_exists_is_exported(name: str, tmp_path: Path) -> None:
    source = written(tmp_path, "svs")
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / f"slide{FORMATS[name].ending}"
    rows = []
    facts = export_slide(source, out, progress=lambda what, done, total: rows.append((done, total)))
    assert (facts.width, facts.height, facts.mpp) == (WIDTH, HEIGHT, 0.5) and rows[-1] == (HEIGHT, HEIGHT)
    if name != "dzi" and name != "ome.zarr":
        assert read_slide_info(out).provenance == read_slide_info(source).provenance
    with pytest.raises(SlideError, match="exists already"):
        export_slide(source, out)
    export_slide(source, out, overwrite=True)


@pytest.mark.parametrize("name", ["dzi", "ome.zarr"])
def test_formats_that_openslide_does_not_read_are_exported_too(name: str, tmp_path: Path) -> None:
    source = written(tmp_path, name)
    out = tmp_path / "again.ome.zarr"
    facts = export_slide(source, out)
    assert (facts.width, facts.height, facts.mpp, facts.objective_power) == (WIDTH, HEIGHT, 0.5, 20)
    pixels = zarr.open_group(str(out), mode="r")["0"][:].transpose(1, 2, 0)
    assert np.array_equal(pixels, PICTURE) if name == "ome.zarr" else close(pixels)
    export_slide(out, tmp_path / "back.svs")
    assert read_slide_info(tmp_path / "back.svs").provenance == dict(METADATA.provenance)


def test_folders_of_others_and_damaged_tiles_are_refused_in_a_line(tmp_path: Path) -> None:
    zarr.open_group(str(tmp_path / "other.ome.zarr"), mode="w", zarr_format=3)
    (tmp_path / "other.dzi").write_text('<!DOCTYPE a [<!ENTITY b "c">]><Image/>')
    (tmp_path / "plain.dzi").write_text(
        '<Image TileSize="254" Overlap="1" Format="jpg"><Size Width="9" Height="9"/></Image>'
    )
    for name, message in (
        ("other.ome.zarr", "not an OME-Zarr slide"),
        ("other.dzi", "document type"),
        ("missing.dzi", "not a Deep Zoom slide"),
        ("plain.dzi", "not marked as painted by wsigen"),
    ):
        with pytest.raises(SlideError, match=message) as refused:
            export_slide(tmp_path / name, tmp_path / "out.svs")
        assert "\n" not in str(refused.value)
    source = written(tmp_path, "dzi")
    tile = tmp_path / "slide_files" / "11" / "2_1.jpg"
    tile.write_bytes(tile.read_bytes()[:500])
    with pytest.raises(SlideError, match=r"2_1\.jpg: a tile is missing or damaged"):
        export_slide(source, tmp_path / "out.svs")
    shutil.rmtree(tmp_path / "slide_files" / "11")
    with pytest.raises(SlideError, match="missing or damaged"):
        export_slide(source, tmp_path / "out.svs")
    assert not (tmp_path / "out.svs").exists()


def test_a_slide_of_a_patient_is_not_exported_as_synthetic(tmp_path: Path) -> None:
    image = pyvips.Image.new_from_array(PICTURE)
    image.tiffsave(str(tmp_path / "real.tiff"), tile=True, pyramid=True, compression="jpeg", xres=2000, yres=2000)
    with pytest.raises(SlideError, match="not marked as painted by wsigen"):
        export_slide(tmp_path / "real.tiff", tmp_path / "out.ome.tiff")


def test_formats_follow_from_names_and_must_fit_them(tmp_path: Path) -> None:
    assert format_of(Path("a.ome.tiff")).name == "ome.tiff" and format_of(Path("a.tiff")).name == "tiff"
    assert format_of(Path("folder"), "dicom").name == "dicom"
    for path, name in (
        ("a.svs", "tiff"),
        ("a.tiff", "ome.tiff"),
        ("a.ome.tiff", "tiff"),
        ("a.jpg", None),
        ("a", "svs"),
    ):
        with pytest.raises(SlideError, match=r"written as|ending"):
            format_of(Path(path), name)
    (tmp_path / "slide.ome.zarr").mkdir()
    (tmp_path / "slide.ome.zarr" / "mine.txt").write_text("mine")
    with pytest.raises(SlideError, match="something else"):
        written(tmp_path, "ome.zarr", overwrite=True)
    assert (tmp_path / "slide.ome.zarr" / "mine.txt").read_text() == "mine"


def test_an_interrupted_slide_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(rows: int) -> None:
        if rows > 500:
            raise KeyboardInterrupt

    for name in ("tiff", "ome.tiff", "dzi", "ome.zarr"):
        with pytest.raises(KeyboardInterrupt):
            written(tmp_path, name, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_json_of_zarr_is_plain(tmp_path: Path) -> None:
    """What readers in other languages see."""
    path = written(tmp_path, "ome.zarr")
    assert json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["version"] == "0.5"
