"""Label images, tables and scales as users have reported them."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from commands import run
from PIL import Image

from wsigen.errors import MaskError, SettingsError
from wsigen.masks.importers import ImportReport, ImportSettings, import_mask
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow
from wsigen.models.config import LIZARD_CLASSES

CLASSES = LIZARD_CLASSES.names
LABELS = np.zeros((80, 100), np.uint8)
LABELS[10:20, 10:20], LABELS[10:20, 40:50], LABELS[50:60, 70:80] = 1, 2, 3


def imported(source: Path, **changes: Any) -> tuple[ImportReport, MaskWindow]:
    out = source.with_name("mask.tif")
    report = import_mask(source, out, ImportSettings(**({"classes": CLASSES} | changes)), overwrite=True)
    assert report.accounted == report.found
    with SlideMask.open(out, 6) as mask:
        assert mask.mpp == (report.mpp if report.mpp is None else pytest.approx(report.mpp))
        return report, mask.read(0, 0, mask.width, mask.height)


# --- scale ------------------------------------------------------------------------------------------------------------


def write_ome(path: Path, unit: str = "µm", size: float = 0.25, **tags: Any) -> None:
    sides = {f"PhysicalSize{axis}{end}": value for axis in "XY" for end, value in (("", size), ("Unit", unit))}
    tifffile.imwrite(path, LABELS.astype(np.uint16), ome=True, metadata={"axes": "YX", **sides}, **tags)


def test_ome_xml_gives_the_scale_whatever_the_tags_say(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.ome.tif")
    write_ome(tmp_path / "b.ome.tif", "nm", 250, resolution=(72, 72), resolutionunit="INCH")
    write_ome(tmp_path / "c.ome.tif", resolution=(10_000, 10_000), resolutionunit="CENTIMETER")
    for source in sorted(tmp_path.glob("*.ome.tif")):
        assert imported(source, class_maps=["unclassified=epithelial"])[0].mpp == 0.25
        code, text = run("mask", "info", source.with_name("mask.tif"))
        assert code == 0 and "0.25 um/px" in text


@pytest.mark.parametrize("unit", ["um", "micron", "\\u00B5m", "nm"])
def test_imagej_gives_the_scale_in_its_own_unit(unit: str, tmp_path: Path) -> None:
    per_unit = 0.004 if unit == "nm" else 4.0
    source = tmp_path / "a.tif"
    tifffile.imwrite(
        source, LABELS.astype(np.uint16), imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit}
    )
    assert imported(source, class_maps=["unclassified=epithelial"])[0].mpp == pytest.approx(0.25)


@pytest.mark.parametrize("unit", ["NONE", "INCH"])
def test_a_resolution_without_a_unit_or_of_a_printer_is_no_scale(unit: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", LABELS, resolution=(72, 72), resolutionunit=unit)
    report, _ = imported(tmp_path / "a.tif")
    assert report.mpp is None and "no scale stored" in report.describe()[0]


def test_a_slide_with_a_printers_resolution_gives_no_scale(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "slide.tif", np.zeros((80, 100, 3), np.uint8), tile=(32, 32), photometric="rgb",
        resolution=(72, 72), resolutionunit="INCH",
    )  # fmt: skip
    ring = [[10, 10], [20, 10], [20, 20]]
    cell = {"geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {"classification": "Plasma"}}
    (tmp_path / "c.geojson").write_text(json.dumps([cell]))
    code, text = run(
        "mask", "import", tmp_path / "c.geojson", "--like", tmp_path / "slide.tif", "-o", tmp_path / "m.tif"
    )
    assert code == 0 and "100 x 80 px, no scale stored" in text
    code, text = run("info", tmp_path / "slide.tif")
    assert code == 0 and "scale: unknown" in text


def test_a_scale_that_no_slide_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"mpp 352\.8: no slide"):
        ImportSettings(CLASSES, mpp=352.8)
    tifffile.imwrite(tmp_path / "a.tif", LABELS)
    code, text = run("mask", "import", tmp_path / "a.tif", "--mpp", "352.8", "-o", tmp_path / "m.tif")
    assert code == 2 and "0.01 to 50" in text and not (tmp_path / "m.tif").exists()


def write_zarr(path: Path, scale: list[float], of_all: list[float] | None = None, unit: str = "micrometer") -> Path:
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    group.create_array("0", data=LABELS.astype(np.uint16), chunks=(32, 32))
    axes = [{"name": axis, "type": "space", "unit": unit} for axis in "yx"]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    multiscale: dict[str, Any] = {"version": "0.4", "axes": axes, "datasets": [level]}
    if of_all is not None:
        multiscale["coordinateTransformations"] = [{"type": "scale", "scale": of_all}]
    group.attrs["multiscales"] = [multiscale]
    group.attrs["image-label"] = {"properties": [{"label-value": i, "class": CLASSES[i]} for i in (1, 2, 3)]}
    return path


def test_the_scale_of_a_level_is_multiplied_by_that_of_all_levels(tmp_path: Path) -> None:
    assert imported(write_zarr(tmp_path / "a.zarr", [1, 1], [0.5, 0.5]))[0].mpp == 0.5
    assert imported(write_zarr(tmp_path / "b.zarr", [2, 2], [0.25, 0.25]))[0].mpp == 0.5
    assert imported(write_zarr(tmp_path / "c.zarr", [500, 500], unit="nanometer"))[0].mpp == 0.5
    assert imported(write_zarr(tmp_path / "d.zarr", [500, 500]))[0].mpp is None


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", LABELS, resolution=(40_000, 20_000), resolutionunit="CENTIMETER")
    for source in (write_zarr(tmp_path / "a.zarr", [0.5, 0.25]), tmp_path / "a.tif"):
        before = sorted(tmp_path.iterdir())
        code, text = run("mask", "import", source, "-o", tmp_path / "m.tif")
        assert code == 2 and "0.25 x 0.5 um (width x height)" in text and sorted(tmp_path.iterdir()) == before


# --- pixels -----------------------------------------------------------------------------------------------------------


def test_indices_of_a_palette_are_the_labels(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 65536, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", LABELS, photometric="palette", colormap=colours)
    picture = Image.fromarray(LABELS, "P")
    picture.putpalette((colours >> 8).astype(np.uint8).T.tobytes())
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.png", bits=4, transparency=0)
    for name in ("a.tif", "a.png", "b.png"):
        report, window = imported(tmp_path / name, class_maps=["lizard"])
        assert report.nuclei == 3 and np.array_equal(window.classes, LABELS)


def write_grey_png(path: Path, bits: int) -> None:
    """A PNG of fewer than 8 bits, as optimisers make them."""
    packed = np.zeros((LABELS.shape[0], LABELS.shape[1] * bits // 8), np.uint8)
    for at in range(8 // bits):
        packed |= LABELS[:, at :: 8 // bits] << (8 - bits * (at + 1))
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", LABELS.shape[1], LABELS.shape[0], bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    whole = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(whole))


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_values_of_few_bits_are_the_labels(bits: int, tmp_path: Path) -> None:
    write_grey_png(tmp_path / "a.png", bits)
    assert np.array_equal(imported(tmp_path / "a.png", class_maps=["lizard"])[1].classes, LABELS)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int32", "int16", "uint32", "<u2", ">i8"])
@pytest.mark.parametrize("tiled", [False, True])
def test_ids_may_be_whole_numbers_of_any_kind(dtype: str, tiled: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tile": (32, 32), "compression": "zlib"} if tiled else {}
    order = ">" if dtype.startswith(">") else "<"
    tifffile.imwrite(tmp_path / "a.tif", LABELS.astype(dtype), byteorder=order, **options)
    report, window = imported(tmp_path / "a.tif", class_maps=["unclassified=epithelial"])
    assert report.nuclei == 3 and window.instances is not None and np.array_equal(window.instances, LABELS)


@pytest.mark.parametrize(("value", "words"), [(-5, "-5"), (2**40, str(2**40)), (0.5, "float")])
def test_labels_that_are_no_ids_are_refused(value: float, words: str, tmp_path: Path) -> None:
    labels = LABELS.astype(np.float32 if isinstance(value, float) else np.int64)
    labels[0, 0] = value
    tifffile.imwrite(tmp_path / "a.tif", labels)
    with pytest.raises(MaskError, match=words):
        imported(tmp_path / "a.tif", class_maps=["unclassified=epithelial"])


def test_of_several_channels_one_is_chosen(tmp_path: Path) -> None:
    stack = np.stack([LABELS, LABELS // 2, LABELS])
    names = {"axes": "CYX", "Channel": {"Name": ["Nuclei", "Cells", "Membranes"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, ome=True, metadata=names)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", metadata=None)
    for name, listed in (("a.ome.tif", "nuclei, cells, membranes"), ("a.tif", "1, 2, 3")):
        source = tmp_path / name
        code, text = run("mask", "import", source, "-o", tmp_path / "m.tif", "--class-map", "lizard")
        assert code == 2 and f"has 3 channels ({listed})" in text and "--image" in text
        for image in ("2", *(["Cells"] if name == "a.ome.tif" else [])):
            _, window = imported(source, class_maps=["lizard"], image=image)
            assert np.array_equal(window.classes, LABELS // 2)
        with pytest.raises(MaskError, match="no channel 'red'"):
            imported(source, image="red")


@pytest.mark.parametrize(
    ("labels", "maps", "reason"),
    [
        (LABELS * 0, [], "all pixels are 0"),
        (LABELS, ["1=skip", "2=skip", "3=skip"], "left out by class: 1 1, 2 1, 3 1"),
    ],
)
def test_a_label_image_without_nuclei_is_refused(
    labels: np.ndarray, maps: list[str], reason: str, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", labels)
    arguments = ["mask", "import", tmp_path / "a.tif", "-o", tmp_path / "m.tif"]
    arguments += [part for entry in maps for part in ("--class-map", entry)]
    code, text = run(*arguments)
    assert code == 2 and reason in text and not (tmp_path / "m.tif").exists()
    code, text = run(*arguments, "--allow-empty")
    assert code == 0 and "nuclei: none" in text


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("label,class\n1,Epithelial\n2\n", "row 3 has 1 of 2 columns"),
        ("1,Epithelial\n2\n", "row 2 has 1 of 2 columns"),
        ("", "its columns are"),
        ('{"class_id": "x", "labels": 3}', "no table"),
        ("[1, 2]", "no table"),
        ("[[1, 2]]", "no table"),
        ("label,class\nx,Epithelial\n", "'x'"),
    ],
)
def test_a_table_with_a_fault_is_one_line(table: str, words: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", LABELS.astype(np.uint16))
    (tmp_path / "t.csv").write_text(table)
    code, text = run("mask", "import", tmp_path / "a.tif", "--table", tmp_path / "t.csv", "-o", tmp_path / "m.tif")
    assert code == 2 and words in text and "t.csv" in text and len(text.splitlines()) == 1


@pytest.mark.parametrize(
    "table", ["id,class\n1,\n2, \n3,plasma\n", '{"1": null, "2": NaN, "3": "plasma"}', '{"1": "", "2": " ", "3": 4}']
)
def test_an_empty_class_of_a_table_is_no_class(table: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", LABELS.astype(np.uint16))
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(MaskError, match="without a counterpart: unclassified 2;"):
        imported(tmp_path / "a.tif", table=tmp_path / "t.csv", class_maps=["4=plasma"])
    report, _ = imported(
        tmp_path / "a.tif", table=tmp_path / "t.csv", class_maps=["4=plasma", "unclassified=epithelial"]
    )
    assert dict(report.imported)["plasma"] == 1 and dict(report.imported)["epithelial"] == 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_table_may_begin_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", LABELS.astype(np.uint16))
    for name, text in (("a.csv", "id;class\r\n1;plasma\r\n2;plasma\r\n3;plasma\r\n"), ("b.json", '{"1": "plasma"}')):
        (tmp_path / name).write_bytes(text.encode(encoding))
        report, _ = imported(tmp_path / "a.tif", table=tmp_path / name, skip_unknown=True)
        assert dict(report.imported)["plasma"] == (3 if name == "a.csv" else 1)


# --- where it is written ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that nobody can write to")
@pytest.mark.parametrize(
    "command",
    [
        ("mask", "import", "{labels}", "-o", "/proc/m.tif"),
        ("mask", "import", "{cells}", "-o", "/proc/m.tif"),
        ("mask", "export", "{labels}", "-o", "/proc/m.geojson"),
        ("mask", "export", "{labels}", "-o", "/proc/m.db"),
        ("mask", "export", "{labels}", "-o", "/proc/m.ome.zarr"),
        ("mask", "demo", "--size", "64", "-o", "/proc/m.tif"),
        ("mask", "sample", "--layout", "mixed", "--size", "256", "-o", "/proc/m.tif"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", LABELS)
    ring = [[10, 10], [20, 10], [20, 20]]
    cell = {"geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {"classification": "Plasma"}}
    (tmp_path / "c.geojson").write_text(json.dumps([cell]))
    names = {"labels": tmp_path / "a.tif", "cells": tmp_path / "c.geojson"}
    code, text = run(*(part.format(**names) for part in command))
    assert code == 2 and text.splitlines()[-1].startswith("wsigen: /proc/m") and len(text.splitlines()) == 1


def test_a_folder_is_no_mask_to_write(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", LABELS)
    (tmp_path / "m.tif").mkdir()
    for command in (("mask", "import", tmp_path / "a.tif"), ("mask", "demo", "--size", "64")):
        code, text = run(*command, "-o", tmp_path / "m.tif", "--overwrite")
        assert code == 2 and "is a folder" in text and (tmp_path / "m.tif").is_dir()
