"""What sizes and shapes nuclei of a class have, measured on the training data and kept by what is decoded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NucleusLimits:
    """Sizes and shapes of one class, in px at the model's scale.

    fill: share of the area over that of the ellipse of the same second moments: 1 for an ellipse, less for shapes with
    bays or arms. axis: longest half-axis of that ellipse.
    """

    least_area: float = 12.0
    most_area: float = 2000.0
    least_fill: float = 0.7
    most_axis: float = 40.0
