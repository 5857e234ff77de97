"""How long imports and exports of every format take and how much memory; 1 M nuclei lie on 100,000 x 100,000 px.

Sources are written to a temporary folder, each import or export runs in a process of its own, and its peak of resident
memory is read when it ends. A nucleus has 24 corners; nuclei lie on a jittered grid, some touching. Exports take the
mask of the last import.

    python benchmarks/import.py --objects 10000 --objects 100000 --objects 1000000
    python benchmarks/import.py --objects 1000000 --format ome-zarr --export geojson --export db
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sqlite3
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import shapely

from wsigen.masks.exporters import FORMATS, export_mask
from wsigen.masks.importers import ImportSettings, import_mask
from wsigen.models.config import LIZARD_CLASSES

CORNERS = 24
PITCH = 100  # px from nucleus to nucleus: 1 M on a slide of 100,000 px
NAMES = LIZARD_CLASSES.names
Result = tuple[float, float, float, str]  # seconds, CPU seconds, peak GiB, closing line


def nuclei(count: int, side: int) -> Iterator[tuple[int, int, list[list[float]]]]:
    """Number, class 1..6 and closed outline of each nucleus."""
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    across = int(np.ceil(np.sqrt(count)))
    pitch = side / across
    for number in range(count):
        centre = (np.array(divmod(number, across)) + rng.uniform(0.3, 0.7, 2)) * pitch
        ring = (centre + min(rng.uniform(5, 11), 0.5 * pitch) * circle).round(2).tolist()
        yield number + 1, number % 6 + 1, [*ring, ring[0]]


def write_geojson(path: Path, count: int, side: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[')
        for number, kind, ring in nuclei(count, side):
            properties = {
                "objectType": "detection",
                "classification": {"name": NAMES[kind - 1], "color": [200, 0, 0]},
                "measurements": {"Nucleus: Area": 113.1, "Nucleus: Circularity": 0.93, "Detection probability": 0.87},
            }
            feature = {
                "type": "Feature",
                "id": f"7d3c0000-0000-4000-8000-{number:012d}",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": properties,
            }
            file.write((",\n" if number > 1 else "") + json.dumps(feature))
        file.write("]}")


def write_multipolygons(path: Path, count: int, side: int) -> None:
    """CellViT's GeoJSON: one MultiPolygon for each class."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("[")
        for wanted in range(1, 7):
            separator = ",\n" if wanted > 1 else ""
            file.write(f'{separator}{{"type": "Feature", "geometry": {{"type": "MultiPolygon", "coordinates": [')
            first = True
            for _, kind, ring in nuclei(count, side):
                if kind == wanted:
                    file.write(("" if first else ",") + json.dumps([ring]))
                    first = False
            properties = {"objectType": "annotation", "classification": {"name": NAMES[wanted - 1], "color": [9, 9, 9]}}
            file.write(']}, "properties": ' + json.dumps(properties) + "}")
        file.write("]")


def write_hovernet(path: Path, count: int, side: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"mag": 20, "nuc": {')
        for number, kind, ring in nuclei(count, side):
            contour = np.rint(ring[:-1]).astype(int).tolist()
            entry = {"bbox": [contour[0], contour[1]], "centroid": contour[0], "contour": contour, "type_prob": 0.9}
            file.write((", " if number > 1 else "") + f'"{number}": ' + json.dumps(entry | {"type": kind}))
        file.write("}}")


def write_coco(path: Path, count: int, side: int) -> None:
    head = {
        "images": [{"id": 1, "file_name": "slide.svs", "width": side, "height": side}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)],
    }
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        for number, kind, ring in nuclei(count, side):
            flat = [value for point in ring[:-1] for value in point]
            entry = {
                "id": number,
                "image_id": 1,
                "category_id": kind,
                "segmentation": [flat],
                "area": 113,
                "iscrowd": 0,
            }
            file.write((", " if number > 1 else "") + json.dumps(entry | {"bbox": [flat[0], flat[1], 20, 20]}))
        file.write("]}")


def write_store(path: Path, count: int, side: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE metadata(key TEXT UNIQUE, value TEXT)")
    connection.execute("INSERT INTO metadata VALUES('compression', '\"zlib\"')")
    connection.execute(
        "CREATE TABLE annotations(id INTEGER PRIMARY KEY, key TEXT UNIQUE, objtype TEXT, cx INTEGER NOT NULL, "
        "cy INTEGER NOT NULL, geometry BLOB, properties TEXT, area INTEGER NOT NULL)"
    )
    rows = (
        (str(n), "Polygon", 0, 0, zlib.compress(shapely.Polygon(r).wkb, 1), json.dumps({"type": NAMES[k - 1]}), 113)
        for n, k, r in nuclei(count, side)
    )
    connection.executemany("INSERT INTO annotations VALUES(NULL, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()


def write_imagescope(path: Path, count: int, side: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write('<Annotations MicronsPerPixel="0.5"><Annotation Id="1"><Regions>')
        for number, kind, ring in nuclei(count, side):
            vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in ring[:-1])
            file.write(
                f'<Region Id="{number}" Type="0" Text="{NAMES[kind - 1]}"><Vertices>{vertices}</Vertices></Region>\n'
            )
        file.write("</Regions></Annotation></Annotations>")


OUTLINES: dict[str, tuple[str, Callable[[Path, int, int], None]]] = {
    "geojson": ("cells.geojson", write_geojson),
    "cellvit": ("cells_cellvit.geojson", write_multipolygons),
    "hovernet": ("cells.json", write_hovernet),
    "coco": ("coco.json", write_coco),
    "tiatoolbox": ("cells.db", write_store),
    "imagescope": ("cells.xml", write_imagescope),
}
# Written by exporting the first mask; a label TIFF is the mask itself.
LABELS = ("label-tiff", "ome-zarr")


def _import(source: Path, out: Path, side: int) -> str:
    settings = ImportSettings(NAMES, ["lizard"], size=(side, side), mpp=0.5)
    return import_mask(source, out, settings, overwrite=True).describe()[-1]


def _export(mask: Path, out: Path) -> str:
    return f"{export_mask(mask, out, LIZARD_CLASSES).nuclei:,} nuclei"


def _measured(queue: multiprocessing.Queue[Result], work: Callable[..., str], *given: object) -> None:
    started, cpu = time.perf_counter(), time.process_time()
    line = work(*given)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    queue.put((seconds, cpu, peak, line))


def measure(work: Callable[..., str], *given: object) -> Result:
    """Measure one import or export in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measured, args=(queue, work, *given))
    process.start()
    result = queue.get()
    process.join()
    return result


def size_of(path: Path) -> int:
    """Bytes of a file or folder."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--objects", multiple=True, type=click.IntRange(1), default=(10_000, 100_000), show_default=True)
@click.option("--format", "formats", multiple=True, type=click.Choice([*OUTLINES, *LABELS]), help="[default: all]")
@click.option("--export", "exports", multiple=True, type=click.Choice([*FORMATS]), help="[default: none]")
def main(objects: tuple[int, ...], formats: tuple[str, ...], exports: tuple[str, ...]) -> None:
    """Time imports and exports."""
    chosen = formats or (*OUTLINES, *LABELS)
    click.echo("| format | nuclei | file, MB | s | CPU s | peak RSS, GiB |\n| --- | --- | --- | --- | --- | --- |")
    for count in objects:
        side = round(PITCH * count**0.5)
        with tempfile.TemporaryDirectory(prefix="wsigen-benchmark-") as name:
            folder = Path(name)
            mask = folder / "mask.tif"
            for kind in [k for k in chosen if k in OUTLINES] or ["tiatoolbox"]:
                source = folder / OUTLINES[kind][0]
                OUTLINES[kind][1](source, count, side)
                result = measure(_import, source, mask, side)
                if kind in chosen:
                    _report(kind, count, source, result)
                source.unlink()
            if "label-tiff" in chosen:
                _report("label-tiff", count, mask, measure(_import, mask, folder / "again.tif", side))
            for kind in exports:
                out = folder / f"cells{FORMATS[kind]}"
                _report(f"to {kind}", count, out, measure(_export, mask, out))
            if "ome-zarr" in chosen:
                source = folder / f"cells{FORMATS['ome.zarr']}"
                if not source.exists():
                    export_mask(mask, source, LIZARD_CLASSES)
                _report("ome-zarr", count, source, measure(_import, source, folder / "again.tif", side))


def _report(kind: str, count: int, file: Path, result: Result) -> None:
    seconds, cpu, peak, line = result
    click.echo(f"| {kind} | {count:,} | {size_of(file) / 1e6:,.0f} | {seconds:.1f} | {cpu:.1f} | {peak:.2f} |")
    click.echo(f"{kind}: {line}", err=True)


if __name__ == "__main__":
    main()
