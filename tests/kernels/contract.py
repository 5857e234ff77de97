"""What every implementation of a kernel promises, as assertions."""

import importlib.util

import pytest
import torch


def needs_triton():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")


def assert_as_good_as(got, rival, reference, slack=0.0):
    """Assert that ``got`` errs at most twice as much as ``rival``, of the same number format, from float64's result.

    Where the rival is exact, the last bit of the largest value is allowed; ``slack`` is allowed in any case.
    """
    assert got.dtype == rival.dtype and got.shape == rival.shape == reference.shape
    assert got.isfinite().all()
    mine, its = ((tensor.double() - reference).abs().max().item() for tensor in (got, rival))
    floor = torch.finfo(got.dtype).eps * reference.abs().max().item()
    assert mine <= 2 * its + floor + slack, f"error {mine:.3g}, torch's {its:.3g}, floor {floor:.3g}"
