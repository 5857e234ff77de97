"""Guidance leaves a prediction alone at scale 1 and moves away from the null prediction above it."""

import torch

from wsigen.diffusion.guidance import guide, is_guided


def test_scale_one_is_off():
    conditional, null = torch.randn(2, 4, 3, 8, 8)
    assert guide(conditional, null, 1.0) is conditional
    assert not is_guided(1.0) and is_guided(1.5) and is_guided(0.0)


def test_scale_moves_along_the_difference():
    conditional, null = torch.randn(2, 4, 3, 8, 8)
    torch.testing.assert_close(guide(conditional, null, 0.0), null)
    torch.testing.assert_close(guide(conditional, null, 3.0), 3 * conditional - 2 * null)
