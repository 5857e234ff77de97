"""Finding nuclei and scoring them against masks."""

import numpy as np
import pytest
import torch

from wsigen.evaluation.fidelity import Found, find_nuclei, instances_of, match, score, separate, shuffled
from wsigen.models.config import LIZARD_CLASSES
from wsigen.networks.measuring import SegmentationNetwork, network_config
from wsigen.training.fields import nucleus_depth


def two_touching(kinds=(2, 3)):
    instances = np.zeros((40, 60), np.int32)
    yy, xx = np.mgrid[:40, :60]
    instances[(yy - 20) ** 2 + (xx - 20) ** 2 < 100] = 5
    instances[((yy - 20) ** 2 + (xx - 39) ** 2 < 100) & (instances == 0)] = 9
    classes = np.where(instances == 5, kinds[0], np.where(instances == 9, kinds[1], 0)).astype(np.uint8)
    return classes, instances


def perfect(classes, instances):
    probability = np.eye(7)[classes].transpose(2, 0, 1) * 0.94 + 0.01
    return separate(probability, nucleus_depth(instances) / 255)


def test_touching_nuclei_are_parted_and_keep_their_classes():
    classes, instances = two_touching()
    found = perfect(classes, instances)
    assert sorted(found.classes.tolist()) == [0, 2, 3]
    assert np.array_equal(found.instances > 0, instances > 0)
    assert np.mean((found.instances == found.instances[20, 12]) == (instances == 5)) > 0.97
    assert set(np.unique(found.plane)) == {0, 2, 3}


def test_nuclei_of_one_class_are_parted_too():
    classes, instances = two_touching((2, 2))
    assert perfect(classes, instances).instances.max() == 2
    assert instances_of(classes).max() == 1  # what connected pixels alone would say


def test_a_nucleus_without_core_is_found_and_specks_are_not():
    probability = np.zeros((7, 30, 30))
    probability[0] = 0.99
    probability[:, 4:8, 4:24], probability[:, 20:22, 20:22] = 0, 0
    probability[6, 4:8, 4:24] = probability[6, 20:22, 20:22] = 1
    found = separate(probability, np.zeros((30, 30)))
    assert found.instances.max() == 1 and found.classes.tolist() == [0, 6]
    assert separate(probability[:, :3, :3], np.zeros((3, 3))).instances.max() == 0


def test_a_perfect_find_scores_one_and_none_scores_nothing():
    classes, instances = two_touching()
    rows = score([perfect(classes, instances)], classes[None], instances[None], 6)[0].rows(LIZARD_CLASSES.names)
    assert rows[0]["class"] == "nuclei of any class" and rows[0]["nuclei"] == 2
    for row in (rows[0], rows[2], rows[3]):
        assert row["dice"] == pytest.approx(1) and row["pq"] > 0.95 and row["rq"] == 1 and row["count error"] == 0
    assert rows[1]["dice"] is None and rows[1]["pq"] is None
    nothing = Found(np.zeros_like(instances), np.zeros(1, int), np.zeros_like(classes))
    rows = score([nothing], classes[None], instances[None], 6)[0].rows(LIZARD_CLASSES.names)
    assert rows[0]["pq"] == rows[0]["dice"] == 0 and rows[0]["count error"] == 1


def test_a_find_of_another_class_counts_for_no_class():
    classes, instances = two_touching()
    found = perfect(*two_touching((2, 4)))
    scores, matchings = score([found], classes[None], instances[None], 6)
    rows = scores.rows(LIZARD_CLASSES.names)
    assert rows[0]["pq"] > 0.95 and rows[2]["pq"] > 0.95
    assert rows[3]["pq"] == rows[4]["pq"] == 0
    assert [(n.id, n.kind, n.found_kind) for n in matchings[0].nuclei] == [(5, 2, 2), (9, 3, 4)]


def test_matching_needs_half_of_the_union():
    instances = np.zeros((20, 40), np.int32)
    instances[5:15, 5:15] = 1
    classes = (instances > 0).astype(np.uint8)

    def shifted(by):
        moved = np.roll(instances, by, axis=1)
        return match(classes, instances, Found(moved, np.array([0, 1]), (moved > 0).astype(np.uint8)))

    near, far = shifted(3), shifted(4)
    assert near.nuclei[0].found_kind == 1 and near.nuclei[0].iou == pytest.approx(70 / 130) and not near.unmatched
    assert far.nuclei[0].found_kind == 0 and far.nuclei[0].iou == pytest.approx(60 / 140)
    assert far.unmatched == [(1, 13.5, 9.5)]
    assert (near.nuclei[0].x, near.nuclei[0].y, near.nuclei[0].area) == (9.5, 9.5, 100)


def test_any_size_of_picture_is_read():
    network = SegmentationNetwork(network_config("segmenter-tiny", "segment", LIZARD_CLASSES, 0.5)).eval()
    patches = np.random.default_rng(0).integers(0, 256, (3, 37, 50, 3), np.uint8)
    found = find_nuclei(network, patches, torch.device("cpu"))
    assert len(found) == 3 and all(f.instances.shape == f.plane.shape == (37, 50) for f in found)


def test_shuffling_leaves_nothing_in_place():
    for count in (2, 3, 17):
        order = shuffled(count)
        assert sorted(order) == list(range(count)) and (order != np.arange(count)).all()
