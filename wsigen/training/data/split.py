"""Which source images are held out for validation."""

from __future__ import annotations

from collections.abc import Sequence

from wsigen.errors import DataError
from wsigen.training.data.lizard import SAME_TISSUE
from wsigen.training.data.source import DataSet

# Source images held out for validation unless others are named: each organ source and both annotation sets.
DEFAULT_HOLDOUT = (
    *("crag_6", "dpath_69", "glas_59", "glas_7", "pannuke_7"),
    *("test_2", "test_7"),
    *("img5", "img50"),
)


def validation_groups(data_sets: Sequence[DataSet], holdout: Sequence[str] | None) -> frozenset[str]:
    """Source images of the validation side: those of `holdout`, or the usual ones where it is None.

    Raises DataError for a name that no data set has.
    """
    groups = {group for data_set in data_sets for group in data_set.groups}
    if holdout is None:
        own = [group for data_set in data_sets for group in data_set.own_holdout]
        return frozenset(groups.intersection(DEFAULT_HOLDOUT).union(own))
    wanted = {SAME_TISSUE.get(name, name) for name in holdout}
    unknown = sorted(wanted - groups)
    if unknown:
        raise DataError(f"holdout {unknown[0]!r}: no source image is called so; there are: {', '.join(sorted(groups))}")
    return frozenset(wanted)
