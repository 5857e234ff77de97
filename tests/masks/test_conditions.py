"""Condition planes are local: a window's planes equal that part of the slide's, whatever window asks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from wsigen.conditions import mask as torch_mask
from wsigen.conditions.contract import WindowBatch
from wsigen.conditions.registry import conditions_of
from wsigen.masks.conditions import derive_conditions, instance_edges, read_conditions, read_surroundings
from wsigen.masks.demo.mask import demo_mask
from wsigen.masks.resampling import resampled_to
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask
from wsigen.models.config import ModelConfig

WIDTH, HEIGHT = 640, 560
PLANES = ("classes", "edges", "tissue", "glass")


@pytest.fixture(scope="module", params=["all planes", "classes only", "sparse classes", "tissue", "resampled"])
def mask(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("conditions") / "mask.tif"
    demo = demo_mask(WIDTH, HEIGHT, seed=4)
    if request.param == "sparse classes":
        sparse = np.zeros_like(demo.classes)
        sparse[40:60, 500:512], sparse[-30:-20, 100:110], sparse[300, 300] = 3, 2, 6
        demo = MaskWindow(sparse)
    instances, tissue = (
        request.param in ("all planes", "resampled"),
        request.param in ("all planes", "tissue", "resampled"),
    )
    write_slide_mask(path, WIDTH, HEIGHT, 0.5, [demo], instances, tissue)
    with SlideMask.open(path, 6) as opened:
        yield resampled_to(opened, 0.7) if request.param == "resampled" else opened


def test_random_windows_equal_the_same_part_of_the_slide(mask):
    margin = 150
    whole = read_conditions(mask, -margin, -margin, mask.width + 2 * margin, mask.height + 2 * margin, 0.5)
    rng = np.random.default_rng(1)
    for _ in range(25):
        w, h = rng.integers(1, 140, 2)
        x, y = (int(rng.integers(-margin, size + margin - 140)) for size in (mask.width, mask.height))
        part = read_conditions(mask, x, y, int(w), int(h), 0.5)
        crop = (slice(y + margin, y + margin + h), slice(x + margin, x + margin + w))
        for name in PLANES:
            assert np.array_equal(getattr(part, name), getattr(whole, name)[crop]), name


def test_types_and_values(mask):
    planes = read_conditions(mask, 5, 6, 70, 50, 0.5)
    assert [getattr(planes, name).dtype for name in PLANES] == [np.uint8, np.uint8, np.uint8, bool]
    assert all(getattr(planes, name).shape == (50, 70) for name in PLANES)
    assert set(np.unique(planes.tissue)) <= {0, 1, 255} and set(np.unique(planes.edges)) <= {0, 1}


def test_torch_derives_the_same_and_glass_is_told_without(mask):
    rng = np.random.default_rng(2)
    corners = rng.integers(-60, 560, (12, 2)).tolist()
    around = [read_surroundings(mask, x, y, 70, 50, 0.5) for x, y in corners]
    expected = [derive_conditions(one) for one in around]
    arrays = {name: torch.from_numpy(np.stack([one.arrays[name] for one in around])) for name in around[0].arrays}
    wanted = {name: np.stack([getattr(one, name) for one in expected]) for name in PLANES}
    assert np.array_equal(torch_mask.instance_edges(arrays["labels"]).numpy(), wanted["edges"])
    windows = WindowBatch(arrays, torch.tensor(corners), 70, torch.float32)
    of_mask, of_tissue = conditions_of(replace(ModelConfig.preset("tiny"), conditions=("mask", "tissue")))
    (told,), (tissue,) = of_mask.of_windows(windows).values(), of_tissue.of_windows(windows).values()
    assert np.array_equal(told[:, -1].numpy(), wanted["edges"])
    for index in range(6):
        assert np.array_equal(told[:, index].numpy(), wanted["classes"] == index + 1)
    assert np.array_equal(tissue[:, 0].numpy(), np.where(wanted["tissue"] == 255, 0.5, wanted["tissue"]))
    assert of_mask.glass(windows) is None and np.array_equal(of_tissue.glass(windows).numpy(), wanted["glass"])
    parts = [(slice(0, 50), slice(0, 70)), (slice(5, 20), slice(60, 70)), (slice(-6, None), slice(0, 1))]
    for one, planes in zip(around, expected, strict=True):
        assert [one.is_glass(part) for part in parts] == [bool(planes.glass[part].all()) for part in parts]


def test_both_sides_of_a_border_are_edges():
    labels = np.array([[0, 0, 0, 0], [0, 5, 5, 7], [0, 5, 5, 7]])
    assert instance_edges(labels).tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert instance_edges(np.full((4, 4), 9)).sum() == 0


def _opened(tmp_path, window):
    write_slide_mask(
        tmp_path / "m.tif", *window.classes.shape[::-1], 0.5, [window], window.instances is not None,
        window.tissue is not None, overwrite=True,
    )  # fmt: skip
    return SlideMask.open(tmp_path / "m.tif", 6)


def test_touching_nuclei_of_one_class_are_parted_by_instances_only(tmp_path):
    classes = np.full((20, 20), 2, np.uint8)
    instances = np.repeat([[1, 2]], 10, axis=1).repeat(20, axis=0).astype(np.uint32)
    with _opened(tmp_path, MaskWindow(classes, instances)) as mask:
        edges = read_conditions(mask, 0, 0, 20, 20, 0.5).edges
        assert edges[:, 9:11].all() and edges.sum() == 40
    with _opened(tmp_path, MaskWindow(classes)) as mask:
        assert not read_conditions(mask, 0, 0, 20, 20, 0.5).edges.any()


def test_tissue_is_guessed_from_the_distance_to_nuclei(tmp_path):
    classes = np.zeros((400, 400), np.uint8)
    classes[200, 200] = 1
    with _opened(tmp_path, MaskWindow(classes)) as mask:
        planes = read_conditions(mask, 0, 0, 400, 400, 0.5)
    distance = np.hypot(*(np.indices((400, 400)) - 200)) * 0.5
    expected = np.where(distance <= 12, 1, np.where(distance <= 60, 255, 0))
    assert np.array_equal(planes.tissue, expected)
    assert np.array_equal(planes.glass, distance_transform_edt(expected == 0) > 8)


def test_glass_is_known_more_than_eight_pixels_inside_it(tmp_path):
    classes, tissue = np.zeros((80, 80), np.uint8), np.zeros((80, 80), np.uint8)
    tissue[:, :20], tissue[:, 20:30] = 1, 255
    classes[60:70, 60:70] = 3
    with _opened(tmp_path, MaskWindow(classes, None, tissue)) as mask:
        planes = read_conditions(mask, 0, 0, 80, 80, 0.5)
    assert not planes.glass[20, :38].any() and planes.glass[20, 38:].all()
    assert (planes.tissue[60:70, 60:70] == 1).all() and not planes.glass[53:77, 53:77].all()
    assert not planes.glass[60:70, 60:70].any()


def test_a_mask_of_glass_only_is_known_everywhere(tmp_path):
    classes = np.zeros((50, 50), np.uint8)
    with _opened(tmp_path, MaskWindow(classes, None, classes)) as mask:
        assert read_conditions(mask, -20, -20, 90, 90, 0.5).glass.all()
