"""Noise keyed by coordinates: a pixel of the slide has the same noise in every window and on every machine.

Philox4x32-10 (Salmon et al. 2011) turns a counter into four 32-bit words under a key, without any state: key = seed,
counter = (x, y, step, stream), x and y in absolute level-0 pixels. Words 0, 1, 2 become the normals of R, G, B.

The normals must be the same *floats* wherever they are made, and ``log``, ``cos`` and fused multiply-adds are not. So
the inverse normal distribution is a table of integers, read with integer arithmetic and rounded once at the end. For a
32-bit word u, all in int64:

    s = u >> 31                              0 below the median, 1 above
    r = (u ^ -s) & 0x7FFFFFFF                distance from the nearer end: the tail mass is (r + 1/2) / 2^32
    m = 2 r + 1
    r >= 2^22 (body): segment = r >> 20,          f = m & (2^21 - 1)
    r <  2^22 (tail): segment = 2048 + (r >> 11), f = (m & (2^12 - 1)) << 9
    entry = TABLE[segment]                   |z| at the segment's start in the high 32 bits, its fall across the
                                             segment in the low 32 bits, both times 2^27
    q = ((entry >> 32) << 21) - (entry & 0xFFFFFFFF) * f        below 2^52
    z = float32(s ? q : -q) * 2^-48          one rounding, to nearest; the product with a power of two is exact

Segments of 2^20 in the body and 2^11 in the tail (|z| > 3.1) keep the table at 32 KB. z rises with u, is odd about the
median, never zero, and below 6 in size.
"""

import sys
from array import array
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist

import torch
from torch import Tensor
from wsigen_kernels.dispatch import norm_choice

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

_VALUE_BITS = 27  # fraction bits of |z| in the table; at 28 one entry would be a tie to within float64's precision
_BODY_SHIFT, _TAIL_SHIFT = 20, 11
_TAIL_END = 1 << 22
_BODY_SEGMENTS = 1 << (31 - _BODY_SHIFT)
_TAIL_SEGMENTS = _TAIL_END >> _TAIL_SHIFT
_LARGEST_Z = 6.0  # where the outermost segment, of mass 2^-21, ends
_SCALE = 2.0 ** -(_VALUE_BITS + _BODY_SHIFT + 1)

# Temporaries are int64: on the CPU a chunk stays near the cache, elsewhere it bounds memory to about 0.3 GB.
_CPU_CHUNK_PIXELS = 1 << 18
_DEVICE_CHUNK_PIXELS = 1 << 22


def philox4x32(key: int | tuple[int, int], counter: Tensor) -> Tensor:
    """Philox4x32-10 (Salmon et al. 2011): (..., 4) int64 counter words -> (..., 4) int64 random words.

    ``key``: a seed of 64 bits, or its two words, low word first. Counter words are taken modulo 2^32. The returned
    words lie in [0, 2^32).
    """
    c0, c1, c2, c3 = (counter & _WORD).unbind(-1)
    return torch.stack(_philox_words(_key_words(key), c0, c1, c2, c3), -1)


def coordinate_normals(
    seed: int,
    x0: Tensor,
    y0: Tensor,
    height: int,
    width: int,
    step: int,
    stream: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normals of B windows: (B, 3, height, width) float32. All windows have the same value at one pixel.

    Args:
        seed: seed of the slide, 0 to 2^64 - 1.
        x0: left edges of the windows (B,) int64, in px of level 0; any sign and size, taken modulo 2^32.
        y0: upper edges, likewise.
        height: height of the windows in px.
        width: width of the windows in px.
        step: 0 for the initial noise, i + 1 for the fresh noise of step i of the sampler.
        stream: number that separates other uses of the noise.
        device: where to compute. None: the device of ``x0``.
    """
    device = torch.device(device) if device is not None else x0.device
    key = _key_words(seed)
    if device.type == "cuda" and norm_choice().name == "triton":
        from wsigen_kernels.noise_triton import coordinate_normals as kernel

        x0, y0 = (start.to(device, torch.int64) for start in (x0, y0))
        return kernel(key, x0, y0, height, width, step & _WORD, stream & _WORD, normal_table(str(device)))
    x = (x0.to(device, torch.int64)[:, None, None] + torch.arange(width, device=device)) & _WORD
    y = (y0.to(device, torch.int64)[:, None, None] + torch.arange(height, device=device)[:, None]) & _WORD
    step_word, stream_word = (torch.full((), word & _WORD, dtype=torch.int64, device=device) for word in (step, stream))
    out = torch.empty(len(x0), 3, height, width, dtype=torch.float32, device=device)
    windows, rows = _chunk(height, width, device)
    for b in range(0, len(x0), windows):
        for top in range(0, height, rows):
            part = slice(b, b + windows), slice(top, top + rows)
            words = _philox_words(key, x[part[0]], y[part], step_word, stream_word)
            for channel in range(3):
                out[part[0], channel, part[1]] = normals_from_words(words[channel])
    return out


def normals_from_words(words: Tensor) -> Tensor:
    """Standard normal for each uniform 32-bit word: int64 in [0, 2^32) -> float32 in (-6, 6). See the module's text."""
    above = words >> 31
    r = (words ^ -above) & 0x7FFFFFFF
    tail = r < _TAIL_END
    segment = torch.where(tail, (r >> _TAIL_SHIFT) + _BODY_SEGMENTS, r >> _BODY_SHIFT)
    m = (r << 1) | 1
    body_f = m & ((2 << _BODY_SHIFT) - 1)
    tail_f = (m & ((2 << _TAIL_SHIFT) - 1)) << (_BODY_SHIFT - _TAIL_SHIFT)
    entry = normal_table(str(words.device)).take(segment)
    q = ((entry >> 32) << (_BODY_SHIFT + 1)) - (entry & _WORD) * torch.where(tail, tail_f, body_f)
    return (q * ((above << 1) - 1)).to(torch.float32) * _SCALE


@lru_cache(maxsize=16)
def normal_table(device: str = "cpu") -> Tensor:
    """The integer table: (4096,) int64; entry = |z| at the start << 32 | fall, in units of 2^-27."""
    body = _segments(_BODY_SEGMENTS, 1 << _BODY_SHIFT)
    tail = _segments(_TAIL_SEGMENTS, 1 << _TAIL_SHIFT)
    return torch.tensor(body + tail, dtype=torch.int64, device=device)


def normal_table_bytes() -> bytes:
    """The table as little-endian int64, for its fingerprint and for other implementations."""
    words = array("q", normal_table().tolist())
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def _segments(count: int, length: int) -> list[int]:
    nodes = [round(_tail_z(k * length) * (1 << _VALUE_BITS)) for k in range(count + 1)]
    return [start << 32 | (start - end) for start, end in pairwise(nodes)]


def _tail_z(r: int) -> float:
    """|z| beyond which a tail of mass r / 2^32 lies (AS 241, in float64); 6 for an empty one."""
    return _LARGEST_Z if r == 0 else max(0.0, -NormalDist().inv_cdf(r / 2**32))


def _key_words(key: int | tuple[int, int]) -> tuple[int, int]:
    low, high = (key, key >> 32) if isinstance(key, int) else key
    return low & _WORD, high & _WORD


def _philox_words(key: tuple[int, int], c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, ...]:
    """Ten rounds on words that broadcast: what depends on x or y alone stays a row or a column for two rounds.

    A product of two 32-bit words wraps in int64, which keeps its bits; shifting it is arithmetic, hence the masks. The
    low halves need none until the end, as they are only ever combined by exclusive or with a word that is masked next.
    """
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) ^ (c1 ^ k0)) & _WORD, p1, ((p0 >> 32) ^ (c3 ^ k1)) & _WORD, p0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1 & _WORD, c2, c3 & _WORD


def _chunk(height: int, width: int, device: torch.device) -> tuple[int, int]:
    pixels = _CPU_CHUNK_PIXELS if device.type == "cpu" else _DEVICE_CHUNK_PIXELS
    return max(1, pixels // (height * width)), max(1, min(height, pixels // width))
