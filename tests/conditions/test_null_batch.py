"""What networks are told: planes of the mask and the tissue, and the null condition of guidance."""

import pytest
import torch

from wsigen.conditions.context import context_tensors
from wsigen.conditions.contract import ConditionBatch
from wsigen.conditions.guidance import null_batch, present_plane, say_scale
from wsigen.conditions.mask import mask_planes
from wsigen.conditions.registry import conditions_of
from wsigen.conditions.tissue import tissue_plane
from wsigen.masks.window import UNKNOWN
from wsigen.models.config import ModelConfig

CONDITIONS = conditions_of(ModelConfig.preset("tiny"))
GUIDED = ("mask", "tissue", "present")


def batch_of(classes, edges, tissue, class_count=3):
    """Windows with those planes, of which every second pixel is known."""
    mask = mask_planes(classes, edges, class_count)
    known = torch.arange(classes[0].numel()).view(1, 1, *classes.shape[1:]).expand(len(classes), 1, -1, -1) % 2
    planes = {"mask": mask, "tissue": tissue_plane(tissue), "present": present_plane(mask)}
    given = {"context": 0.5 * known.float().expand(-1, 3, -1, -1), "known": known.float()}
    return ConditionBatch({"stain": torch.rand(len(classes), 6), **planes, **given})


@pytest.fixture
def batch():
    classes = torch.tensor([[[0, 1], [2, 3]]], dtype=torch.uint8)
    edges = torch.tensor([[[0, 1], [1, 0]]], dtype=torch.uint8)
    tissue = torch.tensor([[[0, 1], [UNKNOWN, 1]]], dtype=torch.uint8)
    return batch_of(*(plane.repeat(3, 1, 1) for plane in (classes, edges, tissue)))


def test_planes_stand_in_order(batch):
    expected = [
        [[0, 1], [0, 0]],  # class 1
        [[0, 0], [1, 0]],
        [[0, 0], [0, 1]],
        [[0, 1], [1, 0]],  # edges
        [[0, 1], [0.5, 1]],  # tissue
        [[1, 1], [1, 1]],  # present
    ]
    planes = torch.cat([batch[name] for name in GUIDED], 1)
    assert planes.shape == (3, 6, 2, 2) and planes.dtype == torch.float32
    assert all(torch.equal(window, torch.tensor(expected)) for window in planes)


def test_planes_come_in_the_dtype_asked_for():
    byte = torch.ones((2, 4, 4), dtype=torch.uint8)
    mask, tissue = mask_planes(byte, byte, 6, torch.bfloat16), tissue_plane(byte, torch.bfloat16)
    assert mask.shape == (2, 7, 4, 4) and tissue.shape == (2, 1, 4, 4)
    assert mask.dtype == tissue.dtype == present_plane(mask).dtype == torch.bfloat16


def test_the_null_condition_is_zero_in_all_that_is_guided_and_leaves_the_rest(batch):
    null = null_batch(CONDITIONS, batch)
    assert set(null) == set(batch)
    for name in batch:
        assert null[name].shape == batch[name].shape
        assert not null[name].any() if name in GUIDED else torch.equal(null[name], batch[name]), name


def test_only_dropped_samples_become_null(batch):
    dropped = null_batch(CONDITIONS, batch, torch.tensor([True, False, True]))
    for name in GUIDED:
        assert not dropped[name][[0, 2]].any()
        assert torch.equal(dropped[name][1], batch[name][1])
    assert all(torch.equal(dropped[name], batch[name]) for name in batch if name not in GUIDED)


def test_a_guided_vector_is_dropped_by_sample_too(batch):
    class Told(type(CONDITIONS[0])):
        guided = True

        def null(self, told):
            return {"stain": torch.full_like(told["stain"], -1)}

    dropped = null_batch([Told(CONDITIONS[0].config)], batch, torch.tensor([False, True, False]))
    assert (dropped["stain"][1] == -1).all() and torch.equal(dropped["stain"][::2], batch["stain"][::2])


def test_an_empty_mask_on_unknown_tissue_is_not_the_null_condition():
    empty = torch.zeros((1, 2, 2), dtype=torch.uint8)
    batch = batch_of(empty, empty, torch.full_like(empty, UNKNOWN), 6)
    null = null_batch(CONDITIONS, batch)
    assert (batch["present"] == 1).all() and not torch.equal(batch["present"], null["present"])


def test_each_sample_can_be_told_its_own_guidance(batch):
    told = say_scale(batch, torch.tensor([1.0, 1.5, 2.0]))
    assert all(torch.equal(told[name], batch[name]) for name in batch if name != "present")
    assert torch.equal(told["present"][2], say_scale(batch, 2)["present"][2]), "a whole number is a scale too"
    assert torch.equal(told["present"][1], say_scale(batch, 1.5)["present"][1])
    assert torch.equal(told["present"][0], batch["present"][0])
    assert not say_scale(null_batch(CONDITIONS, batch), 1.5)["present"].any(), "the null condition stays"


def test_nothing_is_seen_of_pixels_that_are_not_known():
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    known = torch.rand(2, 8, 8) < 0.5
    told = context_tensors(pixels, known)
    assert torch.equal(told["known"], known[:, None])
    assert not told["context"].permute(0, 2, 3, 1)[~known].any()
    assert torch.equal(told["context"].permute(0, 2, 3, 1)[known], pixels[known].float() / 127.5 - 1)
