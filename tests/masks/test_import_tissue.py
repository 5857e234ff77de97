"""The tissue plane of an import: outlines, label images at any scale, classes of the source, masks of our own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from wsigen.errors import MaskError
from wsigen.masks.exporters import export_mask
from wsigen.masks.importers import ImportReport, ImportSettings, import_mask
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask
from wsigen.models.config import LIZARD_CLASSES

CLASSES = LIZARD_CLASSES.names
WIDTH, HEIGHT = 700, 1100  # more than a band of rows
IDS = np.zeros((HEIGHT, WIDTH), np.uint16)
IDS[40:50, 30:44], IDS[600:612, 650:660] = 1, 500


def imported(source: Path, **changes: Any) -> tuple[ImportReport, MaskWindow]:
    out = source.parent / "out.tif"
    report = import_mask(source, out, ImportSettings(**({"classes": CLASSES} | changes)), overwrite=True)
    assert report.accounted == report.found
    with SlideMask.open(out, 6) as mask:
        return report, mask.read(0, 0, mask.width, mask.height)


def write_outlines(path: Path, boxes: list[tuple[int, int, int, int]], kind: str, name: str) -> Path:
    features = []
    for x, y, w, h in boxes:
        ring = [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]
        properties = {"objectType": kind, "classification": {"name": name, "color": [1, 2, 3]}}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


@pytest.fixture
def nuclei(tmp_path: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The same two nuclei as outlines, and as ids with a table."""
    outlines = write_outlines(
        tmp_path / "cells.geojson", [(30, 40, 14, 10), (650, 600, 10, 12)], "detection", "lymphocyte"
    )
    tifffile.imwrite(tmp_path / "ids.tif", IDS)
    (tmp_path / "table.csv").write_text("id,class\n1,lymphocyte\n500,lymphocyte\n")
    size = {"size": (WIDTH, HEIGHT)}
    return {"outlines": (outlines, size), "labels": (tmp_path / "ids.tif", size | {"table": tmp_path / "table.csv"})}


@pytest.mark.parametrize("kind", ["outlines", "labels"])
@pytest.mark.parametrize("scale", [1, 7])
@pytest.mark.parametrize("value", [1, 255])
def test_a_tissue_label_image_at_any_scale(
    kind: str, scale: int, value: int, nuclei: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    small = np.zeros((-(-HEIGHT // scale), -(-WIDTH // scale)), np.uint8)
    small[len(small) // 4 : len(small) // 2, small.shape[1] // 5 :] = value
    tifffile.imwrite(tmp_path / "tissue.tif", small)
    source, given = nuclei[kind]
    report, window = imported(source, tissue=tmp_path / "tissue.tif", **given)
    assert report.nuclei == 2 and window.tissue is not None
    y, x = ((2 * np.arange(n) + 1) * s // (2 * n) for n, s in zip((HEIGHT, WIDTH), small.shape))
    expected = (small[y][:, x] > 0) | (IDS > 0)
    assert np.array_equal(window.tissue, expected)


@pytest.mark.parametrize("kind", ["outlines", "labels"])
def test_tissue_outlines_go_with_outlines_and_with_label_images(
    kind: str, nuclei: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    tissue = write_outlines(tmp_path / "tissue.geojson", [(10, 500, 600, 200)], "annotation", "Tissue")
    source, given = nuclei[kind]
    _, window = imported(source, tissue=tissue, **given)
    expected = IDS > 0
    expected[500:700, 10:610] = True
    assert window.tissue is not None and np.array_equal(window.tissue, expected)


def test_outlines_are_shrunk_onto_a_smaller_copy_of_the_slide(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "ids.tif", IDS)
    (tmp_path / "table.csv").write_text("id,class\n1,lymphocyte\n500,lymphocyte\n")
    tissue = write_outlines(tmp_path / "tissue.geojson", [(400, 800, 800, 400)], "annotation", "Tissue")
    _, window = imported(
        tmp_path / "ids.tif", tissue=tissue, table=tmp_path / "table.csv", size=(4 * WIDTH, 4 * HEIGHT), mpp=0.25
    )
    expected = IDS > 0
    expected[200:300, 100:300] = True
    assert window.tissue is not None and np.array_equal(window.tissue, expected)


def test_classes_of_a_label_image_can_be_regions(tmp_path: Path) -> None:
    classes = np.zeros((HEIGHT, WIDTH), np.uint8)
    classes[30:700, 20:500] = 7
    classes[40:50, 30:44] = 3
    tifffile.imwrite(tmp_path / "classes.tif", classes)
    report, window = imported(tmp_path / "classes.tif", class_maps=["lizard", "7=tissue"])
    assert report.regions == 1 and report.nuclei == 1 and report.imported[2] == ("lymphocyte", 1)
    assert window.tissue is not None and np.array_equal(window.tissue, classes > 0)
    assert np.array_equal(window.classes, np.where(classes == 3, 3, 0))
    with pytest.raises(MaskError, match="map a class to tissue"):
        imported(tmp_path / "classes.tif", tissue=tmp_path / "classes.tif")


def test_tissue_may_be_one_bit_a_pixel(nuclei: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path) -> None:
    tissue = np.zeros((HEIGHT, WIDTH), bool)
    tissue[300:900, 7:650] = True
    tifffile.imwrite(tmp_path / "tissue.tif", tissue, rowsperstrip=33)
    source, given = nuclei["labels"]
    _, window = imported(source, tissue=tmp_path / "tissue.tif", **given)
    assert window.tissue is not None and np.array_equal(window.tissue, tissue | (IDS > 0))


def test_only_the_mapped_values_of_a_region_image_are_tissue(
    nuclei: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    regions = np.zeros((HEIGHT // 2, WIDTH // 2), np.uint8)
    regions[100:200], regions[300:400] = 1, 9
    tifffile.imwrite(tmp_path / "regions.tif", regions)
    source, given = nuclei["outlines"]
    _, window = imported(source, tissue=tmp_path / "regions.tif", class_maps=["9=tissue"], **given)
    assert window.tissue is not None
    assert np.array_equal(window.tissue, (regions == 9).repeat(2, 0).repeat(2, 1) | (IDS > 0))


@pytest.mark.parametrize("own", ["mask.tif", "mask.ome.zarr"])
def test_the_tissue_plane_of_our_own_files_is_taken(own: str, tmp_path: Path) -> None:
    tissue = np.zeros((HEIGHT, WIDTH), np.uint8)
    tissue[100:300, 50:] = 1
    tissue[800:] = 255
    tissue[IDS > 0] = 1
    classes = (3 * (IDS > 0)).astype(np.uint8)
    window = MaskWindow(classes, IDS.astype(np.uint32), tissue)
    write_slide_mask(tmp_path / "mask.tif", WIDTH, HEIGHT, 0.5, [window], instances=True, tissue=True)
    if own != "mask.tif":
        export_mask(tmp_path / "mask.tif", tmp_path / own, LIZARD_CLASSES)
    source = tmp_path / own
    _, again = imported(source, tissue=source, class_maps=["lizard"])
    assert again.tissue is not None and np.array_equal(again.tissue, tissue)
    assert np.array_equal(again.classes, classes)


def test_tissue_that_cannot_be_is_refused_in_a_line(
    nuclei: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    source, given = nuclei["labels"]
    tifffile.imwrite(tmp_path / "empty.tif", np.zeros((HEIGHT, WIDTH), np.uint8))
    tifffile.imwrite(tmp_path / "wide.tif", np.ones((HEIGHT, 2 * WIDTH), np.uint8))
    for name, message in (
        ("empty.tif", "holds no tissue"),
        ("wide.tif", "another shape"),
        ("none.tif", "no such file"),
    ):
        for file, changes in nuclei.values():
            with pytest.raises(MaskError, match=message):
                imported(file, tissue=tmp_path / name, **changes)
    with pytest.raises(MaskError, match="has no tissue plane"):
        imported(source, tissue=source, **given)
    assert not (tmp_path / "out.tif").exists()
