"""Condition planes: their order, and the null condition of guidance."""

import torch
from wsigen.models.conditioning import UNKNOWN_TISSUE, condition_planes, null_planes


def planes_of(class_count=3):
    classes = torch.tensor([[[0, 1], [2, 3]]], dtype=torch.uint8)
    edges = torch.tensor([[[0, 1], [1, 0]]], dtype=torch.uint8)
    tissue = torch.tensor([[[0, 1], [UNKNOWN_TISSUE, 1]]], dtype=torch.uint8)
    return condition_planes(classes, edges, tissue, class_count)


def test_planes_stand_in_order():
    planes = planes_of()
    assert planes.shape == (1, 6, 2, 2) and planes.dtype == torch.float32
    expected = [
        [[0, 1], [0, 0]],  # class 1
        [[0, 0], [1, 0]],
        [[0, 0], [0, 1]],
        [[0, 1], [1, 0]],  # edges
        [[0, 1], [0.5, 1]],  # tissue
        [[1, 1], [1, 1]],  # present
    ]
    assert torch.equal(planes[0], torch.tensor(expected))


def test_planes_lie_channels_last_in_the_dtype_asked_for():
    byte = torch.ones((2, 4, 4), dtype=torch.uint8)
    planes = condition_planes(byte, byte, byte, 6, torch.bfloat16)
    assert planes.shape == (2, 9, 4, 4) and planes.dtype == torch.bfloat16
    assert planes.is_contiguous(memory_format=torch.channels_last)


def test_the_null_condition_is_zero_everywhere():
    planes = planes_of()
    assert not null_planes(planes).any()
    assert null_planes(planes).shape == planes.shape


def test_only_dropped_samples_become_null():
    planes = torch.cat([planes_of(), planes_of(), planes_of()])
    dropped = null_planes(planes, torch.tensor([True, False, True]))
    assert not dropped[[0, 2]].any()
    assert torch.equal(dropped[1], planes[1])


def test_an_empty_mask_on_unknown_tissue_is_not_the_null_condition():
    empty = torch.zeros((1, 2, 2), dtype=torch.uint8)
    planes = condition_planes(empty, empty, torch.full_like(empty, UNKNOWN_TISSUE), 6)
    assert torch.all(planes[:, -1] == 1)
    assert not torch.equal(planes, null_planes(planes))
