"""Malformed files: whatever bytes an importer is given, it writes a mask or raises the project's own error."""

import json
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import shapely
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsigen.errors import WsigenError
from wsigen.masks.importers import ImportSettings, import_mask

CLASSES = ("neutrophil", "epithelial", "lymphocyte", "plasma", "eosinophil", "connective")
RING = [[3, 3], [9, 3], [9, 9], [3, 9], [3, 3]]
IDS = np.kron([[0, 1], [2, 3]], np.ones((12, 12))).astype(np.uint16)
SIZE = (40, 30)


def geojson(path: Path) -> None:
    properties = {"objectType": "cell", "classification": {"names": ["Epithelial", "x"]}, "childObjects": []}
    square, several = {"type": "Polygon", "coordinates": [RING]}, {"type": "MultiPolygon", "coordinates": [[RING]]}
    features = [
        {"type": "Feature", "geometry": square, "nucleusGeometry": several, "properties": properties},
        {"type": "Feature", "geometry": several, "properties": properties | {"classification": "Plasma"}},
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def hovernet(path: Path) -> None:
    path.write_text(json.dumps({"mag": 20, "nuc": {"1": {"contour": RING[:-1], "type": 2, "bbox": [[1, 2], [3, 4]]}}}))


def cellvit(path: Path) -> None:
    cells = [{"contour": RING[:-1], "type": 1}]
    path.write_text(json.dumps({"wsi_metadata": {"base_mpp": 0.5}, "type_map": {"1": "Neoplastic"}, "cells": cells}))


def coco(path: Path) -> None:
    shapes: list[Any] = [[[3, 3, 9, 3, 9, 9]], {"size": [30, 40], "counts": [35, 4, 26, 4]}]
    shapes.append({"size": [30, 40], "counts": "PSl02l0N1O"})
    entries = [{"id": i, "image_id": 1, "category_id": 1, "segmentation": shape} for i, shape in enumerate(shapes)]
    images = [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}]
    path.write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "plasma"}], "annotations": entries}))


def store(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE metadata(key TEXT UNIQUE, value TEXT)")
    connection.execute("INSERT INTO metadata VALUES('compression', '\"zlib\"')")
    connection.execute("CREATE TABLE annotations(id INTEGER PRIMARY KEY, geometry BLOB, properties TEXT)")
    blob = zlib.compress(shapely.Polygon(RING).wkb)
    connection.execute("INSERT INTO annotations VALUES(1, ?, ?)", [blob, '{"type": "plasma"}'])
    connection.commit()
    connection.close()


def imagescope(path: Path) -> None:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in RING)
    region = f'<Region Id="1" Type="0" Text="plasma"><Vertices>{vertices}</Vertices></Region>'
    path.write_text(
        f'<Annotations MicronsPerPixel="0.5"><Annotation><Regions>{region}</Regions></Annotation></Annotations>'
    )


def matlab(path: Path) -> None:
    data = {"inst_map": IDS.astype(float), "id": np.array([[1.0], [2], [3]]), "class": np.array([[1.0], [2], [3]])}
    scipy.io.savemat(path, data, do_compression=path.stem == "packed")


def tiff(path: Path) -> None:
    tifffile.imwrite(path, IDS, compression="zlib", rowsperstrip=8)


SAMPLES: dict[str, Callable[[Path], None]] = {
    "geojson": geojson,
    "hovernet": hovernet,
    "cellvit": cellvit,
    "coco": coco,
    "store": store,
    "imagescope": imagescope,
    "matlab": matlab,
    "packed": matlab,
    "tiff": tiff,
}
changes = st.lists(
    st.tuples(
        st.sampled_from(["flip", "delete", "insert", "cut", "repeat"]),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def changed(data: bytes, steps: list[tuple[str, float, bytes]]) -> bytes:
    out = bytearray(data)
    for step, place, payload in steps:
        at = int(place * len(out))
        if step == "flip" and at < len(out):
            out[at] ^= payload[0] or 1
        elif step == "delete":
            del out[at : at + len(payload)]
        elif step == "insert":
            out[at:at] = payload
        elif step == "cut":
            del out[at:]
        elif step == "repeat":
            out[at:at] = out[at : at + 50]
    return bytes(out)


def attempt(source: Path, out: Path) -> None:
    settings_ = ImportSettings(
        CLASSES, ["pannuke", "unclassified=plasma"], skip_unknown=True, size=SIZE if source.is_file() else None
    )
    try:
        report = import_mask(source, out, settings_, overwrite=True)
    except WsigenError as error:
        assert "\n" not in str(error) and str(source) in str(error)
    else:
        assert report.accounted == report.found
    out.unlink(missing_ok=True)
    assert [p.name for p in out.parent.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("kind", list(SAMPLES))
def test_changed_bytes(kind: str, tmp_path: Path) -> None:
    sample = tmp_path / f"{kind}.sample"
    SAMPLES[kind](sample)
    data = sample.read_bytes()
    attempt(sample, tmp_path / "mask.tif")

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(steps=changes)
    def run(steps: list[tuple[str, float, bytes]]) -> None:
        source = tmp_path / "source"
        source.write_bytes(changed(data, steps))
        attempt(source, tmp_path / "mask.tif")

    run()


GEOJSON_KEYS = ["features", "geometry", "coordinates", "properties", "classification", "name", "names", "objectType"]
OTHER_KEYS = ["nuc", "contour", "type", "cells", "annotations", "segmentation", "counts", "size", "id", "category_id"]
keys = [*GEOJSON_KEYS, *OTHER_KEYS, "childObjects", "nucleusGeometry", "type_map", "images", "categories", "width"]
leaves = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
leaves |= st.text(max_size=5) | st.sampled_from([RING, [RING], [[RING]], "Polygon", "1", 1])
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(keys), inner, max_size=5),
    max_leaves=25,
)


@pytest.mark.parametrize("key", ["features", "nuc", "cells", "annotations"])
def test_json_of_any_shape(key: str, tmp_path: Path) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(inner=values, rest=values)
    def run(inner: Any, rest: Any) -> None:
        source = tmp_path / "source"
        first = {} if key == "features" else {"type_map": rest, "images": rest, "categories": rest, "mag": rest}
        source.write_text(json.dumps({**first, key: [inner, inner] if key != "nuc" else {"1": inner}, "rest": rest}))
        attempt(source, tmp_path / "mask.tif")

    run()


def test_changed_zarr_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "labels.zarr"
    group = zarr.open_group(str(folder), mode="w", zarr_format=3)
    group.create_array("0", shape=IDS.shape, chunks=(8, 8), dtype=IDS.dtype)[:] = IDS
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [0.5, 0.5]}]}]
    axes = [{"name": "y", "unit": "micrometer"}, {"name": "x", "unit": "micrometer"}]
    label = {"properties": [{"label-value": 1, "class": "plasma"}]}
    group.attrs["ome"] = {"multiscales": [{"axes": axes, "datasets": datasets}], "image-label": label}
    files = [folder / "zarr.json", folder / "0" / "zarr.json", folder / "0" / "c" / "2" / "2"]
    sound = {file: file.read_bytes() for file in files}
    attempt(folder, tmp_path / "mask.tif")

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(steps=changes, which=st.integers(0, 2))
    def run(steps: list[tuple[str, float, bytes]], which: int) -> None:
        files[which].write_bytes(changed(sound[files[which]], steps))
        attempt(folder, tmp_path / "mask.tif")
        files[which].write_bytes(sound[files[which]])

    run()
