"""Stain, discriminability, memorisation and diversity: each tells what it should, and not what it should not."""

import numpy as np
import pytest
import torch
from drawn import picture
from scipy import ndimage

from wsigen.errors import DataError, ModelError
from wsigen.evaluation.discriminability import colour_moments, network_auc, nuclear_sharpness, radial_spectrum
from wsigen.evaluation.diversity import diversity
from wsigen.evaluation.memorisation import TrainingIndex, centre, correlation, pixel_similarity, symmetries
from wsigen.evaluation.stain import StainStatistics
from wsigen.masks.conditions import instance_edges
from wsigen.networks.measuring import FeatureNetwork

CPU = torch.device("cpu")


def patches(seeds):
    return np.stack([picture(seed)[0][:128, :128] for seed in seeds])


def blurred(images):
    return ndimage.gaussian_filter(images.astype(float), (0, 1, 1, 0)).astype(np.uint8)


def test_a_darker_stain_is_told():
    real = patches(range(4))
    same, darker = StainStatistics.of(real).rows(StainStatistics.of(real)), None
    darker = StainStatistics.of((real * 0.8).astype(np.uint8)).rows(StainStatistics.of(real))
    for one, other in zip(same, darker):
        assert one["earth mover's distance"] < 0.01
        assert other["mean"] - other["real mean"] == pytest.approx(-np.log10(0.8), abs=0.01)
        assert other["earth mover's distance"] == pytest.approx(-np.log10(0.8), abs=0.01)


def test_glass_alone_has_no_stain():
    statistics = StainStatistics.of(np.full((3, 64, 64, 3), 250, np.uint8))
    assert not statistics.mean.any() and not statistics.between.any()


def test_the_spectrum_shows_blur_at_high_frequencies():
    sharp = patches(range(4))
    change = radial_spectrum(blurred(sharp)).mean(0) - radial_spectrum(sharp).mean(0)
    assert change[-4:].max() < -2 < -0.2 < change[1]


def test_colour_moments_do_not_see_where_pixels_lie():
    images = patches(range(3))
    shuffled = images.reshape(3, -1, 3)[:, np.random.default_rng(0).permutation(128 * 128)].reshape(images.shape)
    np.testing.assert_allclose(colour_moments(images), colour_moments(shuffled), rtol=1e-4)
    assert np.abs(radial_spectrum(images) - radial_spectrum(shuffled)).max() > 1


def test_sharpness_is_taken_at_nuclei():
    images = patches(range(3))
    edges = np.stack([instance_edges(picture(seed)[2])[:128, :128] > 0 for seed in range(3)])
    sharp, soft = nuclear_sharpness(images, edges), nuclear_sharpness(blurred(images), edges)
    assert (sharp[:, 0] > 2 * sharp[:, 1]).all() and (soft[:, 0] < 0.8 * sharp[:, 0]).all()
    assert not nuclear_sharpness(images, np.zeros_like(edges))[:, 0].any()


def test_a_small_network_sees_blur_and_not_what_is_not_there():
    from wsigen.evaluation.material import LabelledPatches

    def of(images):
        nothing = np.zeros(images.shape[:3], np.uint8)
        return LabelledPatches(images, nothing, nothing, [f"slide {index % 6}" for index in range(len(images))])

    images, others = patches(range(24))[:, :48, :48], patches(range(24, 48))[:, :48, :48]
    assert network_auc(of(blurred(others)), of(images), CPU, steps=25) > 0.9
    assert 0.2 < network_auc(of(others), of(images), CPU, steps=5) < 0.8


def test_correlation_finds_a_part_wherever_it_lies():
    region = np.random.default_rng(0).standard_normal((80, 90))
    assert correlation(region[17:49, 33:65] * 3 + 7, region) == pytest.approx(1, abs=1e-6)
    assert correlation(np.random.default_rng(1).standard_normal((32, 32)), region) < 0.3


def test_a_turned_and_moved_copy_is_alike():
    rgb = np.random.default_rng(0).integers(0, 256, (160, 160, 3)).astype(np.uint8)
    rgb = ndimage.gaussian_filter(rgb.astype(float), (2, 2, 0)).astype(np.uint8)
    copy = np.rot90(rgb[20:148, 10:138])[:, ::-1]
    assert pixel_similarity(copy, rgb[:128, :128]) > 0.99
    other = ndimage.gaussian_filter(np.random.default_rng(3).integers(0, 256, (128, 128, 3)).astype(float), (2, 2, 0))
    assert pixel_similarity(other, rgb[:128, :128]) < 0.7


def test_symmetries_are_eight_different_ones():
    image = np.arange(3 * 16).reshape(1, 4, 4, 3)
    assert len({turned.tobytes() for turned in map(np.ascontiguousarray, symmetries(image))}) == 8
    with pytest.raises(DataError, match="give 8 px or more"):
        centre(image, 8)


def test_an_index_finds_copies_and_is_read_back(features, tmp_path):
    from wsigen.evaluation.material import LabelledPatches

    network = FeatureNetwork.from_pretrained(features)

    def labelled(seeds):
        images = patches(seeds)
        nothing = np.zeros(images.shape[:3], np.uint8)
        return LabelledPatches(images, nothing, nothing.astype(np.int32), ["x"] * len(images))

    training, held_out = labelled(range(12)), labelled(range(40, 52))
    index = TrainingIndex.built(network, training, held_out, 64, CPU)
    distance, which = index.nearest(network, np.rot90(training.images[3:5], 2, (1, 2)), CPU)
    assert which.tolist() == [3, 4] and (distance < 0.02).all()
    assert (index.nearest(network, patches(range(60, 64)), CPU)[0] > 0.02).all()
    index.save(tmp_path / "index")
    again = TrainingIndex.load(tmp_path / "index")
    assert again.near == pytest.approx(index.near) and np.array_equal(again.features, index.features)
    assert (again.window, again.stride, again.network) == (128, 64, "colon-features-tiny")
    (tmp_path / "index" / "index.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="no readable index"):
        TrainingIndex.load(tmp_path / "index")


def test_seeds_that_change_nothing_have_no_diversity():
    random = np.random.default_rng(0)
    real = random.standard_normal((50, 6))
    one = np.repeat(random.standard_normal((4, 1, 6)), 3, 1)
    pixels = np.zeros((4, 3, 8, 8, 3), np.uint8)
    assert diversity(one, pixels, real)["share of variance"] == pytest.approx(0, abs=1e-12)
    free = diversity(random.standard_normal((40, 30, 6)), pixels, real)
    assert free["share of variance"] == pytest.approx(1, abs=0.4)
