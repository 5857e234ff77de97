"""What a network is told so that it paints the stain that is asked for."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsigen.models.config import ModelConfig
from wsigen.models.stain import StainStyle
from wsigen.models.stain_response import StainResponse, fit_response, term_slopes, terms

CLAMP = 2.5
TINY = ModelConfig.preset("tiny")


def response_of(degree, seed=0):
    """A network that follows every number by half or more, and mixes them a little."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((6, 7 if degree == 1 else 28))
    rows[:, 0] = rng.uniform(-0.3, 0.3, 6)
    rows[:, 1:7] = np.diag(rng.uniform(0.5, 1.3, 6)) + rng.uniform(-0.08, 0.08, (6, 6))
    rows[:, 7:] = rng.uniform(-0.01, 0.01, (6, rows.shape[1] - 7))
    return StainResponse(tuple(map(tuple, rows)))


@pytest.mark.parametrize("degree", [1, 2])
@settings(deadline=None, max_examples=25)
@given(told=st.lists(st.floats(-2.0, 2.0), min_size=6, max_size=6), seed=st.integers(0, 50))
def test_what_can_be_painted_is_painted(degree, told, seed):
    response = response_of(degree, seed)
    asked = response.painted(np.array(told))
    found = response.told(asked, CLAMP)
    assert np.abs(found).max() <= CLAMP
    np.testing.assert_allclose(response.painted(found), asked, atol=0.03)


@pytest.mark.parametrize("degree", [1, 2])
def test_what_is_out_of_reach_is_painted_as_near_as_can_be(degree):
    response, asked = response_of(degree), np.array([6.0, 0.2, -7.0, 0.1, 0.0, 4.0])
    found = response.told(asked, CLAMP)
    assert np.abs(found).max() == CLAMP
    least = np.linalg.norm(response.painted(found) - asked)
    others = np.random.default_rng(1).uniform(-CLAMP, CLAMP, (20_000, 6))
    nearby = np.clip(found + np.random.default_rng(2).normal(0, 0.1, (5_000, 6)), -CLAMP, CLAMP)
    rival = np.linalg.norm(response.painted(np.concatenate([others, nearby])) - asked, axis=1).min()
    assert least <= rival + 0.02


def test_many_styles_are_solved_as_one_by_one_is():
    response = response_of(1)
    asked = np.random.default_rng(0).normal(size=(2, 3, 6))
    together = response.told(asked, CLAMP)
    assert together.shape == asked.shape
    assert np.array_equal(together[1, 2], response.told(asked[1, 2], CLAMP))


def test_slopes_are_the_derivatives_of_the_terms():
    at, step = np.array([0.3, -1.0, 2.0, 0.0, 0.7, -0.2]), 1e-6
    for degree in (1, 2):
        numeric = [(terms(at + step * e, degree) - terms(at - step * e, degree)) / (2 * step) for e in np.eye(6)]
        np.testing.assert_allclose(term_slopes(at, degree), np.transpose(numeric), atol=1e-8)


@pytest.mark.parametrize("degree", [1, 2])
def test_a_response_is_found_from_paintings_of_it(degree):
    truth = response_of(degree)
    told = np.random.default_rng(0).uniform(-2, 2, (80, 6))
    found = fit_response(told, truth.painted(told), degree, ridge=1e-6)
    np.testing.assert_allclose(found.rows, truth.rows, atol=1e-4)


def test_without_paintings_a_network_is_held_to_paint_what_it_is_told():
    found = fit_response(np.zeros((3, 6)), np.zeros((3, 6)), 1, ridge=1.0)
    np.testing.assert_allclose(found.painted(np.arange(6.0)), np.arange(6.0), atol=1e-6)


def test_a_model_without_a_response_is_told_what_is_asked_for():
    vector = np.array([[0.1, 0.2, 0.3, 0.1, 0.2, 0.1], [9.0] * 6])
    assert np.array_equal(TINY.told_stain(vector), TINY.style_range.normalise(vector))
    assert TINY.told_stain(vector).dtype == np.float32


def test_a_model_with_a_response_is_told_what_yields_what_is_asked_for():
    config = replace(TINY, stain_response=response_of(1))
    vector = np.array(config.styles[0].vector)
    told = config.told_stain(vector)
    assert told.dtype == np.float32 and not np.allclose(told, config.style_range.normalise(vector), atol=0.05)
    np.testing.assert_allclose(config.painted_stain(vector), vector, atol=0.003)


@pytest.mark.parametrize("response", [None, response_of(1)])
def test_only_a_stain_out_of_reach_is_remarked_on(response):
    config = replace(TINY, stain_response=response)
    assert config.stain_note(config.styles[0]) is None
    dark = StainStyle("tar", (0.9, 0.4, 0.2, 0.14, 0.18, 0.1))
    note = config.stain_note(dark)
    assert note is not None and "\n" not in note
    assert note.startswith("style tar is out of this model's reach") and note.endswith("not 0.900")
