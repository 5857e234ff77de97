"""A batch of conditions: parts of it, other tensors under some names, and the order in which a network takes them."""

import numpy as np
import pytest
import torch

from wsigen.conditions.contract import ConditionBatch, Crops, TensorSpec
from wsigen.conditions.registry import specs_of
from wsigen.models.config import ModelConfig


@pytest.fixture
def batch():
    stain, mask = torch.arange(5.0)[:, None], torch.arange(5.0).view(5, 1, 1, 1).expand(5, 2, 4, 4)
    known = torch.zeros(5, 1, 4, 4, dtype=torch.bool)
    return ConditionBatch({"stain": stain, "mask": mask, "context": torch.zeros(5, 3, 4, 4), "known": known})


def test_a_batch_is_split_into_parts_and_a_rest(batch):
    parts = batch.split(2)
    assert [len(part["stain"]) for part in parts] == [2, 2, 1]
    for name in batch:
        assert torch.equal(torch.cat([part[name] for part in parts]), batch[name])
    assert [list(part) for part in parts] == [list(batch)] * 3


def test_tensors_come_in_the_order_of_the_specs_whatever_that_of_the_batch(batch):
    specs = (TensorSpec("known", "pixels", 1), TensorSpec("stain", "vector", 1))
    known, stain = batch.in_order(specs)
    assert known is batch.known and stain is batch["stain"]
    with pytest.raises(KeyError, match="organ"):
        batch.in_order((TensorSpec("organ", "vector", 3),))


def test_replaced_tensors_leave_the_batch_as_it_was(batch):
    before = batch["stain"]
    other = batch.replaced(stain=before + 1, organ=torch.ones(5, 3))
    assert torch.equal(other["stain"], before + 1) and other["mask"] is batch["mask"] and "organ" in other
    assert batch["stain"] is before and "organ" not in batch and len(batch) == 4


def test_another_number_format_is_of_all_tensors(batch):
    assert {tensor.dtype for tensor in batch.to(torch.bfloat16).values()} == {torch.bfloat16}
    assert batch.known.dtype == torch.bool


def test_the_plane_of_guidance_follows_the_other_planes():
    names = [spec.name for spec in specs_of(ModelConfig.preset("tiny"))]
    assert names == ["stain", "mask", "tissue", "context", "known", "present"]
    assert [spec.name for spec in specs_of(ModelConfig.preset("tiny-mask"))] == [
        "density",
        "context",
        "known",
        "present",
    ]


def test_planes_of_crops_have_names_and_crops_have_parts():
    planes = torch.arange(3 * 5 * 4, dtype=torch.uint8).view(3, 5, 2, 2)
    crops = Crops(planes, ("red", "green", "blue", "classes", "edges"), torch.tensor([4, 5, 6]))
    assert torch.equal(crops.picture, planes[:, :3]) and torch.equal(crops["edges"], planes[:, 4])
    for which in (slice(1, 3), np.array([1, 2]), torch.tensor([False, True, True])):
        part = crops.part(which)
        assert torch.equal(part.planes, planes[1:]) and part.group.tolist() == [5, 6] and part.names == crops.names
    with pytest.raises(ValueError, match="tuple"):
        crops["depth"]
