"""Noise is Philox's, normal, the same at a pixel for every window, and made of the same floats everywhere."""

import hashlib
import math
from statistics import NormalDist

import pytest
import torch
from scipy.stats import kstest, kurtosis, skew

from wsigen.diffusion import noise
from wsigen.diffusion.noise import coordinate_normals, normal_table, normals_from_words, philox4x32

WORD = 0xFFFFFFFF


def plain_philox(key: tuple[int, int], counter: tuple[int, ...]) -> list[int]:
    """Philox4x32-10 in Python integers, written from the paper."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & WORD, (p0 >> 32) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return [c0, c1, c2, c3]


def plain_normal(word: int) -> float:
    """The module's arithmetic in Python integers; its one rounding is that of a C float."""
    above, table = word >> 31, normal_table().tolist()
    r = (WORD ^ word if above else word) & 0x7FFFFFFF
    if r < 1 << 22:
        entry, f = table[2048 + (r >> 11)], ((2 * r + 1) & 0xFFF) << 9
    else:
        entry, f = table[r >> 20], (2 * r + 1) & 0x1FFFFF
    q = ((entry >> 32) << 21) - (entry & WORD) * f
    return torch.tensor((q if above else -q) / 2**48, dtype=torch.float64).float().item()


def corners(*xy: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([x for x, _ in xy]), torch.tensor([y for _, y in xy])


# Random123, tests/kat_vectors, philox4x32 with 10 rounds
@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, expected):
    assert philox4x32(key, torch.tensor(counter)).tolist() == list(expected)
    assert philox4x32(key[0] | key[1] << 32, torch.tensor(counter)).tolist() == list(expected)


def test_philox_agrees_with_plain_integers():
    counters = torch.randint(0, 2**32, (200, 4), generator=torch.Generator().manual_seed(0))
    words = philox4x32(0x0123456789ABCDEF, counters)
    assert words.tolist() == [plain_philox((0x89ABCDEF, 0x01234567), tuple(c)) for c in counters.tolist()]


def test_the_table_is_the_same_everywhere():
    assert len(normal_table()) == 4096
    digest = hashlib.sha256(noise.normal_table_bytes()).hexdigest()
    assert digest == "6c89bc936b75118ffc27deff564e6ca6db738b6fba75c9f56f57ae40717bcbcd"


def test_no_table_value_hangs_on_the_last_bits_of_a_logarithm():
    """float64 is good to about 1e-6 units of the table; no value lies that near to where rounding turns."""
    masses = [k << 20 for k in range(4, 2048)] + [k << 11 for k in range(1, 2049)]
    values = [-NormalDist().inv_cdf(mass / 2**32) * 2**27 for mass in masses]
    assert min(abs(value % 1 - 0.5) for value in values) > 1e-4


def test_normals_agree_with_plain_integers():
    edges = [0, 1, (1 << 11) - 1, 1 << 11, (1 << 22) - 1, 1 << 22, (1 << 31) - 1, 1 << 31, (1 << 32) - (1 << 22), WORD]
    words = edges + torch.randint(0, 2**32, (500,), generator=torch.Generator().manual_seed(1)).tolist()
    assert normals_from_words(torch.tensor(words)).tolist() == [plain_normal(word) for word in words]


def test_normals_are_the_inverse_distribution_rising_and_odd():
    words = torch.linspace(0, WORD, 100_001, dtype=torch.float64).long()
    z = normals_from_words(words)
    assert (z.diff() >= 0).all() and torch.equal(z, -normals_from_words(WORD - words))
    assert 5.9 < z.max() < 6 and z.abs().min() > 0
    exact = torch.tensor([NormalDist().inv_cdf((word + 0.5) / 2**32) for word in words[10:-10].tolist()])
    torch.testing.assert_close(z[10:-10], exact, rtol=0, atol=3e-3)


def test_moments_and_distribution_are_normal():
    z = coordinate_normals(11, *corners((0, 0), (5000, 70_000)), 512, 512, 0).double().flatten().numpy()
    n = len(z)
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert z.var() == pytest.approx(1, abs=4 * math.sqrt(2 / n))
    assert abs(skew(z)) < 4 * math.sqrt(6 / n)
    assert abs(kurtosis(z)) < 4 * math.sqrt(24 / n)
    assert kstest(z[:200_000], "norm").pvalue > 1e-3


def test_overlapping_windows_see_the_same_noise():
    z = coordinate_normals(3, *corners((1000, 2000), (1224, 2000), (1000, 2224)), 256, 256, 4)
    assert torch.equal(z[0, :, :, 224:], z[1, :, :, :32])
    assert torch.equal(z[0, :, 224:], z[2, :, :32])


def test_noise_depends_on_neither_batch_nor_window_nor_chunk(monkeypatch):
    whole = coordinate_normals(3, *corners((-40, 7), (90, -5)), 96, 160, 0)
    assert torch.equal(coordinate_normals(3, *corners((90, -5)), 96, 160, 0)[0], whole[1])
    assert torch.equal(coordinate_normals(3, *corners((-30, 17)), 20, 30, 0)[0], whole[0, :, 10:30, 10:40])
    monkeypatch.setattr(noise, "_CPU_CHUNK_PIXELS", 1000)
    assert torch.equal(coordinate_normals(3, *corners((-40, 7), (90, -5)), 96, 160, 0), whole)


def test_noise_is_that_of_the_documented_counter():
    seed, x, y, step, stream = 0xFEDCBA9876543210, 123_456, -7, 9, 2
    words = plain_philox((0x76543210, 0xFEDCBA98), (x, y & WORD, step, stream))
    z = coordinate_normals(seed, *corners((x, y)), 1, 1, step, stream)
    assert z.flatten().tolist() == [plain_normal(word) for word in words[:3]]


def test_coordinates_wrap_at_32_bits():
    far = coordinate_normals(3, *corners((5 + 2**32, -(2**32))), 8, 8, 0)
    assert torch.equal(far, coordinate_normals(3, *corners((5, 0)), 8, 8, 0))


@pytest.mark.parametrize("other", [{"step": 1}, {"stream": 1}, {"seed": 8}, {"seed": 7 + 2**32}])
def test_other_steps_streams_and_seeds_are_uncorrelated(other):
    base = {"seed": 7, "step": 0, "stream": 0}
    x, y = corners((0, 0))
    a, b = (coordinate_normals(x0=x, y0=y, height=256, width=256, **s).flatten() for s in (base, base | other))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 4 / math.sqrt(len(a))


def test_channels_and_neighbours_are_uncorrelated():
    z = coordinate_normals(7, *corners((0, 0)), 257, 257, 0)[0]
    views = [z[c, :256, :256].flatten() for c in range(3)] + [z[0, 1:, :256].flatten(), z[0, :256, 1:].flatten()]
    correlation = torch.corrcoef(torch.stack(views)) - torch.eye(5)
    assert correlation.abs().max() < 5 / 256
