"""The Triton kernels as operators of torch: with shapes known ahead, so that torch.compile goes through, and gradients.

An operator's body runs only with real data and imports Triton then; this module itself needs torch alone. Operators are
registered with `torch.library.Library`: `torch.library.custom_op` imports torch.compile's front end at the first call,
which takes seconds of every start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from wsigen_kernels.launch import Slices, on, padded_channels
from wsigen_kernels.layout import empty_by_pixel, map_shape

_library = torch.library.Library("wsigen", "DEF")
BODIES: dict[Any, Callable] = {}  # what each operator runs on real data
_FORMULA = "Tensor? weight, Tensor? bias, Tensor? gamma, Tensor? beta, Tensor? scale, Tensor? shift"


def _operator(schema: str) -> Callable[[Callable], Any]:
    """Register a function as the operator ``wsigen::NAME`` of all devices, and return the operator."""

    def register(function: Callable) -> Any:
        name = function.__name__
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, function, "CompositeExplicitAutograd")
        operator = getattr(torch.ops.wsigen, name).default
        BODIES[operator] = function
        return operator

    return register


@_operator(f"(Tensor x, Tensor? skip, int groups, {_FORMULA}, bool silu, float eps) -> (Tensor, Tensor)")
def group_norm(x, skip, groups, weight, bias, gamma, beta, scale, shift, silu, eps):  # type: ignore[no-untyped-def]
    """Normalise ``x``, with ``skip`` behind it; return the result and (B, groups, 2): mean and 1 / std."""
    from wsigen_kernels import moments_triton, norm_triton

    with on(x):
        behind = None if skip is None else moments_triton.moments(skip)
        return norm_triton.normalise(
            x, moments_triton.moments(x), groups, skip, behind, None, weight, bias, gamma, beta, scale, shift, silu, eps
        )


@torch.library.register_fake("wsigen::group_norm", lib=_library)
def _(x, skip, groups, weight, bias, gamma, beta, scale, shift, silu, eps):  # type: ignore[no-untyped-def]
    return _result(x, skip, 0), x.new_empty((len(x), groups, 2), dtype=torch.float32)


def _remember(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, skip, ctx.groups, weight, bias, gamma, beta, scale, shift, ctx.silu, _ = inputs
    ctx.save_for_backward(x, skip, weight, bias, gamma, beta, scale, shift, output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients by the chain rule, in float32, in plain torch: torch.compile fuses them into its own kernels.

    With x^ = (x - mean) / std, z = x^ weight + bias, m = z (1 + gamma) + beta, u = m (1 + scale) + shift, y = act(u);
    and for the norm itself dx = (dx^ - mean(dx^) - x^ mean(dx^ x^)) / std over each group (Wu and He 2018).
    """
    x, skip, weight, bias, gamma, beta, scale, shift, statistics = ctx.saved_tensors
    own = x.shape[1]
    whole = x if skip is None else torch.cat([x, skip], dim=1)
    batch, channels, height, width = whole.shape
    pixels, depth = height * width, channels // ctx.groups

    def rows(tensor: Tensor) -> Tensor:  # (B, P, C), which is a view of channels_last memory
        return tensor.permute(0, 2, 3, 1).reshape(batch, pixels, channels).float()

    def per_channel(values: Tensor) -> Tensor:  # (B, G) -> (B, 1, C)
        return values.repeat_interleave(depth, dim=1)[:, None]

    def back(tensor: Tensor, like: Tensor) -> Tensor:
        return tensor.to(like.dtype).reshape(batch, height, width, -1).permute(0, 3, 1, 2)

    inverse = per_channel(statistics[:, :, 1])
    normal = (rows(whole) - per_channel(statistics[:, :, 0])) * inverse
    z = normal if weight is None else normal * weight.float() + bias.float()
    m = z if gamma is None else z * (1 + rows(gamma)) + rows(beta)
    u = m if scale is None else m * (1 + scale.float())[:, None] + shift.float()[:, None]
    du = rows(grad)
    if ctx.silu:
        sigmoid = torch.sigmoid(u)
        du = du * sigmoid * (1 + u * (1 - sigmoid))

    d_scale = d_shift = d_gamma = d_beta = d_weight = d_bias = d_skip = None
    dm = du
    if scale is not None:
        d_scale, d_shift = (du * m).sum(1).to(scale.dtype), du.sum(1).to(shift.dtype)
        dm = du * (1 + scale.float())[:, None]
    dz = dm
    if gamma is not None:
        d_gamma, d_beta = back(dm * z, gamma), back(dm, beta)
        dz = dm * (1 + rows(gamma))
    d_normal = dz
    if weight is not None:
        d_weight, d_bias = (dz * normal).sum((0, 1)).to(weight.dtype), dz.sum((0, 1)).to(bias.dtype)
        d_normal = dz * weight.float()

    def over_group(tensor: Tensor) -> Tensor:  # mean over pixels and a group's channels
        return per_channel(tensor.mean(1).reshape(batch, ctx.groups, depth).mean(2))

    d_whole = back((d_normal - over_group(d_normal) - normal * over_group(d_normal * normal)) * inverse, x)
    d_x = d_whole if skip is None else d_whole[:, :own]
    if skip is not None:
        d_skip = d_whole[:, own:].to(skip.dtype)
    return d_x, d_skip, None, d_weight, d_bias, d_gamma, d_beta, d_scale, d_shift, None, None


torch.library.register_autograd("wsigen::group_norm", _differentiate, setup_context=_remember, lib=_library)


@_operator("(Tensor x, bool phased=False) -> Tensor")
def moments(x, phased=False):  # type: ignore[no-untyped-def]
    """Take the moments of ``x`` (B, C, H, W): (B, slices, 2, C) float32; see wsigen_kernels.moments_triton."""
    from wsigen_kernels import moments_triton

    with on(x):
        return moments_triton.moments(x, phased)


@torch.library.register_fake("wsigen::moments", lib=_library)
def _(x, phased=False):  # type: ignore[no-untyped-def]
    _, channels, height, width = map_shape(x, phased)
    return _moments_like(x, channels, height * width)


@_operator(
    "(Tensor x, Tensor? skip, Tensor moments, Tensor? skip_moments, int groups, Tensor? x_bias, "
    f"{_FORMULA}, bool silu, float eps, int resample, Tensor? map_bias=None, "
    "bool phased=False) -> Tensor"
)
def normalise(  # type: ignore[no-untyped-def]
    x, skip, moments, skip_moments, groups, x_bias, weight, bias, gamma, beta, scale, shift, silu, eps, resample,
    map_bias=None, phased=False,
):  # fmt: skip
    """Normalise with ready moments (no gradients): see ``wsigen_kernels.norm_triton.normalise``."""
    from wsigen_kernels import norm_triton

    with on(x):
        return norm_triton.normalise(
            x, moments, groups, skip, skip_moments, x_bias, weight, bias, gamma, beta, scale, shift, silu, eps,
            resample, map_bias, phased,
        )[0]  # fmt: skip


@torch.library.register_fake("wsigen::normalise", lib=_library)
def _(  # type: ignore[no-untyped-def]
    x, skip, moments, skip_moments, groups, x_bias, weight, bias, gamma, beta, scale, shift, silu, eps, resample,
    map_bias=None, phased=False,
):  # fmt: skip
    return _result(x, skip, resample, phased)


@_operator("(Tensor h, Tensor? bias, Tensor x, Tensor? skip, Tensor? weight, int resample) -> (Tensor, Tensor)")
def merge(h, bias, x, skip, weight, resample):  # type: ignore[no-untyped-def]
    """Add a residual to ``h`` and take the sum's moments: see ``wsigen_kernels.merge_triton.merge``."""
    from wsigen_kernels import merge_triton

    with on(h):
        return merge_triton.merge(h, bias, x, skip, weight, resample)


@torch.library.register_fake("wsigen::merge", lib=_library)
def _(h, bias, x, skip, weight, resample):  # type: ignore[no-untyped-def]
    return empty_by_pixel(h.shape, h), _moments_like(h, h.shape[1], h.shape[2] * h.shape[3])


@_operator("(Tensor qkv, int heads) -> Tensor")
def attention(qkv, heads):  # type: ignore[no-untyped-def]
    """Attend over the pixels of packed ``qkv`` (B, 3 C, H, W), without gradients; return (B, C, H, W)."""
    from wsigen_kernels import attention_triton

    with on(qkv):
        return attention_triton.attention(qkv, heads)


@torch.library.register_fake("wsigen::attention", lib=_library)
def _(qkv, heads):  # type: ignore[no-untyped-def]
    batch, packed, height, width = qkv.shape
    return empty_by_pixel((batch, packed // 3, height, width), qkv)


@_operator("(Tensor[] images, int patch, bool ones=False) -> Tensor")
def gather(images, patch, ones=False):  # type: ignore[no-untyped-def]
    """Concatenate images as patches: see ``wsigen_kernels.patches_triton.gather``."""
    from wsigen_kernels import patches_triton

    with on(images[0]):
        return patches_triton.gather(images, patch, ones)


@torch.library.register_fake("wsigen::gather", lib=_library)
def _(images, patch, ones=False):  # type: ignore[no-untyped-def]
    batch, _, height, width = images[0].shape
    extra = 1 if ones else 0  # torch 2.11 cannot trace the sum of a size and a bool
    channels = padded_channels(sum(image.shape[1] for image in images) * patch**2 + extra)
    return empty_by_pixel((batch, channels, height // patch, width // patch), images[0])


@_operator("(Tensor x, Tensor bias, int patch) -> Tensor")
def scatter(x, bias, patch):  # type: ignore[no-untyped-def]
    """Add a bias and shuffle patches to pixels: see ``wsigen_kernels.patches_triton.scatter``."""
    from wsigen_kernels import patches_triton

    with on(x):
        return patches_triton.scatter(x, bias, patch)


@torch.library.register_fake("wsigen::scatter", lib=_library)
def _(x, bias, patch):  # type: ignore[no-untyped-def]
    batch, _, rows, columns = x.shape
    return empty_by_pixel((batch, len(bias) // patch**2, rows * patch, columns * patch), x)


def register_fallbacks() -> None:
    """Tell inductor that it calls these operators as they are; before torch.compile meets them, which it does anyway.

    Without it, torch 2.11 writes the arguments of each operator's first call into a line of its log, whether anybody
    reads it or not. That text holds everything that led to them, once for every way there: its length doubles with
    the depth of the network, and a compilation never ends.
    """
    from torch._inductor.lowering import lowerings, make_fallback, tag_to_layout_constraint
    from torch._library.utils import get_layout_constraint_tag

    for operator in (group_norm, moments, normalise, merge, attention, gather, scatter):
        if operator not in lowerings:
            tag = get_layout_constraint_tag(operator, with_default=True)
            make_fallback(operator, layout_constraint=tag_to_layout_constraint(tag))


def _result(x: Tensor, skip: Tensor | None, resample: int, phased: bool = False) -> Tensor:
    batch, own, height, width = map_shape(x, phased)
    channels = own + (0 if skip is None else skip.shape[1])
    size = ((height, width), (2 * height, 2 * width), (height // 2, width // 2))[resample]
    return empty_by_pixel((batch, channels, *size), x)


def _moments_like(x: Tensor, channels: int, pixels: int) -> Tensor:
    return x.new_empty((len(x), Slices.of(pixels).count, 2, channels), dtype=torch.float32)
