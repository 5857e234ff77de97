"""Outlines of other tools become the mask's nuclei: each format written as its tool's own source writes it."""

import gzip
import json
import sqlite3
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from pycocotools import mask as coco_mask

from wsigen.errors import MaskError
from wsigen.masks.importers import ImportReport, ImportSettings, import_mask
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow

CLASSES = ("neutrophil", "epithelial", "lymphocyte", "plasma", "eosinophil", "connective")


def settings(**changes: Any) -> ImportSettings:
    return ImportSettings(**({"classes": CLASSES, "size": (100, 80), "mpp": 0.5} | changes))


def imported(source: Path, **changes: Any) -> tuple[ImportReport, MaskWindow]:
    out = source.parent / "mask.tif"
    report = import_mask(source, out, settings(**changes), overwrite=True)
    assert report.accounted == report.found
    with SlideMask.open(out, 6) as mask:
        assert mask.mpp == report.mpp
        return report, mask.read(0, 0, mask.width, mask.height)


def box(x: float, y: float, side: float = 6) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(geometry: dict[str, Any], name: Any = "Epithelial", kind: str = "detection", **more: Any) -> dict[str, Any]:
    classification = {"name": name, "color": [200, 0, 0]} if isinstance(name, str) else name
    properties = {"objectType": kind, "classification": classification, "measurements": {"Area": 3.5, "Ki67": None}}
    return {"type": "Feature", "id": "a", "geometry": geometry, "properties": properties, **more}


def polygon(*rings: list[list[float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def write_json(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


# --- GeoJSON ----------------------------------------------------------------------------------------------------------


def test_a_pixel_belongs_to_a_nucleus_if_its_centre_does(tmp_path: Path) -> None:
    source = write_json(
        tmp_path / "c.json", [feature(polygon(box(10, 20))), feature(polygon(box(16, 20)), "Lymphocyte")]
    )
    report, window = imported(source)
    assert report.nuclei == 2
    assert window.instances is not None
    assert (window.classes[20:26, 10:16] == 2).all() and (window.classes[20:26, 16:22] == 3).all()
    assert np.count_nonzero(window.classes) == 72  # they touch, and neither has eaten of the other
    assert len(np.unique(window.instances)) == 3


def test_every_form_of_a_class_is_understood(tmp_path: Path) -> None:
    forms: list[Any] = [
        "Epithelial",
        {"name": "Epithelial", "colorRGB": -3670016},
        {"names": ["Epithelial", "Ki-67: Positive"], "color": [1, 2, 3]},
    ]
    features = [feature(polygon(box(10 * i, 10)), form) for i, form in enumerate(forms)]
    features.append(feature(polygon(box(10 * len(forms), 10))))
    features[-1]["properties"]["classification"] = "Epithelial"
    report, _ = imported(write_json(tmp_path / "c.geojson", {"type": "FeatureCollection", "features": features}))
    assert dict(report.imported)["epithelial"] == 4


def test_the_nucleus_of_a_cell_counts_and_holes_stay_open(tmp_path: Path) -> None:
    cell = feature(polygon(box(10, 10, 20)), kind="cell", nucleusGeometry=polygon(box(15, 15, 10), box(18, 18, 4)))
    _, window = imported(write_json(tmp_path / "c.json", [cell]))
    assert np.count_nonzero(window.classes) == 100 - 16
    assert window.classes[19, 19] == 0 and window.classes[16, 16] == 2


def test_packed_files_are_read(tmp_path: Path) -> None:
    text = json.dumps({"type": "FeatureCollection", "features": [feature(polygon(box(3, 3)))]}).encode()
    (tmp_path / "a.geojson.gz").write_bytes(gzip.compress(text))
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cells.geojson", text)
    for name in ("a.geojson.gz", "b.zip"):
        assert imported(tmp_path / name)[0].nuclei == 1


def test_every_object_is_accounted_for(tmp_path: Path) -> None:
    bow_tie = [[40, 40], [50, 50], [50, 40], [40, 50], [40, 40]]
    features = [
        feature(polygon(box(-3, 5))),  # clipped
        feature(polygon(box(500, 5))),  # outside
        feature(polygon(bow_tie)),  # repaired
        feature(polygon([[1, 1], [2, 2], [1, 1]])),  # no area
        feature(polygon([[60, 60], [1e300, 2], [1, 9]])),
        feature(polygon(box(70.6, 70.6, 0.2))),  # holds no pixel centre
        feature({"type": "Point", "coordinates": [3, 4]}),
        feature({"type": "LineString", "coordinates": [[3, 4], [5, 6]]}),
        feature(polygon(box(30, 5)), "Mystery"),
        feature(polygon(box(60, 20, 10))),
        feature(polygon(box(62, 22, 2))),  # inside another: drawn on top of it
        {"type": "Feature", "geometry": None, "properties": {}},
        17,
    ]
    source = write_json(tmp_path / "c.json", features)
    report, window = imported(source, skip_unknown=True)
    assert report.found == 13 and report.nuclei == 4
    assert (report.clipped, report.repaired, report.outside, report.hidden) == (1, 1, 1, 1)
    assert (report.not_polygons, report.invalid, dict(report.skipped)) == (2, 4, {"Mystery": 1})
    assert window.classes[5:11, 0:3].all() and np.count_nonzero(window.classes[40:50, 40:50]) in range(40, 61)
    assert window.instances is not None and len(np.unique(window.instances[20:30, 60:70])) == 2
    assert "4 of 13 objects" in report.describe()[-1] and "Mystery 1" in report.describe()[-1]


def test_unknown_classes_are_listed_with_counts_and_nothing_is_written(tmp_path: Path) -> None:
    features = [feature(polygon(box(5 * i, 9)), "Tumor" if i else "Stroma") for i in range(3)]
    source = write_json(tmp_path / "c.json", features)
    with pytest.raises(MaskError, match=r"Tumor 2, Stroma 1") as caught:
        import_mask(source, tmp_path / "mask.tif", settings())
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == [source]
    (tmp_path / "map.toml").write_text('"tumor" = "epithelial"\nStroma = "skip"\n')
    report, _ = imported(source, class_maps=[str(tmp_path / "map.toml")])
    assert report.nuclei == 2 and report.skipped == {"Stroma": 1}
    report, window = imported(source, class_maps=["Tumor=epithelial", "Stroma=6"])
    assert report.nuclei == 3 and window.classes[10, 1] == 6


def test_annotations_beside_nuclei_are_regions_and_can_be_tissue(tmp_path: Path) -> None:
    features = [feature(polygon(box(0, 0, 60)), "Tumor", "annotation"), feature(polygon(box(20, 20)))]
    source = write_json(tmp_path / "c.json", features)
    report, window = imported(source)
    assert report.nuclei == 1 and window.tissue is None and report.skipped == {"Tumor": 1}
    report, window = imported(source, tissue=source)
    assert window.tissue is not None and report.regions == 1
    assert (window.tissue[:60, :60] == 1).all() and window.tissue.sum() == 3600
    other = write_json(tmp_path / "tissue.json", [feature(polygon(box(0, 0, 40)), "any", "annotation")])
    _, window = imported(source, tissue=other)
    assert window.tissue is not None and window.tissue.sum() == 1600


def test_one_multipolygon_for_each_class_is_many_nuclei(tmp_path: Path) -> None:
    shape = {"type": "MultiPolygon", "coordinates": [[box(10 * i, 10)] for i in range(5)]}
    report, _ = imported(write_json(tmp_path / "cells.geojson", [feature(shape, "Lymphocyte", "annotation")]))
    assert dict(report.imported)["lymphocyte"] == 5
    report, _ = imported(write_json(tmp_path / "one.geojson", [feature(shape, "Lymphocyte", "detection")]))
    assert dict(report.imported)["lymphocyte"] == 1  # one nucleus in pieces


def test_the_size_is_as_far_as_objects_reach_unless_it_is_said(tmp_path: Path) -> None:
    source = write_json(tmp_path / "c.json", [feature(polygon(box(40.5, 10)))])
    report, _ = imported(source, size=None, mpp=None)
    assert (report.width, report.height, report.mpp) == (47, 16, None)


# --- HoVer-Net and CellViT --------------------------------------------------------------------------------------------

DISC = np.hypot(*(np.mgrid[:21, :21] - 10)) < 7


def disc_contour() -> list[list[int]]:
    """The disc's border pixels in order, as OpenCV's findContours gives them: centres, each once."""
    inner = DISC & np.roll(DISC, 1, 0) & np.roll(DISC, -1, 0) & np.roll(DISC, 1, 1) & np.roll(DISC, -1, 1)
    rows, columns = np.nonzero(DISC & ~inner)
    order = np.argsort(np.arctan2(rows - 10, columns - 10))
    return np.stack([columns, rows], 1)[order].tolist()


def nucleus(kind: int = 1) -> dict[str, Any]:
    contour = disc_contour()
    return {"bbox": [[3, 3], [18, 18]], "centroid": [10.0, 10.0], "contour": contour, "type_prob": 0.9, "type": kind}


def test_contours_through_pixel_centres_keep_their_border_pixels(tmp_path: Path) -> None:
    source = write_json(tmp_path / "h.json", {"mag": 20, "nuc": {"1": nucleus()}})
    report, window = imported(source, class_maps=["pannuke"])
    assert report.format == "HoVer-Net JSON" and report.nuclei == 1
    assert np.array_equal(window.classes[:21, :21] > 0, DISC)


def test_hovernet_coordinates_are_scaled_by_their_magnification(tmp_path: Path) -> None:
    source = write_json(tmp_path / "h.json", {"mag": 40, "nuc": {"1": nucleus(3)}})
    _, window = imported(source, class_maps=["pannuke"], mpp=0.5)
    assert abs(np.count_nonzero(window.classes == 6) - DISC.sum() / 4) < 12
    report, window = imported(source, class_maps=["pannuke"], size=None, mpp=None)
    assert report.mpp == 0.25 and np.count_nonzero(window.classes) == DISC.sum()


def test_cellvit_cells_have_the_names_of_its_type_map(tmp_path: Path) -> None:
    cells = {
        "wsi_metadata": {"base_mpp": 0.25},
        "type_map": {"1": "Neoplastic", "2": "Inflammatory", "4": "Dead"},
        "cells": [nucleus(2) | {"cell_status": 1, "offset_global": [0, 0]}, nucleus(4)],
    }
    report, _ = imported(write_json(tmp_path / "cells.json", cells), class_maps=["cellvit"], mpp=0.25)
    assert report.format == "CellViT JSON"
    assert dict(report.imported)["lymphocyte"] == 1 and report.skipped == {"Dead": 1}


# --- COCO -------------------------------------------------------------------------------------------------------------


def coco(*annotations: dict[str, Any], images: int = 1) -> dict[str, Any]:
    return {
        "annotations": [{"id": i, "image_id": 1, "category_id": 7} | a for i, a in enumerate(annotations)],
        "images": [{"id": i + 1, "file_name": f"{i}.png", "width": 90, "height": 70} for i in range(images)],
        "categories": [{"id": 7, "name": "Plasma"}],
    }


def test_coco_polygons_and_both_forms_of_run_length_codes(tmp_path: Path) -> None:
    bitmap = np.zeros((70, 90), np.uint8)
    bitmap[20:50, 30:60] = 1
    bitmap[30:35, 40:45] = 0
    bitmap[0:70, 70:72] = 1  # runs over whole columns
    packed = coco_mask.encode(np.asfortranarray(bitmap))
    runs = [0, *np.diff(np.nonzero(np.diff(bitmap.T.ravel(), prepend=0, append=0))[0], prepend=0).tolist()]
    runs = runs[1:] if bitmap[0, 0] == 0 else runs
    for counts in (packed["counts"].decode(), runs):
        source = write_json(tmp_path / "c.json", coco({"segmentation": {"size": [70, 90], "counts": counts}}))
        report, window = imported(source, size=None)
        assert (report.width, report.height) == (90, 70) and dict(report.imported)["plasma"] == 1
        assert np.array_equal(window.classes == 4, bitmap == 1)
    source = write_json(tmp_path / "c.json", coco({"segmentation": [[3, 4, 9, 4, 9, 8, 3, 8]]}))
    assert np.count_nonzero(imported(source, size=None)[1].classes) == 24


def test_one_of_several_coco_pictures_must_be_chosen(tmp_path: Path) -> None:
    square = {"segmentation": [[3, 4, 9, 4, 9, 8, 3, 8]]}
    source = write_json(tmp_path / "c.json", coco(square, square | {"image_id": 2}, images=2))
    with pytest.raises(MaskError, match="--image"):
        imported(source)
    assert imported(source, image="1.png")[0].found == 1


# --- TIAToolbox, ImageScope -------------------------------------------------------------------------------------------


def write_store(path: Path, compression: str | None) -> Path:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE metadata(key TEXT UNIQUE, value TEXT)")
    connection.execute("INSERT INTO metadata VALUES('compression', ?)", [json.dumps(compression)])
    connection.execute(
        "CREATE TABLE annotations(id INTEGER PRIMARY KEY, key TEXT UNIQUE, objtype TEXT, cx INTEGER NOT NULL, "
        "cy INTEGER NOT NULL, geometry BLOB, properties TEXT, area INTEGER NOT NULL)"
    )
    holed = shapely.Polygon(box(10, 10, 10), [box(13, 13, 4)])
    for index, (shape, properties) in enumerate(
        [(holed, {"type": "Eosinophil"}), (shapely.box(40, 40, 46, 46), {"type": 3}), (None, {"type": 3})]
    ):
        blob = None if shape is None else shape.wkb
        if blob is not None and compression:
            blob = zlib.compress(blob, 9)
        row = (str(index), "Polygon", 15, 15, blob, json.dumps(properties), 84)
        connection.execute("INSERT INTO annotations VALUES(NULL, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.commit()
    connection.close()
    return path


@pytest.mark.parametrize("compression", ["zlib", None])
def test_an_annotation_store(compression: str | None, tmp_path: Path) -> None:
    report, window = imported(write_store(tmp_path / "a.db", compression), class_maps=["lizard"])
    assert report.nuclei == 2 and report.not_polygons == 1
    assert np.count_nonzero(window.classes == 5) == 84 and np.count_nonzero(window.classes == 3) == 36


IMAGESCOPE = """<?xml version="1.0" encoding="UTF-8"?>
<Annotations MicronsPerPixel="0.252"><Annotation Id="1" Name="{name}"><Attributes/><Regions>
<Region Id="1" Type="0" Text="" NegativeROA="0"><Vertices>
<Vertex X="10.0" Y="10.0" Z="0"/><Vertex X="20.0" Y="10.0" Z="0"/><Vertex X="20" Y="22"/><Vertex X="10" Y="22"/>
</Vertices></Region></Regions></Annotation></Annotations>"""


def test_imagescope_regions(tmp_path: Path) -> None:
    source = tmp_path / "m.xml"
    source.write_text(IMAGESCOPE.format(name="Neutrophil"))
    report, window = imported(source, mpp=None)
    assert report.mpp == 0.252 and np.count_nonzero(window.classes == 1) == 120
    source.write_text(IMAGESCOPE.format(name=""))  # MoNuSeg has no classes
    with pytest.raises(MaskError, match="unclassified 1"):
        imported(source)
    assert imported(source, class_maps=["unclassified=epithelial"])[0].nuclei == 1


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x04\x95\x0b\x00\x00", "pickled"),
        (b"\x89HDF\r\n\x1a\n....", "-v7"),
        (b"\x93NUMPY\x01\x00", "data prepare"),
        (b"", "empty"),
        (b"MZ\x90\x00", "none of the known formats"),
        (b'{"a": 1}', "keys a"),
        (b'{"type": "FeatureCollection", "features": [{"type": "Feat', "copy or export it again"),
        (
            b'[{"geometry": {"coordinates": [[[1, "x"]]]}, "properties": {"classification": "Plasma"}}]',
            "gives no nuclei (1 invalid",
        ),
        (b'[{"geometry": {"coordinates": ' + b"[" * 500, "nested"),
        (b"SQLite format 3\x00" + b"x" * 100, "cannot be read"),
        (b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><Annotations>&c;</Annotations>', "unsafe"),
        (b"<Annotations><Annotation>", "ImageScope"),
    ],
)
def test_what_cannot_be_read_gets_one_line_and_leaves_nothing(content: bytes, words: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(content)
    with pytest.raises(MaskError) as caught:
        import_mask(source, tmp_path / "mask.tif", settings())
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


def test_an_existing_mask_is_not_touched(tmp_path: Path) -> None:
    source = write_json(tmp_path / "c.json", [feature(polygon(box(3, 3)))])
    (tmp_path / "mask.tif").write_bytes(b"mine")
    with pytest.raises(MaskError, match="already exists"):
        import_mask(source, tmp_path / "mask.tif", settings())
    assert (tmp_path / "mask.tif").read_bytes() == b"mine"
