"""Drawn tissue: pink ground with blue and green disks for nuclei."""

import numpy as np

SIDE = 192


def picture(seed):
    """Pink tissue with blue disks of class 3 and green ones of class 2: (H, W, 3), classes, ids."""
    random = np.random.default_rng(seed)
    yy, xx = np.mgrid[:SIDE, :SIDE]
    rgb = np.full((SIDE, SIDE, 3), (205, 150 + 5 * (seed % 4), 190)) + random.integers(-9, 9, (SIDE, SIDE, 3))
    classes, ids = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.uint16)
    for number, (y, x) in enumerate((y, x) for y in range(14, SIDE, 24) for x in range(14, SIDE, 24)):
        dy, dx = random.integers(-3, 4, 2)
        kind = int(random.integers(2, 4))
        disk = (yy - y - dy) ** 2 + (xx - x - dx) ** 2 < 64
        classes[disk], ids[disk], rgb[disk] = kind, number + 1, {2: (60, 130, 70), 3: (60, 60, 150)}[kind]
    return rgb.clip(0, 255).astype(np.uint8), classes, ids
