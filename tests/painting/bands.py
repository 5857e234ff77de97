"""How windows are blended, drawn anew: what the grid and the canvas are held against."""

import numpy as np


def trapezia(axis):
    """Weights of the windows of an axis, drawn one by one: (windows, pixels) float, 0 where a window holds nothing.

    Each rises over its first pixels and falls over its last, but where it has no neighbour.
    """
    weights = np.zeros((axis.count, (axis.count + 1) * axis.window))
    for i in range(axis.count):
        cut = axis.overlap - axis.margin - axis.blend if i % 2 else axis.margin
        start, stop = i * axis.stride - axis.margin + cut, i * axis.stride - axis.margin + axis.window - cut
        rise = (np.arange(stop - start) + 0.5) / max(axis.blend, 0.5)
        left = rise if i else np.ones_like(rise)
        right = rise[::-1] if i + 1 < axis.count else np.ones_like(rise)
        weights[i, start:stop] = np.minimum(np.minimum(left, right), 1)
    return weights
