"""The error of a prediction at known pixels, carried over their border."""

import pytest
import torch

from wsigen.diffusion.continuity import RING_GAINS, Continuity


def left_known(width: int, side: int = 12) -> torch.Tensor:
    known = torch.zeros(1, 1, side, side, dtype=torch.bool)
    known[..., :width] = True
    return known


def test_a_constant_error_falls_by_the_gains_of_the_rings():
    known = left_known(4)
    truth, prediction = torch.full((1, 3, 12, 12), 0.5), torch.zeros(1, 3, 12, 12)
    corrected = Continuity(known).correct(prediction, truth * known)
    expected = [0.0] * 4 + [0.5 * gain for gain in RING_GAINS] + [0.0] * 5
    torch.testing.assert_close(corrected[0, 1, 6], torch.tensor(expected))


@pytest.mark.parametrize("width", [0, 12])
def test_nothing_changes_without_a_border(width):
    prediction = torch.randn(1, 3, 12, 12)
    assert torch.equal(Continuity(left_known(width)).correct(prediction, torch.zeros_like(prediction)), prediction)


def test_it_follows_any_shape_and_is_alike_in_all_four_directions():
    known = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    known[..., 4, 4] = True
    truth = torch.ones(1, 1, 9, 9)
    field = Continuity(known).correct(torch.zeros(1, 1, 9, 9), truth * known)
    torch.testing.assert_close(field, field.transpose(2, 3))
    torch.testing.assert_close(field, field.flip(2))
    assert field[0, 0, 4, 5] == pytest.approx(RING_GAINS[0]) and field[0, 0, 4, 8] == 0


def test_errors_that_are_correlated_over_the_border_shrink():
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(64, 1, 24, 24, generator=generator)
    error = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)
    known = left_known(10, 24)
    truth = torch.zeros_like(error)
    corrected = Continuity(known.expand(64, -1, -1, -1)).correct(truth + error, truth)
    before, after = (field[..., 10].square().mean() for field in (error, corrected))
    assert after < 0.5 * before


def test_a_window_does_not_depend_on_its_batch():
    generator = torch.Generator().manual_seed(5)
    known = torch.rand(3, 1, 10, 10, generator=generator) < 0.3
    x0, context = torch.randn(2, 3, 3, 10, 10, generator=generator)
    together = Continuity(known).correct(x0, context)
    for row in range(3):
        one = slice(row, row + 1)
        torch.testing.assert_close(Continuity(known[one]).correct(x0[one], context[one]), together[one])
