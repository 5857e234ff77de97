"""Training patches: each layout as its tool's loader reads it, sides that share no pixel, and the way back."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pycocotools.coco import COCO

from wsigen.dataset.cutting import DatasetSettings, write_dataset
from wsigen.dataset.regions import parse_split, places
from wsigen.errors import DataError
from wsigen.masks.demo.mask import write_demo_mask
from wsigen.masks.slide_mask import SlideMask
from wsigen.models.config import LIZARD_CLASSES
from wsigen.slides.metadata import SlideMetadata
from wsigen.slides.svs import write_svs
from wsigen.training.data import manifest
from wsigen.training.prepare import prepare

SIDE = 700


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A demo mask and a slide whose red channel shows the classes."""
    folder = tmp_path_factory.mktemp("pair")
    write_demo_mask(folder / "m.tif", SIDE, SIDE, seed=4)
    with SlideMask.open(folder / "m.tif", 6) as mask:
        classes = mask.read(0, 0, SIDE, SIDE).classes
    rgb = np.stack([40 * classes, np.full_like(classes, 90), np.full_like(classes, 120)], 2)
    write_svs(folder / "s.svs", SIDE, SIDE, lambda a, b: rgb[a:b], SlideMetadata(0.5, 20), jpeg_quality=97)
    return folder / "s.svs", folder / "m.tif"


def cut(pair: tuple[Path, Path], out: Path, layout: str, **changes: object) -> list[dict[str, str]]:
    settings = DatasetSettings(layout, **({"patch": 128, "region": 256} | changes))  # type: ignore[arg-type]
    report = write_dataset([pair[0]], [pair[1]], out, LIZARD_CLASSES, settings)
    with open(out / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(report.patches.values()) and set(report.patches) == {"train", "val"}
    assert all(report.patches.values())
    return rows


def truth(pair: tuple[Path, Path], row: dict[str, str]) -> np.ndarray:
    with SlideMask.open(pair[1], 6) as mask:
        return mask.read(int(row["x"]), int(row["y"]), 128, 128).classes


def agrees(labels: np.ndarray, expected: np.ndarray) -> bool:
    """Equal but for slivers of nuclei at the border of the patch."""
    return bool(((labels == expected) | (labels == 0)).all()) and np.count_nonzero(labels != expected) < 40


def looks_like(rgb: np.ndarray, labels: np.ndarray) -> bool:
    return float(np.abs(rgb[..., 0].astype(float) - 40.0 * labels).mean()) < 8


def test_hovernet(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for row in cut(pair, tmp_path / "d", "hovernet"):
        data = np.load(tmp_path / "d" / row["file"], allow_pickle=False)
        assert data.shape == (128, 128, 5) and data.dtype == np.int32  # FileLoader: [..., :3] picture, [..., 3:] labels
        assert agrees(data[..., 4], truth(pair, row)) and looks_like(data[..., :3], truth(pair, row))
        assert ((data[..., 3] > 0) == (data[..., 4] > 0)).all()
        assert len(np.unique(data[..., 3])) - 1 == sum(int(row[n]) for n in LIZARD_CLASSES.names)
    assert json.loads((tmp_path / "d" / "type_info.json").read_text())["2"][0] == "epithelial"


def test_conic_and_back_into_a_training_folder(pair: tuple[Path, Path], tmp_path: Path) -> None:
    rows = cut(pair, tmp_path / "d", "conic")
    for split in ("train", "val"):
        images = np.load(tmp_path / "d" / split / "images.npy", allow_pickle=False)
        labels = np.load(tmp_path / "d" / split / "labels.npy", allow_pickle=False)
        counts = list(csv.reader(open(tmp_path / "d" / split / "counts.csv", newline="")))  # noqa: SIM115
        mine = [row for row in rows if row["split"] == split]
        assert images.shape == (len(mine), 128, 128, 3) and labels.shape == (len(mine), 128, 128, 2)
        for at, row in enumerate(mine):
            assert agrees(labels[at, ..., 1], truth(pair, row)) and looks_like(images[at], truth(pair, row))
            kinds = [int(labels[at, ..., 1][labels[at, ..., 0] == i][0]) for i in np.unique(labels[at, ..., 0])[1:]]
            assert [kinds.count(k) for k in range(1, 7)] == [int(v) for v in counts[at + 1]]
    prepared = prepare({"conic": tmp_path / "d" / "train"}, tmp_path / "folder", holdout=[])
    assert len(prepared.images) == sum(row["split"] == "train" for row in rows)
    first = prepared.images[0]
    stored = np.load(tmp_path / "d" / "train" / "labels.npy")[0, ..., 1]
    assert np.array_equal(manifest.read_label(manifest.label_path(tmp_path / "folder", first.name)), stored)


def test_pannuke_and_back(pair: tuple[Path, Path], tmp_path: Path) -> None:
    rows = cut(pair, tmp_path / "d", "pannuke")
    masks = np.load(tmp_path / "d" / "fold1" / "masks" / "fold1" / "masks.npy", allow_pickle=False)
    images = np.load(tmp_path / "d" / "fold1" / "images" / "fold1" / "images.npy", allow_pickle=False)
    types = np.load(tmp_path / "d" / "fold1" / "images" / "fold1" / "types.npy", allow_pickle=False)
    mine = [row for row in rows if row["split"] == "train"]
    assert masks.shape == (len(mine), 128, 128, 6) and len(types) == len(images) == len(mine)
    expected = truth(pair, mine[0])
    assert agrees(np.where(masks[0, ..., 4] > 0, 2, 0), np.where(expected == 2, 2, 0))
    assert np.array_equal(masks[0, ..., 5] == 1, masks[0, ..., :5].sum(2) == 0)
    prepared = prepare({"pannuke": tmp_path / "d"}, tmp_path / "folder", mpp=0.25)
    assert {image.split for image in prepared.images} == {"train", "val"}
    assert {image.group for image in prepared.images} == {"fold1", "fold2"}


def test_stardist(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for row in cut(pair, tmp_path / "d", "stardist")[:6]:
        picture = tmp_path / "d" / row["file"]
        ids = tifffile.imread(tmp_path / "d" / row["split"] / "masks" / picture.name)
        kinds = json.loads((tmp_path / "d" / row["split"] / "classes.json").read_text())[picture.stem]
        assert ids.dtype == np.uint16 and tifffile.imread(picture).shape == (128, 128, 3)
        labels = np.array([0, *(kinds[str(i)] for i in range(1, int(ids.max()) + 1))])[ids]
        assert agrees(labels, truth(pair, row))


def test_coco(pair: tuple[Path, Path], tmp_path: Path) -> None:
    rows = {Path(row["file"]).name: row for row in cut(pair, tmp_path / "d", "coco")}
    coco = COCO(str(tmp_path / "d" / "annotations" / "instances_train.json"))
    for image in coco.loadImgs(coco.getImgIds())[:5]:
        assert (tmp_path / "d" / "train" / image["file_name"]).is_file()
        expected = truth(pair, rows[image["file_name"]])
        drawn = np.zeros((128, 128), np.uint8)
        for entry in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            drawn[coco.annToMask(entry) > 0] = entry["category_id"]
        assert np.count_nonzero(drawn != expected) < 0.04 * drawn.size


def test_sides_share_no_pixel_and_follow_the_seed() -> None:
    sizes = [(3000, 2500), (1000, 900)]
    found = list(places(sizes, 256, 128, 512, parse_split("train=0.7,val=0.2,test=0.1"), "region", 1))
    again = list(places(sizes, 256, 128, 512, parse_split("train=0.7,val=0.2,test=0.1"), "region", 1))
    other = list(places(sizes, 256, 128, 512, parse_split("train=0.7,val=0.2,test=0.1"), "region", 2))
    assert found == again != other
    owner: dict[tuple[int, int, int], str] = {}
    for place in found:
        for corner in ((0, 0), (255, 0), (0, 255), (255, 255)):
            block = (place.slide, (place.x + corner[0]) // 512, (place.y + corner[1]) // 512)
            assert owner.setdefault(block, place.split) == place.split
    shares = {name: sum(v == name for v in owner.values()) / len(owner) for name in ("train", "val", "test")}
    assert abs(shares["train"] - 0.7) < 0.06 and shares["test"] > 0
    by_slide = list(places(sizes, 256, 256, 512, parse_split("train=0.5,val=0.5"), "slide", 0))
    assert len({(place.slide, place.split) for place in by_slide}) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "train=0.8,val=0.8"}, "add up"),
        ({"split": "train"}, "shares"),
        ({"patch": 1000}, "no patch"),
        ({"region": 512, "split": "a=0.3,b=0.3,c=0.4"}, "cannot be split"),
        ({"min_nuclei": 9999, "region": 256}, "lower --min-nuclei"),
        ({"layout": "yolo"}, "not known"),
    ],
)
def test_what_makes_no_sense_gets_one_line(
    changes: dict[str, object], words: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = DatasetSettings(**({"layout": "coco", "patch": 256, "region": 512} | changes))  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        write_dataset([pair[0]], [pair[1]], tmp_path / "d", LIZARD_CLASSES, settings)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_mask_of_another_size_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    write_demo_mask(tmp_path / "m.tif", 300, 300, seed=1)
    with pytest.raises(DataError, match="300 x 300"):
        write_dataset([pair[0]], [tmp_path / "m.tif"], tmp_path / "d", LIZARD_CLASSES, DatasetSettings("coco"))


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "conic"
    folder.mkdir()
    np.save(folder / "images.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match="objects are refused"):
        prepare({"conic": folder}, tmp_path / "out")
