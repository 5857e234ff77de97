"""A mask's ground truth for other tools: exact outlines, read back by their own libraries and by the importers."""

import json
import sqlite3
import zlib
from pathlib import Path

import numpy as np
import pytest
import shapely
import zarr
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from wsigen.errors import MaskError
from wsigen.masks.classes import ClassTable
from wsigen.masks.demo.mask import write_demo_mask
from wsigen.masks.exporters import FORMATS, export_mask
from wsigen.masks.exporters.nuclei import finished_nuclei
from wsigen.masks.importers import ImportSettings, import_mask
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask

NAMES = ("neutrophil", "epithelial", "lymphocyte", "plasma", "eosinophil", "connective")
CLASSES = ClassTable.from_config(
    [{"index": i, "name": n, "colour": f"#{40 * i:02x}80{255 - 40 * i:02x}"} for i, n in enumerate(NAMES, 1)]
)


def everything(path: Path) -> MaskWindow:
    with SlideMask.open(path, 6) as mask:
        return mask.read(0, 0, mask.width, mask.height)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo mask to which a tissue plane, a holed nucleus and one in two pieces are added."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo_mask(folder / "plain.tif", 700, 620, seed=4)
    window = everything(folder / "plain.tif")
    assert window.instances is not None
    classes, ids = window.classes.copy(), window.instances.copy()
    free = int(ids.max()) + 1
    classes[2:22, 2:22], ids[2:22, 2:22] = 4, free
    classes[8:12, 8:12], ids[8:12, 8:12] = 0, 0
    classes[9, 9], ids[9, 9] = 1, free + 1  # a nucleus in the hole
    for y in (30, 600):  # far apart: the second piece comes bands later
        classes[y : y + 5, 2:9], ids[y : y + 5, 2:9] = 5, free + 2
    tissue = np.zeros(classes.shape, np.uint8)
    tissue[100:500, 50:650], tissue[200:220, 300:330] = 1, 0
    path = folder / "mask.tif"
    write_slide_mask(path, 700, 620, 0.5, [MaskWindow(classes, ids, tissue)], instances=True, tissue=True)
    return path


def same_nuclei(a: MaskWindow, b: MaskWindow) -> None:
    """Equal classes, and ids that tell the same nuclei apart."""
    assert np.array_equal(a.classes, b.classes)
    assert a.instances is not None and b.instances is not None
    pairs = np.unique(np.stack([a.instances.ravel(), b.instances.ravel()]), axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


@pytest.mark.parametrize("format", list(FORMATS))
def test_round_trips_give_the_same_mask(format: str, demo: Path, tmp_path: Path) -> None:
    out = tmp_path / f"truth{FORMATS[format]}"
    report = export_mask(demo, out, CLASSES)
    before = everything(demo)
    assert report.nuclei == len(np.unique(before.instances)) - 1
    tissue = out if format == "geojson" else None
    settings = ImportSettings(NAMES, size=(700, 620), mpp=0.5, tissue=tissue, class_maps=["tissue=tissue"])
    if format == "ome.zarr":
        settings = ImportSettings(NAMES)
    again = import_mask(out, tmp_path / "again.tif", settings)
    after = everything(tmp_path / "again.tif")
    assert again.nuclei == report.nuclei and again.accounted == again.found and again.mpp == 0.5
    same_nuclei(before, after)
    if format == "geojson":
        assert after.tissue is not None and before.tissue is not None
        assert np.array_equal(after.tissue == 1, (before.tissue == 1) | (before.classes > 0))


def test_nuclei_without_ids_are_components_of_a_class(demo: Path, tmp_path: Path) -> None:
    window = everything(demo)
    plain = tmp_path / "classes.tif"
    write_slide_mask(plain, 700, 620, 0.5, [MaskWindow(window.classes)], instances=False, tissue=False)
    with SlideMask.open(plain, 6) as mask:
        expected = mask.count_nuclei()
    report = export_mask(plain, tmp_path / "t.geojson", CLASSES)
    again = import_mask(tmp_path / "t.geojson", tmp_path / "again.tif", ImportSettings(NAMES, size=(700, 620)))
    assert report.nuclei == sum(expected) and [count for _, count in again.imported] == expected
    assert np.array_equal(everything(tmp_path / "again.tif").classes, window.classes)


def test_components_that_meet_bands_later_are_one_nucleus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MIN_ROWS", "MAX_ROWS"):
        monkeypatch.setattr(f"wsigen.masks.exporters.nuclei.{name}", 4)
    classes = np.zeros((33, 40), np.uint8)
    classes[2:30, 5], classes[2:30, 20], classes[29, 5:21] = 2, 2, 2  # a U over eight bands
    classes[3:6, 10:13], classes[20, 30:33] = 2, 3
    write_slide_mask(tmp_path / "m.tif", 40, 33, 0.5, [MaskWindow(classes)], instances=False, tissue=False)
    with SlideMask.open(tmp_path / "m.tif", 6) as mask:
        sizes = {}
        for runs in finished_nuclei(mask):
            for owner in np.unique(runs.owner):
                assert owner not in sizes
                sizes[int(owner)] = int((runs.right - runs.left)[runs.owner == owner].sum())
    assert sorted(sizes.values()) == [3, 9, 28 + 28 + 14]


def test_qupath_gets_one_valid_polygon_a_nucleus_with_name_and_colour(demo: Path, tmp_path: Path) -> None:
    export_mask(demo, tmp_path / "t.geojson", CLASSES)
    data = json.loads((tmp_path / "t.geojson").read_text())
    window = everything(demo)
    detections = [f for f in data["features"] if f["properties"]["objectType"] == "detection"]
    assert len(detections) == len(np.unique(window.instances)) - 1
    assert len({f["id"] for f in data["features"]}) == len(data["features"])
    colours = {entry.name: list(entry.rgb) for entry in CLASSES}
    shapes = [shapely.from_geojson(json.dumps(f["geometry"])) for f in detections]
    assert all(shape.is_valid for shape in shapes)
    assert sum(shape.area for shape in shapes) == np.count_nonzero(window.classes)
    for entry in detections:
        classification = entry["properties"]["classification"]
        assert classification["color"] == colours[classification["name"]]
    assert {f["properties"]["classification"]["name"] for f in data["features"]} - set(NAMES) == {"Tissue"}


def test_pycocotools_draws_the_same_pixels(demo: Path, tmp_path: Path) -> None:
    export_mask(demo, tmp_path / "t.json", CLASSES)
    coco = COCO(str(tmp_path / "t.json"))
    window = everything(demo)
    assert window.instances is not None
    assert {c["name"] for c in coco.loadCats(coco.getCatIds())} == set(NAMES)
    for identifier in coco.getAnnIds()[::40]:
        entry = coco.loadAnns(identifier)[0]
        pixels = window.instances == identifier
        drawn = coco_mask.decode(coco.annToRLE(entry)).astype(bool)
        assert entry["area"] == pixels.sum()
        assert np.count_nonzero(drawn != pixels) <= 0.05 * pixels.sum()


def test_the_annotation_store_has_tiatoolboxs_tables_and_index(demo: Path, tmp_path: Path) -> None:
    export_mask(demo, tmp_path / "t.db", CLASSES)
    connection = sqlite3.connect(tmp_path / "t.db")
    metadata = {key: json.loads(value) for key, value in connection.execute("SELECT * FROM metadata")}
    assert metadata["version"] == "1.0.1" and metadata["compression"] == "zlib"
    query = (
        "SELECT annotations.*, min_x, max_x, min_y, max_y FROM annotations, rtree WHERE annotations.id == rtree.id "
        "AND max_x >= 100 AND min_x <= 200 AND max_y >= 100 AND min_y <= 200 AND objtype = 'Polygon'"
    )
    rows = connection.execute(query).fetchall()
    assert len(rows) > 20
    for _, key, _, cx, cy, blob, properties, area, *box in rows:
        shape = shapely.from_wkb(zlib.decompress(blob))
        assert len(key) == 36 and shape.area == area and shape.is_valid
        assert [shape.bounds[i] for i in (0, 2, 1, 3)] == box
        assert json.loads(properties)["type"] in (*NAMES, "Tissue") and shape.distance(shapely.Point(cx, cy)) < 1
    connection.close()


def test_ome_zarr_labels_follow_the_specification(demo: Path, tmp_path: Path) -> None:
    export_mask(demo, tmp_path / "t.ome.zarr", CLASSES)
    labels = zarr.open_group(str(tmp_path / "t.ome.zarr" / "labels"), mode="r")
    assert labels.attrs["ome"]["labels"] == ["classes", "nuclei", "tissue"]
    for name in ("classes", "nuclei", "tissue"):
        metadata = labels[name].attrs["ome"]
        scales = metadata["multiscales"][0]
        assert metadata["version"] == "0.5" and [axis["name"] for axis in scales["axes"]] == ["y", "x"]
        assert scales["datasets"][0]["coordinateTransformations"][0]["scale"] == [0.5, 0.5]
        for dataset in scales["datasets"]:
            assert labels[name][dataset["path"]].ndim == 2
    assert {p["class"] for p in labels["classes"].attrs["ome"]["image-label"]["properties"]} == set(NAMES)


def test_nothing_that_exists_is_touched(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "t.geojson").write_text("mine")
    (tmp_path / "t.ome.zarr").mkdir()
    with pytest.raises(MaskError, match="already exists"):
        export_mask(demo, tmp_path / "t.geojson", CLASSES)
    with pytest.raises(MaskError, match="no export wrote"):
        export_mask(demo, tmp_path / "t.ome.zarr", CLASSES, overwrite=True)
    with pytest.raises(MaskError, match="ending"):
        export_mask(demo, tmp_path / "t.shp", CLASSES)
    assert (tmp_path / "t.geojson").read_text() == "mine"
    export_mask(demo, tmp_path / "t.geojson", CLASSES, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.geojson", "t.ome.zarr"]
