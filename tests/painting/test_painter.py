"""One batch: a window's pixels depend on the window alone, known pixels stay, glass is glass."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from wsigen.conditions.context import from_uint8, to_uint8
from wsigen.errors import SettingsError
from wsigen.masks.conditions import derive_conditions, read_surroundings
from wsigen.masks.slide_mask import SlideMask
from wsigen.models.stain_response import StainResponse
from wsigen.networks.nasdm import NasdmModel
from wsigen.painting.painter import Painter, WindowJob
from wsigen.painting.slide_worker import fixed_threads, make_painter

W = 64


@pytest.fixture(scope="module")
def model(model_path):
    return NasdmModel.from_pretrained(model_path).to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def painter(spec, model):
    with fixed_threads():
        yield make_painter(spec, model)


@pytest.fixture(scope="module")
def job_at(mask_path):
    mask = SlideMask.open(mask_path, 6)

    def make(x, y, context=None, known=None):
        context = np.zeros((W, W, 3), np.uint8) if context is None else context
        known = np.zeros((W, W), bool) if known is None else known
        return WindowJob(x, y, read_surroundings(mask, x, y, W, W, 0.5), context, known)

    return make


def strips(seed=0):
    """Context on two sides, as a window of the second stage sees it."""
    known = np.zeros((W, W), bool)
    known[:, :8] = known[:, -8:] = True
    context = np.random.default_rng(seed).integers(0, 256, (W, W, 3), dtype=np.uint8)
    return {"context": np.where(known[..., None], context, 0).astype(np.uint8), "known": known}


def test_the_model_says_how_short_the_final_step_is(spec, model_path):
    model = NasdmModel.from_pretrained(model_path)
    evenly = make_painter(spec, model, 4).sampler.timesteps
    model.config = replace(model.config, final_step=0.5)
    shorter = make_painter(spec, model, 4).sampler.timesteps
    assert shorter[0] == evenly[0] and shorter[-1] == pytest.approx(999 * 0.5 / 3.5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pixels_depend_neither_on_the_row_nor_on_the_company(spec, model_path, job_at, dtype):
    with fixed_threads():
        model = NasdmModel.from_pretrained(model_path).to(getattr(torch, dtype), memory_format=torch.channels_last)
        painter = make_painter(replace(spec, dtype=dtype), model)
        job, a, b, c = job_at(8, 8, **strips()), job_at(120, 60), job_at(0, 180), job_at(100, 100, **strips(1))
        alone = painter.paint([job])[0]
        assert alone.std() > 10, "an image, not a constant"
        for batch, row in [([job, a, b, c], 0), ([a, b, c, job], 3), ([c, job], 1), ([job, job, a], 1)]:
            assert np.array_equal(painter.paint(batch)[row], alone)


def test_known_pixels_come_back_as_they_were(painter, job_at):
    given = strips()
    pixels = painter.paint([job_at(8, 8, **given)])[0]
    assert np.array_equal(pixels[given["known"]], given["context"][given["known"]])
    assert not np.array_equal(pixels[:, 20:40], given["context"][:, 20:40])


def test_glass_is_white_and_a_painted_neighbour_wins_over_it(painter, job_at):
    job = job_at(190, 100)
    pixels = painter.paint([job])[0]
    glass = derive_conditions(job.data).glass
    assert glass.any() and not glass.all()
    assert (pixels[glass] == painter.glass_rgb).all()
    known = np.zeros((W, W), bool)
    known[:8] = True
    context = np.where(known[..., None], 77, 0).repeat(3, axis=2).astype(np.uint8)
    assert (painter.paint([job_at(190, 100, context, known)])[0][:8] == 77).all()


def test_context_style_mask_and_seed_all_matter(spec, model, painter, job_at):
    with fixed_threads():
        plain = painter.paint([job_at(8, 8)])
        assert not np.array_equal(painter.paint([job_at(8, 8, **strips())])[:, :, 8:-8], plain[:, :, 8:-8])
        for other in (
            make_painter(replace(spec, seed=8), model),
            make_painter(replace(spec, style=replace(spec.style, vector=(0.3, 0.3, 0.2, 0.1, 0.2, 0.1))), model),
            make_painter(replace(spec, guidance_scale=2.0), model),
        ):
            assert not np.array_equal(other.paint([job_at(8, 8)]), plain)
        assert np.array_equal(make_painter(replace(spec, guidance_scale=1.0), model).paint([job_at(8, 8)]), plain)


def what_is_told(painter, jobs):
    """What the network is told of the jobs."""
    seen, prepare = [], painter.model.prepare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(painter.model, "prepare", lambda told: seen.append(told) or prepare(told))
        painter.paint(jobs)
    return seen[-1]


def test_the_network_is_told_what_yields_the_stain_that_is_asked_for(spec, model, job_at):
    """The response says: half of every number is painted. So a network is told twice as much as is asked for."""
    limits = model.config.style_range
    half = tuple(tuple(0.5 * (column == row + 1) for column in range(7)) for row in range(6))
    asked, twice = (limits.unscaled(np.full(6, value)) for value in (0.6, 1.2))
    follows = NasdmModel(replace(model.config, stain_response=StainResponse(half)))
    follows.load_state_dict(model.state_dict())
    follows = follows.eval().to(memory_format=torch.channels_last)
    with fixed_threads():
        with_response = make_painter(replace(spec, style=replace(spec.style, vector=tuple(asked))), follows)
        without = make_painter(replace(spec, style=replace(spec.style, vector=tuple(twice))), model)
        told = [what_is_told(painter, [job_at(8, 8)])["stain"] for painter in (with_response, without)]
        assert told[0].shape == (spec.batch_size, 6) and told[0].abs().min() > 1
        torch.testing.assert_close(*told, atol=0.03, rtol=0)
        same = make_painter(replace(spec, style=replace(spec.style, vector=tuple(asked))), model)
        assert not np.array_equal(with_response.paint([job_at(8, 8)]), same.paint([job_at(8, 8)]))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "unipc"])
def test_every_sampler_paints_and_repeats_itself(spec, model, job_at, sampler):
    with fixed_threads():
        painter = make_painter(replace(spec, sampler=sampler, num_inference_steps=4), model)
        first, second = painter.paint([job_at(8, 8), job_at(60, 60)]), painter.paint([job_at(60, 60), job_at(8, 8)])
        assert np.array_equal(first, second[::-1])


def test_overlapping_windows_see_the_same_noise(painter, job_at):
    with torch.inference_mode():
        corners = painter.prepare([job_at(0, 0), job_at(56, 24)]).tensors[-1]
        for step in (0, 1):
            left, right = painter._noise(corners, W, step)[:2]
            assert torch.equal(left[:, 24:, 56:], right[:, : W - 24, :8])
        assert not torch.equal(painter._noise(corners, W, 0), painter._noise(corners, W, 1))


def test_a_window_of_glass_needs_no_model(painter, job_at):
    inside, border = job_at(260, 60), job_at(190, 60)
    everything = (slice(None), slice(None))
    assert inside.data.is_glass(everything)
    assert not border.data.is_glass(everything)
    assert border.data.is_glass((slice(None), slice(40, 64)))


def test_uint8_survives_the_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert np.array_equal(to_uint8(from_uint8(pixels)).numpy(), pixels.numpy())


def test_stopping_ends_a_batch(painter, job_at):
    with pytest.raises(InterruptedError):
        painter.paint([job_at(0, 0)], stop=lambda: True)


def test_wrong_settings_are_refused(spec, model):
    with pytest.raises(SettingsError, match="batch-size 1"):
        replace(spec, batch_size=1)
    with pytest.raises(SettingsError, match="guidance-scale"):
        Painter(model, spec.style, guidance_scale=-1)
    with pytest.raises(SettingsError, match="dtype"):
        replace(spec, dtype="int8")
