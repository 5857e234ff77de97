"""On a GPU a painter overlaps copies with work and replays recorded graphs; its pixels are those of plain calls."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from wsigen.masks.conditions import read_surroundings
from wsigen.masks.slide_mask import SlideMask
from wsigen.networks.nasdm import NasdmModel
from wsigen.painting.painter import WindowJob
from wsigen.painting.slide_worker import make_painter

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

W = 64


@pytest.fixture(scope="module")
def cuda_spec(spec):
    return replace(spec, device="cuda", dtype="bfloat16", num_inference_steps=4)


@pytest.fixture(scope="module")
def cuda_model(model_path):
    return NasdmModel.from_pretrained(model_path).to("cuda", torch.bfloat16, memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def jobs(mask_path):
    """Forty windows with a known strip each, as a later stage sees them."""
    mask, rng = SlideMask.open(mask_path, 6), np.random.default_rng(5)
    found = []
    for number in range(40):
        x, y = int(rng.integers(0, 200)), int(rng.integers(0, 190))
        known = np.zeros((W, W), bool)
        known[:, : 8 * (number % 3)] = True
        context = np.where(known[..., None], rng.integers(0, 256, (W, W, 3)), 0).astype(np.uint8)
        found.append(WindowJob(x, y, read_surroundings(mask, x, y, W, W, 0.5), context, known))
    return found


def test_overlapped_batches_have_the_pixels_of_lone_ones(cuda_spec, cuda_model, jobs):
    batches = [jobs[start : start + 4] for start in range(0, len(jobs), 4)]
    lone = []
    for batch in batches:
        lone.append(make_painter(cuda_spec, cuda_model).paint(batch).copy())
        torch.cuda.synchronize()
    assert np.concatenate(lone).std() > 10, "images, not constants"
    painter = make_painter(cuda_spec, cuda_model)
    with ThreadPoolExecutor(3) as readers, ThreadPoolExecutor(3) as fetchers:
        prepared = [readers.submit(painter.prepare, batch) for batch in batches * 3]
        launched = [painter.launch(future.result()) for future in prepared]
        fetched = list(fetchers.map(painter.fetch, launched))
    for (pixels, seconds), alone in zip(fetched, lone * 3, strict=True):
        assert np.array_equal(pixels, alone)
        assert 0 < seconds < 10


def test_pixels_depend_neither_on_the_row_nor_on_the_company(cuda_spec, cuda_model, jobs):
    painter = make_painter(cuda_spec, cuda_model)
    alone = painter.paint(jobs[:1])[0]
    for batch, row in [(jobs[:4], 0), ([*jobs[1:4], jobs[0]], 3), ([jobs[9], jobs[0]], 1)]:
        assert np.array_equal(painter.paint(batch)[row], alone)


@pytest.mark.parametrize("scale", [1.5, 3.0])
def test_guidance_is_painted_alike_when_it_is_learned_and_when_not(cuda_spec, model_path, jobs, scale):
    """A graph of the device's work holds the scale that is told, or both networks; a second one has its pixels."""
    model = NasdmModel.from_pretrained(model_path).to("cuda", torch.bfloat16, memory_format=torch.channels_last)
    model.config = replace(model.config, guided_scales=(1.0, 2.0))
    guided = replace(cuda_spec, guidance_scale=scale)
    first, second = (make_painter(guided, model).paint(jobs[:4]).copy() for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, make_painter(cuda_spec, model).paint(jobs[:4]))


def test_known_pixels_come_back_as_they_were(cuda_spec, cuda_model, jobs):
    painted = make_painter(cuda_spec, cuda_model).paint(jobs[:4])
    for job, pixels in zip(jobs, painted, strict=False):
        assert np.array_equal(pixels[job.known], job.context[job.known])


def test_a_gpu_paints_what_a_cpu_paints(spec, model_path, cuda_spec, jobs):
    plain = NasdmModel.from_pretrained(model_path)
    cpu = make_painter(replace(spec, num_inference_steps=4), plain.to(memory_format=torch.channels_last))
    expected = cpu.paint(jobs[:4]).astype(int)
    got = make_painter(replace(cuda_spec, dtype="float32"), plain.to("cuda")).paint(jobs[:4])
    assert np.abs(got - expected).mean() < 1 and np.quantile(np.abs(got - expected), 0.999) <= 8
