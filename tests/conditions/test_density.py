"""The condition of mask models: what the network sees of a layout."""

from dataclasses import replace

import pytest
import torch

from wsigen.conditions.contract import WindowBatch
from wsigen.conditions.density import Density
from wsigen.layouts.architecture import sampled_layout
from wsigen.models.config import LIZARD_CLASSES, ModelConfig

TINY = ModelConfig.preset("tiny-mask")


@pytest.fixture(scope="module")
def mixed():
    return sampled_layout("mixed", 3000, 2000, 5, LIZARD_CLASSES, 0.5)


def window_of(layout, x, y, dtype=torch.float32):
    cells = torch.from_numpy(layout.read(x, y, 128, 128).cells)[None]
    return WindowBatch({"cells": cells}, torch.tensor([[x, y]]), 128, dtype)


def test_the_network_sees_one_layout_whatever_the_window(mixed):
    """Windows interpolate the same values at the same pixels; the tissue plane agrees with them."""
    density, corners = Density(TINY), [(0, 0), (40, 24), (-8, 1000)]
    seen = [density.of_windows(window_of(mixed, *corner))["density"][0].numpy() for corner in corners]
    assert abs(seen[0][:, 24:, 40:] - seen[1][:, :-24, :-40]).max() < 1e-6
    glass = seen[1][6] > 0.5
    assert (glass == (mixed.tissue(40, 24, 128, 128) == 0)).all()


def test_planes_come_in_the_dtype_asked_for_and_glass_is_sure(mixed):
    density, window = Density(TINY), window_of(mixed, -8, 1000, torch.bfloat16)
    (planes,) = density.of_windows(window).values()
    assert planes.dtype == torch.bfloat16 and planes.shape == (1, density.specs[0].channels, 128, 128)
    glass = density.glass(window)
    assert glass.shape == (1, 128, 128) and glass.any()
    assert (planes[:, 6][glass] == 1).all() and not planes[:, :6][:, :, glass[0]].any()


def test_a_model_that_paints_too_little_is_asked_for_more(mixed):
    """Half the nuclei of a class: twice its density is asked for; regions and other classes stay."""
    window = window_of(mixed, 1500, 400)
    config = replace(TINY, response=(1.0, 1.0, 0.5, 1.0, 1.0, 1.0))
    plain, asked = (Density(model).of_windows(window)["density"] for model in (TINY, config))
    assert plain[0, 2].max() > 0.1
    torch.testing.assert_close(asked[0, 2].square(), 2 * plain[0, 2].square().clamp(max=0.5))
    others = [channel for channel in range(plain.shape[1]) if channel != 2]
    assert torch.equal(asked[:, others], plain[:, others])
    assert torch.equal(Density(TINY).glass(window), Density(config).glass(window))
    assert ModelConfig.from_json(config.to_json()) == config
