"""Label images of other tools become the mask's planes: TIFF, PNG, MATLAB and OME-Zarr."""

import csv
import json
import os
import pickle
import re
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import pyvips
import scipy.io
import tifffile
import zarr

from wsigen.errors import MaskError
from wsigen.masks.importers import ImportReport, ImportSettings, import_mask
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow

CLASSES = ("neutrophil", "epithelial", "lymphocyte", "plasma", "eosinophil", "connective")
PUBLISHED = Path(os.environ.get("WSIGEN_TEST_DATA", "no data"))  # a folder with consep/ and lizard/

# Three nuclei, the first two touching; ids with gaps.
IDS = np.zeros((60, 70), np.uint16)
IDS[5:15, 5:15], IDS[5:15, 15:25], IDS[30:40, 40:52] = 7, 9, 300
CLASS_OF = {7: 2, 9: 2, 300: 3}
CLASSES_OF_PIXELS = np.vectorize({0: 0, **CLASS_OF}.get)(IDS).astype(np.uint8)


def imported(source: Path, **changes: Any) -> tuple[ImportReport, MaskWindow]:
    out = source.parent / "mask.tif"
    report = import_mask(source, out, ImportSettings(**({"classes": CLASSES} | changes)), overwrite=True)
    assert report.accounted == report.found
    with SlideMask.open(out, 6) as mask:
        return report, mask.read(0, 0, mask.width, mask.height)


def check(window: MaskWindow) -> None:
    assert np.array_equal(window.classes, CLASSES_OF_PIXELS)
    assert window.instances is not None and np.array_equal(window.instances, IDS)


def write_tables(folder: Path) -> list[Path]:
    with open(folder / "a.csv", "w", newline="") as file:
        csv.writer(file, delimiter=";").writerows([["x", "Label", "Class"], *(["", i, c] for i, c in CLASS_OF.items())])
    (folder / "b.json").write_text(json.dumps({str(i): CLASSES[c - 1] for i, c in CLASS_OF.items()}))
    (folder / "c.json").write_text(json.dumps({"labels": {str(i): c for i, c in CLASS_OF.items()}, "other": {}}))
    (folder / "d.json").write_text(json.dumps([{"id": i, "class": c} for i, c in CLASS_OF.items()]))
    return [folder / name for name in ("a.csv", "b.json", "c.json", "d.json")]


def test_ids_with_a_table_in_tiff_and_png(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "labels.tif", IDS.astype(np.int32), tile=(32, 32), compression="zlib")
    pyvips.Image.new_from_array(IDS).copy(interpretation="grey16").pngsave(str(tmp_path / "labels.png"))
    for source in ("labels.tif", "labels.png"):
        for table in write_tables(tmp_path):
            report, window = imported(tmp_path / source, table=table, class_maps=["lizard"])
            check(window)
            assert dict(report.imported)["epithelial"] == 2 and report.nuclei == 3


def test_stardist_labels_with_its_class_ids(tmp_path: Path) -> None:
    dense = np.searchsorted([0, 7, 9, 300], IDS).astype(np.int32)
    tifffile.imwrite(tmp_path / "labels.tif", dense)
    (tmp_path / "details.json").write_text(json.dumps({"class_id": [2, 2, 3], "prob": [0.9, 0.8, 0.7]}))
    _, window = imported(tmp_path / "labels.tif", table=tmp_path / "details.json", class_maps=["lizard"])
    assert np.array_equal(window.classes, CLASSES_OF_PIXELS)


def test_ids_without_a_table_are_unclassified(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "labels.tif", IDS, resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    with pytest.raises(MaskError, match="unclassified 3"):
        imported(tmp_path / "labels.tif")
    report, window = imported(tmp_path / "labels.tif", class_maps=["unclassified=epithelial"])
    assert report.mpp == pytest.approx(0.5) and report.nuclei == 3 and set(np.unique(window.classes)) == {0, 2}


def test_class_images_and_classes_with_ids_on_a_second_page(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "labels.tif", CLASSES_OF_PIXELS, compression="lzw")
    report, window = imported(tmp_path / "labels.tif")
    assert np.array_equal(window.classes, CLASSES_OF_PIXELS) and window.instances is None
    assert report.nuclei == 2  # by components: the touching ones are one
    with tifffile.TiffWriter(tmp_path / "both.tif") as tif:
        tif.write(CLASSES_OF_PIXELS)
        tif.write(IDS)
    report, window = imported(tmp_path / "both.tif")
    check(window)
    assert report.nuclei == 3


def test_classes_of_a_class_image_are_mapped_or_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "labels.tif", np.where(CLASSES_OF_PIXELS == 3, 9, CLASSES_OF_PIXELS).astype(np.uint8))
    with pytest.raises(MaskError, match=r"9 \(pixels\) 120"):
        imported(tmp_path / "labels.tif")
    _, window = imported(tmp_path / "labels.tif", class_maps=["9=plasma", "2=epithelial"])
    assert np.count_nonzero(window.classes == 4) == 120


def test_a_smaller_copy_of_the_slide_takes_its_scale(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "labels.tif", CLASSES_OF_PIXELS)
    report, _ = imported(tmp_path / "labels.tif", size=(280, 240), mpp=0.25)
    assert report.mpp == pytest.approx(1.0) and report.width == 70
    with pytest.raises(MaskError, match="another shape"):
        imported(tmp_path / "labels.tif", size=(100, 240), mpp=0.25)


def column(values: Any) -> np.ndarray:
    return np.array(list(values), np.float64)[:, None]


def test_matlab_files_of_lizard_hovernet_and_consep(tmp_path: Path) -> None:
    base = {"inst_map": IDS.astype(np.int32)}
    lizard = base | {"id": column(CLASS_OF), "class": column(CLASS_OF.values()), "bbox": np.zeros((3, 4))}
    tile = base | {"inst_uid": column(CLASS_OF), "inst_type": column(CLASS_OF.values())}
    dense = {
        "inst_map": np.searchsorted([0, 7, 9, 300], IDS).astype(float),
        "type_map": CLASSES_OF_PIXELS.astype(float),
    }
    consep = dense | {"inst_type": column(CLASS_OF.values()), "inst_centroid": np.zeros((3, 2))}
    for data, maps in ((lizard, ()), (tile, ("lizard",)), (consep, ("lizard",))):
        for packed in (True, False):
            scipy.io.savemat(tmp_path / "t.mat", data, do_compression=packed)
            report, window = imported(tmp_path / "t.mat", class_maps=maps)
            assert np.array_equal(window.classes, CLASSES_OF_PIXELS) and report.nuclei == 3


def write_zarr(folder: Path, values: np.ndarray, version: int, chunk: int = 32, **packing: Any) -> Path:
    group = zarr.open_group(str(folder), mode="w", zarr_format=3 if version == 5 else 2)
    array = group.create_array("0", shape=(1, *values.shape), chunks=(1, chunk, chunk), dtype=values.dtype, **packing)
    array[0] = values
    axes = [{"name": "z", "type": "space"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
    transformation = {"type": "scale", "scale": [1.0, 0.25, 0.25]}
    scales = [{"version": f"0.{version}", "axes": axes}]
    scales[0]["datasets"] = [{"path": "0", "coordinateTransformations": [transformation]}]
    label = {"properties": [{"label-value": i, "class": CLASSES[c - 1]} for i, c in CLASS_OF.items()]}
    metadata = {"multiscales": scales, "image-label": label}
    group.attrs.update({"ome": metadata} if version == 5 else metadata)
    return folder


@pytest.mark.parametrize("version", [4, 5])
def test_ome_zarr_labels(version: int, tmp_path: Path) -> None:
    report, window = imported(write_zarr(tmp_path / "nuclei.zarr", IDS, version))
    check(window)
    assert report.mpp == 0.25


def test_zarr_arrays_with_pickled_or_unknown_codecs_are_refused(tmp_path: Path) -> None:
    folder = write_zarr(tmp_path / "nuclei.zarr", IDS, 4)
    metadata = json.loads((folder / "0" / ".zarray").read_text())
    (folder / "0" / ".zarray").write_text(json.dumps(metadata | {"filters": [{"id": "pickle"}]}))
    with pytest.raises(MaskError, match="pickle"):
        imported(folder)


@pytest.mark.parametrize(
    "layout", [{"rowsperstrip": 1}, {"rowsperstrip": 15}, {"rowsperstrip": 700}, {"tile": (48, 64)}]
)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_label_images_of_any_layout_are_read_over_bands(
    layout: dict[str, Any], compression: str | None, tmp_path: Path
) -> None:
    ids = np.kron(np.arange(40 * 3).reshape(40, 3), np.ones((35, 30), int)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "ids.tif", ids, compression=compression, **layout)
    (tmp_path / "table.csv").write_text("id,class\n" + "".join(f"{i},plasma\n" for i in range(1, 120)))
    _, window = imported(tmp_path / "ids.tif", table=tmp_path / "table.csv")
    assert window.instances is not None and np.array_equal(window.instances, ids)
    data = (tmp_path / "ids.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(MaskError, match=r"cut\.tif"):
        imported(tmp_path / "cut.tif", table=tmp_path / "table.csv")


PACKINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "zstd": (5, {"compressors": zarr.codecs.ZstdCodec()}),
    "zstd and checksum": (5, {"compressors": [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()]}),
    "gzip": (5, {"compressors": zarr.codecs.GzipCodec()}),
    "blosc": (5, {"compressors": zarr.codecs.BloscCodec()}),
    "shards": (5, {"compressors": zarr.codecs.ZstdCodec(), "shards": (1, 512, 512)}),
    "zstd of Zarr 2": (4, {"compressors": numcodecs.Zstd()}),
    "zlib": (4, {"compressors": numcodecs.Zlib()}),
    "lz4": (4, {"compressors": numcodecs.LZ4()}),
    "bz2": (4, {"compressors": numcodecs.BZ2()}),
    "lzma": (4, {"compressors": numcodecs.LZMA()}),
}


@pytest.mark.parametrize("name", list(PACKINGS))
def test_zarr_chunks_that_unpack_to_more_than_they_should_are_refused(name: str, tmp_path: Path) -> None:
    version, packing = PACKINGS[name]
    check(imported(write_zarr(tmp_path / "sound.zarr", IDS, version, chunk=512, **packing))[1])
    folder = write_zarr(tmp_path / "bomb.zarr", IDS, version, chunk=512, **packing)
    metadata = folder / "0" / (".zarray" if version == 4 else "zarr.json")
    metadata.write_text(re.sub(r"512,\s*512", "32, 32", metadata.read_text()))
    with pytest.raises(MaskError, match=r"unpacks to more than the 2,048 bytes"):
        imported(folder)


def test_zarr_chunks_of_many_shards_are_found(tmp_path: Path) -> None:
    check(imported(write_zarr(tmp_path / "a.zarr", IDS, 5, chunk=16, shards=(1, 32, 48)))[1])


def test_zarr_chunks_too_large_for_memory_are_refused_by_their_metadata(tmp_path: Path) -> None:
    folder = write_zarr(tmp_path / "bomb.zarr", IDS, 5)
    metadata = folder / "0" / "zarr.json"
    metadata.write_text(re.sub(r"32,\s*32", "100000, 100000", metadata.read_text()))
    with pytest.raises(MaskError, match=r"a chunk of \(1, 100000, 100000\) unpacks to 20,000 MB"):
        imported(folder)


@pytest.mark.parametrize(
    "compressors",
    [[zarr.codecs.GzipCodec(), zarr.codecs.ZstdCodec()], [zarr.codecs.BloscCodec(), zarr.codecs.GzipCodec()]],
)
def test_zarr_chunks_packed_twice_are_refused(compressors: list[Any], tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="packed twice"):
        imported(write_zarr(tmp_path / "a.zarr", IDS, 5, compressors=compressors))


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    for name, data in (("a.dat", pickle.dumps(Bomb())), ("b.dat", zlib.compress(pickle.dumps(Bomb())))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MaskError, match="pickled"):
            imported(tmp_path / name)
    np.save(tmp_path / "c.npy", np.array([Bomb()], object), allow_pickle=True)
    with pytest.raises(MaskError, match="NumPy"):
        imported(tmp_path / "c.npy")


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files that claim, or unpack to, far more than they should."""
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.uint16))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tif:
        for tag in ("ImageWidth", "ImageLength"):
            tif.pages.first.tags[tag].overwrite(60_000)
    monkeypatch.setattr("wsigen.masks.importers.matlab.MAX_UNPACKED", 20 << 20)
    bomb = zlib.compress(bytes(60 << 20), 1)
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    (tmp_path / "b.mat").write_bytes(header + np.array([15, len(bomb)], "<u4").tobytes() + bomb)
    tracemalloc.start()
    for name in ("a.tif", "b.mat"):
        with pytest.raises(MaskError):
            imported(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


def test_pictures_and_other_tiffs_get_one_line(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((20, 20, 3), np.uint8), photometric="rgb")
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((20, 20), np.float32))
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    (tmp_path / "empty").mkdir()
    for name in ("rgb.tif", "float.tif", "cut.png", "empty"):
        with pytest.raises(MaskError) as caught:
            imported(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(not (PUBLISHED / "consep").is_dir(), reason="WSIGEN_TEST_DATA names no folder with consep/")
def test_consep_patches(tmp_path: Path) -> None:
    table = PUBLISHED / "consep" / "types.json"
    types = json.loads(table.read_text())
    for name in sorted(types)[::150]:
        source = PUBLISHED / "consep" / "instances" / f"{name}.png"
        report = import_mask(
            source, tmp_path / f"{name}.tif", ImportSettings(CLASSES, ["consep"], table=table, mpp=0.25)
        )
        ids = set(np.unique(pyvips.Image.new_from_file(str(source)).numpy()).tolist()) - {0}
        assert report.nuclei == len(ids) and report.accounted == report.found


@pytest.mark.skipif(not (PUBLISHED / "lizard").is_dir(), reason="WSIGEN_TEST_DATA names no folder with lizard/")
def test_lizard_labels(tmp_path: Path) -> None:
    for source in sorted((PUBLISHED / "lizard" / "labels").glob("*.png"))[:2]:
        labels = pyvips.Image.new_from_file(str(source)).numpy()
        maps = ["lizard", "255=skip"]
        report = import_mask(source, tmp_path / f"{source.stem}.tif", ImportSettings(CLASSES, maps, mpp=0.5))
        with SlideMask.open(report.out, 6) as mask:
            written = mask.read(0, 0, mask.width, mask.height).classes
        assert np.array_equal(written, np.where(labels == 255, 0, labels))
