"""Pictures that lie in a data set as files: the picture, its class labels, and its nucleus ids where there are any."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsigen.errors import DataError
from wsigen.training.data.instances import rebuild_instances
from wsigen.training.data.manifest import UNAVAILABLE, read_label, read_rgb
from wsigen.training.data.source import Picture, check_labels


def read_picture(name: str, group: str, image: Path, label: Path, ids: Path | None, class_count: int) -> Picture:
    """Read a picture with its labels, and its nucleus ids where there is a file of them; else they are rebuilt."""
    rgb, labels = read_rgb(image), read_label(label)
    check_labels(label, labels, rgb.shape[:2], class_count)
    if ids is None:
        instances = rebuild_instances(labels, class_count)
    else:
        instances = read_label(ids).astype(np.int32)
        if instances.shape != labels.shape:
            raise DataError(f"{ids}: {instances.shape[::-1]} px, its labels have {labels.shape[::-1]}; make them equal")
        instances[(labels == 0) | (labels == UNAVAILABLE)] = 0
    return Picture(group, name, rgb, labels, instances)
