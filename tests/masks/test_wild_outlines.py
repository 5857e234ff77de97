"""Files of outlines as users have reported them: what each tool writes beside or against its schema."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run

from wsigen.errors import MaskError
from wsigen.masks.importers import ImportReport, ImportSettings, import_mask
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow
from wsigen.models.config import LIZARD_CLASSES

CLASSES = LIZARD_CLASSES.names


def imported(source: Path, **changes: Any) -> tuple[ImportReport, MaskWindow]:
    out = source.with_name("mask.tif")
    given = ImportSettings(**({"classes": CLASSES, "size": (100, 80), "mpp": 0.5} | changes))
    report = import_mask(source, out, given, overwrite=True)
    assert report.accounted == report.found
    with SlideMask.open(out, 6) as mask:
        assert mask.mpp == report.mpp
        return report, mask.read(0, 0, mask.width, mask.height)


def refused(source: Path, *arguments: object) -> str:
    """The line of an import from the command line that must be refused, and leave nothing."""
    before = sorted(source.parent.iterdir())
    code, text = run("mask", "import", source, "-o", source.with_name("mask.tif"), "--size", "100x80", *arguments)
    assert code == 2 and len(text.splitlines()) == 1 and sorted(source.parent.iterdir()) == before
    return text


def box(x: float, y: float, side: float = 10) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def polygon(x: float, y: float, side: float = 10) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [box(x, y, side)]}


def feature(geometry: Any, name: Any = "Epithelial", kind: str = "detection", **more: Any) -> dict[str, Any]:
    classification = {"name": name} if isinstance(name, str) else name
    properties = {"objectType": kind, "classification": classification}
    return {"type": "Feature", "geometry": geometry, "properties": properties, **more}


def collection(path: Path, *features: Any) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


# --- JSON that is none ------------------------------------------------------------------------------------------------


def test_numbers_that_are_no_json_are_values_that_are_missing(tmp_path: Path) -> None:
    measured = feature(polygon(10, 10))
    measured["properties"]["measurements"] = {"Circularity": math.nan, "Ratio": math.inf, "Other": -math.inf}
    names = [feature(polygon(40, 10), "Lymphocyte"), feature(polygon(60, 10), 'a \\" NaN, -Infinity')]
    source = collection(tmp_path / "c.geojson", measured, *names)
    assert "NaN" in source.read_text() and "-Infinity" in source.read_text()
    report, window = imported(source, class_maps=['a \\" NaN, -Infinity=plasma'])
    assert dict(report.imported) == {**dict.fromkeys(CLASSES, 0), "epithelial": 1, "lymphocyte": 1, "plasma": 1}
    assert np.bincount(window.classes.ravel()).tolist()[2:5] == [100, 100, 100]


def test_bare_words_are_found_wherever_a_piece_of_the_file_ends(tmp_path: Path) -> None:
    from wsigen.masks.importers.json_text import JsonText

    text = json.dumps({"a": [math.nan, -math.inf, 1.5], 'k\\"NaN': "Infinity \\ NaN", "b": math.inf}).encode()
    expected = {"a": [None, None, 1.5], 'k\\"NaN': "Infinity \\ NaN", "b": None}
    for size in range(1, 40):
        for content in (text, b"\xef\xbb\xbf" + text, text.decode().encode("utf-16")):
            path = tmp_path / "j.json"
            path.write_bytes(content)
            with open(path, "rb") as file:
                stream = JsonText(file)
                read = b"".join(iter(lambda: stream.read(size), b""))  # noqa: B023 (called at once)
            assert json.loads(read) == expected


@pytest.mark.parametrize("bad", ["NaN", "null", '"x"', "Infinity", "{}", "true"])
def test_an_object_with_a_coordinate_that_is_no_number_is_counted(bad: str, tmp_path: Path) -> None:
    source = collection(tmp_path / "c.geojson", feature(polygon(10, 10)), feature(polygon(777, 10)))
    source.write_text(source.read_text().replace("777", bad))
    report, window = imported(source)
    assert report.nuclei == 1 and report.invalid == 1 and np.count_nonzero(window.classes) == 100


def test_coco_and_hovernet_count_such_an_object_alike(tmp_path: Path) -> None:
    sound, bad = [x for point in box(10, 10) for x in point], [30, 10, None, 10, 40, 20]
    annotations = [{"category_id": 2, "segmentation": [ring]} for ring in (sound, bad)]
    coco = {"images": [], "categories": [{"id": 2, "name": "epithelial"}], "annotations": annotations}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    nuclei = {str(i): {"contour": ring, "type": 1} for i, ring in enumerate((box(10, 10, 9), [[1, 2], [None, 4]]))}
    (tmp_path / "hovernet.json").write_text(json.dumps({"mag": 20, "nuc": nuclei}))
    for name in ("coco.json", "hovernet.json"):
        report, _ = imported(tmp_path / name, class_maps=["pannuke"])
        assert report.nuclei == 1 and report.invalid == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_content_in_any_text_file(encoding: str, tmp_path: Path) -> None:
    geojson = collection(tmp_path / "c.geojson", feature(polygon(10, 10), "Bösartig 腫瘍"))
    geojson.write_bytes(json.dumps(json.loads(geojson.read_text()), ensure_ascii=False).encode(encoding))
    nucleus = {"contour": box(10, 10, 9), "type": 1}
    (tmp_path / "h.json").write_bytes(json.dumps({"mag": 20, "nuc": {"1": nucleus}}).encode(encoding))
    xml = imagescope(tmp_path / "i.xml", region(box(10, 10), text="Bösartig 腫瘍")).read_text(encoding="utf-8")
    (tmp_path / "i.xml").write_bytes(xml.encode(encoding))
    (tmp_path / "map.toml").write_bytes(
        '[classes]\r\n"bösartig 腫瘍" = "epithelial"\r\n1 = "epithelial"'.encode(encoding)
    )
    for source in (geojson, tmp_path / "h.json", tmp_path / "i.xml"):
        report, _ = imported(source, class_maps=[str(tmp_path / "map.toml")])
        assert dict(report.imported)["epithelial"] == 1


def test_an_archive_made_on_a_mac_holds_one_file(tmp_path: Path) -> None:
    source = collection(tmp_path / "c.geojson", feature(polygon(10, 10)))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.write(source, "c.geojson")
        archive.writestr("__MACOSX/._c.geojson", b"\0\5\x16\7")
        archive.writestr(".DS_Store", b"\0")
    assert imported(tmp_path / "c.zip")[0].nuclei == 1


# --- forms of GeoJSON -------------------------------------------------------------------------------------------------


def test_a_core_of_a_microarray_is_a_region(tmp_path: Path) -> None:
    core = feature(polygon(5, 5, 60), None, "tmaCore")
    source = collection(tmp_path / "c.geojson", core, feature(polygon(20, 20)), feature(polygon(40, 20)))
    report, window = imported(source)
    assert report.nuclei == 2 and np.count_nonzero(window.classes) == 200
    report, window = imported(source, tissue=source)
    assert report.regions == 1 and window.tissue is not None and np.count_nonzero(window.tissue == 1) == 3600


def test_a_core_is_no_nucleus_among_annotations_either(tmp_path: Path) -> None:
    core = feature(polygon(5, 5, 60), None, "tmaCore")
    source = collection(tmp_path / "c.geojson", core, feature(polygon(20, 20), kind="annotation"))
    report, window = imported(source)
    assert report.nuclei == 1 and np.count_nonzero(window.classes) == 100


def test_kinds_of_objects_before_qupath_0_3_stand_in_their_ids(tmp_path: Path) -> None:
    annotation = {"type": "Feature", "id": "PathAnnotationObject", "geometry": polygon(0, 0, 70)}
    annotation["properties"] = {"classification": {"name": "Tumor", "colorRGB": -1}, "measurements": []}
    cell = {"type": "Feature", "id": "PathCellObject", "geometry": polygon(8, 8, 14)}
    cell |= {"nucleusGeometry": polygon(10, 10), "properties": {"classification": {"name": "Epithelial"}}}
    core = {"type": "Feature", "id": "TMACoreObject", "geometry": polygon(0, 0, 75), "properties": {}}
    (tmp_path / "c.json").write_text(json.dumps([annotation, cell, core]))
    report, window = imported(tmp_path / "c.json", class_maps=["Tumor=epithelial"])
    assert report.nuclei == 1 and np.count_nonzero(window.classes) == 100


def test_polygons_of_a_collection_of_geometries_are_one_nucleus(tmp_path: Path) -> None:
    inner = {"type": "GeometryCollection", "geometries": [polygon(30, 10), {"type": "Point", "coordinates": [1, 1]}]}
    line = {"type": "LineString", "coordinates": [[1, 1], [5, 5]]}
    geometry = {"type": "GeometryCollection", "geometries": [polygon(10, 10), line, inner]}
    report, window = imported(collection(tmp_path / "c.geojson", feature(geometry), feature(polygon(60, 10))))
    assert (report.nuclei, report.not_polygons, report.invalid) == (2, 2, 0)
    assert np.count_nonzero(window.classes) == 300
    assert window.instances is not None and window.instances[12, 12] == window.instances[12, 32] != 0


def test_one_feature_or_one_geometry_is_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "feature.geojson").write_text(json.dumps(feature(polygon(10, 10))))
    (tmp_path / "geometry.geojson").write_text(json.dumps(polygon(10, 10)))
    (tmp_path / "geometries.geojson").write_text(json.dumps({"geometries": [polygon(10, 10)]}))
    for source in sorted(tmp_path.glob("*.geojson")):
        report, window = imported(source, class_maps=["unclassified=epithelial"])
        assert report.nuclei == 1 and np.count_nonzero(window.classes == 2) == 100


def test_a_class_that_geopandas_wrote_as_text_is_that_class(tmp_path: Path) -> None:
    texts = ['{"name": "Lymphocyte", "color": [0, 0, 255]}', '{"names": ["Lymphocyte", "CD3"]}', "Lymphocyte"]
    source = collection(tmp_path / "c.geojson", *(feature(polygon(20 * i, 10), None) for i in range(3)))
    data = json.loads(source.read_text())
    for entry, text in zip(data["features"], texts):
        entry["properties"]["classification"] = text
    source.write_text(json.dumps(data))
    assert dict(imported(source)[0].imported)["lymphocyte"] == 3


def test_a_derived_class_falls_back_on_its_nearest_parent(tmp_path: Path) -> None:
    names = ("Immune cells: CD3: CD8", "Immune cells:CD4", "Immune cells : CD3")
    source = collection(tmp_path / "c.geojson", *(feature(polygon(20 * i, 10), name) for i, name in enumerate(names)))
    report, window = imported(source, class_maps=["immune cells: cd3=plasma", "Immune cells=lymphocyte"])
    assert dict(report.imported)["plasma"] == 2 and dict(report.imported)["lymphocyte"] == 1
    assert window.classes[15, 5] == 4 and window.classes[15, 25] == 3


# --- other formats ----------------------------------------------------------------------------------------------------


def region(ring: list[list[float]], negative: str = "0", text: str = "") -> str:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in ring)
    return f'<Region Type="0" Text="{text}" NegativeROA="{negative}"><Vertices>{vertices}</Vertices></Region>'


def imagescope(path: Path, *layers: str) -> Path:
    inside = "".join(f'<Annotation Name="Tumor"><Regions>{layer}</Regions></Annotation>' for layer in layers)
    path.write_text(f'<Annotations MicronsPerPixel="0.5">{inside}</Annotations>', encoding="utf-8")
    return path


def test_a_negative_region_of_imagescope_is_a_hole_in_its_layer(tmp_path: Path) -> None:
    hole = region(box(25, 25, 20), "1")
    source = imagescope(tmp_path / "i.xml", hole + region(box(10, 10, 60)), region(box(26, 26)))
    report, window = imported(source, class_maps=["Tumor=epithelial"])
    assert report.nuclei == report.found == 2
    assert np.count_nonzero(window.classes) == 3200 + 100  # the other layer has no hole
    report, window = imported(imagescope(source, region(box(10, 10, 60)) + hole), class_maps=["Tumor=tissue"])
    assert report.regions == 1 and window.tissue is not None and np.count_nonzero(window.tissue) == 3200
    cells = collection(tmp_path / "c.geojson", feature(polygon(80, 60)))
    _, window = imported(cells, tissue=source)
    assert window.tissue is not None and np.count_nonzero(window.tissue) == 3200 + 100


def test_a_negative_region_is_cut_off_at_the_border_of_the_region(tmp_path: Path) -> None:
    layer = region(box(10, 10, 20)) + region(box(25, 25, 20), "1") + region(box(60, 60), "1")
    report, window = imported(imagescope(tmp_path / "i.xml", layer), class_maps=["Tumor=epithelial"])
    assert report.nuclei == report.found == 1 and np.count_nonzero(window.classes) == 400 - 25


def asap(path: Path, *annotations: str) -> Path:
    inside = "".join(annotations)
    path.write_text(f"<?xml version='1.0'?><ASAP_Annotations><Annotations>{inside}</Annotations></ASAP_Annotations>")
    return path


def asap_annotation(kind: str, group: str, ring: list[list[float]], start: int = 0) -> str:
    order = [*range(start, len(ring)), *range(start)]
    inside = "".join(f'<Coordinate Order="{i}" X="{ring[i][0]}" Y="{ring[i][1]}"/>' for i in order)
    return f'<Annotation Name="a" Type="{kind}" PartOfGroup="{group}"><Coordinates>{inside}</Coordinates></Annotation>'


def test_asap_annotations_are_read_by_their_groups(tmp_path: Path) -> None:
    source = asap(
        tmp_path / "a.xml",
        asap_annotation("Polygon", "Tumor", box(10, 10, 20), start=2),
        asap_annotation("Rectangle", "None", box(50, 50)),
        asap_annotation("Dot", "Tumor", [[3, 3]]),
    )
    report, window = imported(source, class_maps=["Tumor=epithelial", "unclassified=plasma"])
    assert (report.format, report.nuclei, report.not_polygons) == ("ASAP XML", 2, 1)
    assert np.count_nonzero(window.classes == 2) == 400 and np.count_nonzero(window.classes == 4) == 100
    source.with_name("mask.tif").unlink()
    assert "unclassified 1" in refused(source, "--class-map", "Tumor=skip")


@pytest.mark.parametrize("root", ["annotations", "OME", "annotation", "html"])
def test_xml_of_another_kind_is_refused_by_its_name(root: str, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(f"<?xml version='1.0'?><{root}><Region/></{root}>")
    assert f"XML of the kind '{root}'" in refused(tmp_path / "a.xml")


def test_what_hovernet_did_not_classify_is_left_out(tmp_path: Path) -> None:
    nuclei = {"1": {"contour": box(10, 10, 9), "type": 0}, "5": {"contour": box(30, 10, 9), "type": 1}}
    (tmp_path / "h.json").write_text(json.dumps({"mag": 40, "nuc": nuclei}))
    report, _ = imported(tmp_path / "h.json", mpp=0.25, class_maps=["pannuke"])
    assert report.nuclei == 1 and dict(report.skipped) == {"0": 1}
    cells = [{"contour": box(10, 10, 9), "type": 0}, {"contour": box(30, 10, 9), "type": 1}]
    named = {"type_map": {"0": "Background", "1": "Neoplastic"}, "cells": cells}
    (tmp_path / "c.json").write_text(json.dumps(named))
    report, _ = imported(tmp_path / "c.json", class_maps=["pannuke"])
    assert report.nuclei == 1 and dict(report.skipped) == {"Background": 1}


@pytest.mark.parametrize("name", ["", "  ", None])
def test_an_empty_class_is_no_class(name: Any, tmp_path: Path) -> None:
    annotation = {"category_id": 1, "segmentation": [[x for point in box(10, 10) for x in point]]}
    coco = {"images": [], "categories": [{"id": 1, "name": name}], "annotations": [annotation]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    collection(tmp_path / "c.geojson", feature(polygon(10, 10), {"name": name}))
    for source in (tmp_path / "coco.json", tmp_path / "c.geojson"):
        assert "without a counterpart: unclassified 1;" in refused(source)


# --- an import without nuclei -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([feature({"type": "Polygon", "coordinates": box(10, 10)}, "Plasma")], "a list of rings"),
        ([feature({"type": "Point", "coordinates": [5, 5]}, "Plasma")], "1 points or lines"),
        ([feature(polygon(500, 500), "Plasma")], "1 outside the slide"),
        ([feature(polygon(10, 10), "Ignore*")], "left out by class (Ignore* 1)"),
        ([feature(polygon(10, 10, 0.1), "Plasma")], "smaller than a pixel"),
        ([], "no objects"),
        ({"wsi_metadata": {}, "cells": [{"bbox": [[1, 1], [9, 9]], "type": 1}]}, "CellViT's cells.json"),
    ],
)
def test_an_import_without_nuclei_is_refused_with_the_reason(content: Any, reason: str, tmp_path: Path) -> None:
    source = tmp_path / "c.json"
    source.write_text(json.dumps(content))
    maps = ["--class-map", "unclassified=plasma"]
    assert reason in refused(source, *maps) and "--allow-empty" in refused(source, *maps)
    out = tmp_path / "mask.tif"
    code, text = run("mask", "import", source, "-o", out, "--size", "100x80", "--allow-empty", *maps)
    assert code == 0 and "nuclei: none" in text
    with SlideMask.open(out, 6) as mask:
        assert (mask.width, mask.height) == (100, 80) and not mask.read(0, 0, 100, 80).classes.any()


def test_an_empty_import_leaves_an_existing_mask_as_it_was(tmp_path: Path) -> None:
    source, out = collection(tmp_path / "c.geojson"), tmp_path / "mask.tif"
    out.write_bytes(b"mine")
    with pytest.raises(MaskError, match="gives no nuclei"):
        import_mask(source, out, ImportSettings(CLASSES, size=(100, 80)), overwrite=True)
    assert out.read_bytes() == b"mine" and sorted(tmp_path.iterdir()) == [source, out]


def test_a_file_of_tissue_regions_alone_is_no_empty_import(tmp_path: Path) -> None:
    source = collection(tmp_path / "c.geojson", feature(polygon(10, 10, 40), "Region*", "annotation"))
    report, _ = imported(source, class_maps=["Region*=tissue"])
    assert report.nuclei == 0 and report.regions == 1
