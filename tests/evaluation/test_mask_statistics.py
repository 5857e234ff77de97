"""Statistics of masks, on masks whose statistics are known."""

import numpy as np
import pytest

from wsigen.errors import SettingsError
from wsigen.evaluation.mask_report import MaskEvaluation, evaluate_masks, floor_of
from wsigen.evaluation.mask_statistics import RADII_UM, Field, border_profile, measure, nuclei_of
from wsigen.masks.demo.mask import write_demo_mask
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask

NAMES = ("neutrophil", "epithelial", "lymphocyte", "plasma", "eosinophil", "connective")
MIDDLES = (RADII_UM[1:] + RADII_UM[:-1]) / 2


def dotted(points: np.ndarray, kinds: np.ndarray, side: int) -> MaskWindow:
    """Nuclei of 3 x 3 px at points (N, 2) y, x."""
    classes, instances = np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint32)
    for number, ((y, x), kind) in enumerate(zip(points, kinds), 1):
        classes[y - 1 : y + 2, x - 1 : x + 2], instances[y - 1 : y + 2, x - 1 : x + 2] = kind, number
    return MaskWindow(classes, instances, np.ones((side, side), np.uint8))


def field(mask: MaskWindow, known: np.ndarray | None = None) -> Field:
    known = np.ones(mask.shape, bool) if known is None else known
    return Field(mask.classes, mask.instances.astype(np.int64), mask.tissue, known, 0.5)


def scattered(seed: int, side: int = 500, count: int = 700) -> MaskWindow:
    """Nuclei anywhere, but not on one another."""
    rng = np.random.default_rng(seed)
    free, points = np.ones((side, side), bool), []
    while len(points) < count:
        y, x = rng.integers(3, side - 3, 2)
        if free[y, x]:
            points.append((y, x))
            free[y - 3 : y + 4, x - 3 : x + 4] = False
    return dotted(np.array(points), rng.integers(2, 4, count), side)


def test_nuclei_without_order_have_a_flat_pair_correlation():
    """Also where half of a field is unknown, which takes pairs away unevenly."""
    half = np.tri(500, dtype=bool)
    fields = []
    for seed in range(6):
        mask = scattered(seed)
        mask.classes[~half] = mask.instances[~half] = 0
        fields += [field(scattered(seed + 10)), field(mask, half)]
    measured = measure(fields, NAMES)
    for pair in ("epithelial - epithelial", "epithelial - lymphocyte", "lymphocyte - lymphocyte"):
        g = measured.values[f"g(r): {pair}"]
        assert g[MIDDLES > 6] == pytest.approx(1, abs=0.2) and g[MIDDLES > 6].mean() == pytest.approx(1, abs=0.07)
    assert measured.values["g(r): epithelial - epithelial"][0] == 0  # they keep apart
    low, high = measured.bands["g(r): epithelial - lymphocyte"]
    assert (low <= high).all()


def test_nuclei_in_clumps_have_pairs_close_by():
    rng = np.random.default_rng(1)
    middles = rng.integers(40, 460, (40, 1, 2))
    points = np.unique(
        (middles + 8 * rng.permuted(np.mgrid[-1:2, -1:2].reshape(2, 9).T, axis=0)).reshape(-1, 2), axis=0
    )
    g = measure([field(dotted(points, np.full(len(points), 6), 500))], NAMES).values["g(r): connective - connective"]
    assert g[1:5].max() > 5 and abs(g[-5:].mean() - 1) < 0.3


def test_sizes_shapes_and_neighbours():
    classes, instances = np.zeros((100, 100), np.uint8), np.zeros((100, 100), np.uint32)
    instances[10:20, 10:20], instances[10:20, 20:24], instances[60:64, 30:70] = 1, 2, 3
    instances[0:5, 50:55] = 4  # goes on beyond the border
    classes[instances > 0] = 2
    mask = MaskWindow(classes, instances, np.ones((100, 100), np.uint8))
    nuclei, whole = nuclei_of(field(mask))
    assert whole.tolist() == [True, True, True, False]
    assert nuclei.touching.tolist() == [True, True, False, False]
    assert nuclei.area.tolist() == [25.0, 10.0, 40.0, 6.25]
    assert nuclei.eccentricity[0] == 0 and nuclei.eccentricity[2] > 0.99 and abs(nuclei.angle[2]) < 1e-6
    values = measure([field(mask)], NAMES).values
    assert values["nuclei per mm2"][1] == pytest.approx(4 / 0.0025)
    assert values["area, um2: mean"][1] == 25 and np.isnan(values["area, um2: mean"][0])
    assert values["share that touches another"][1] == 0.5


def test_nuclei_side_by_side_are_told_from_nuclei_in_a_row():
    instances = np.zeros((200, 200), np.uint32)
    for number in range(20):
        instances[50:62, 8 + 8 * number : 13 + 8 * number] = number + 1
    beside = MaskWindow(np.where(instances > 0, 2, 0).astype(np.uint8), instances, np.ones((200, 200), np.uint8))
    assert measure([field(beside)], NAMES).values["side by side"][0] > 0.99
    instances = np.zeros((200, 400), np.uint32)
    for number in range(20):
        instances[50:55, 8 + 18 * number : 20 + 18 * number] = number + 1
    in_a_row = MaskWindow(np.where(instances > 0, 2, 0).astype(np.uint8), instances, np.ones((200, 400), np.uint8))
    assert measure([field(in_a_row)], NAMES).values["side by side"][0] < 0.01


def test_borders_of_windows_show_where_nuclei_avoid_them(tmp_path):
    side, window, overlap = 2000, 256, 32
    plain = scattered(3, side, 9000)
    write_slide_mask(tmp_path / "plain.tif", side, side, 0.5, [plain], True, True)
    number, *_ = border_profile(tmp_path / "plain.tif", 6, window, overlap).number
    assert number == pytest.approx(1, abs=0.1)
    edges = [start for i in range(1, 9) for start in [i * 224 + 16 * (i % 2)]]
    ids = np.unique(np.concatenate([plain.instances[:, e - 5 : e + 5].ravel() for e in edges]))
    gone = np.isin(plain.instances, ids)
    gapped = MaskWindow(np.where(gone, 0, plain.classes), np.where(gone, 0, plain.instances), plain.tissue)
    write_slide_mask(tmp_path / "gapped.tif", side, side, 0.5, [gapped], True, True)
    profile = border_profile(tmp_path / "gapped.tif", 6, window, overlap)
    assert profile.number[2] < 0.75 and profile.control[0] > 0.95


def test_a_mask_is_like_itself_in_the_report(tmp_path):
    for seed in (1, 2):
        write_demo_mask(tmp_path / f"{seed}.tif", 1500, 1100, seed)
    report = evaluate_masks(MaskEvaluation(tmp_path / "1.tif", tmp_path / "same", tmp_path / "1.tif"))
    rows = {(row["measure"], row["class"]): row for row in report.sections[0].rows}
    assert all(row["ratio"] in (None, 1.0) for row in rows.values())
    assert all(row["mean difference"] == 0 for row in report.sections[1].rows)
    other = evaluate_masks(MaskEvaluation(tmp_path / "1.tif", tmp_path / "other", tmp_path / "2.tif"))
    assert other.sections[1].pictures and (tmp_path / "other" / other.sections[1].pictures[0]).is_file()
    ratio = {(row["measure"], row["class"]): row["ratio"] for row in other.sections[0].rows}
    assert ratio["area, um2: mean", "epithelial"] == pytest.approx(1, abs=0.1)
    with pytest.raises(SettingsError, match="give a SAMPLED mask, or --model"):
        evaluate_masks(MaskEvaluation(tmp_path / "1.tif", tmp_path / "none"))


def test_the_floor_tells_how_far_halves_lie_apart():
    fields = [field(scattered(seed, 300, 200 if seed % 2 else 60)) for seed in range(6)]
    floors = floor_of(measure(fields, NAMES))
    assert floors["nuclei per mm2"][1] > 1.3 and np.isnan(floors["nuclei per mm2"][0])
