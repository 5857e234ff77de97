"""Memory does not grow with the slide: the same tissue on a slide of 8,192 pixels and on one of 24,576.

Both are cut into blocks of the largest size; smaller slides have smaller ones and take less.
"""

import subprocess
import sys

import numpy as np
import pytest

from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask

CODE = """
import sys
from pathlib import Path
from wsigen.rendering.job import render
if __name__ == "__main__":
    settings = {"model": sys.argv[3], "device": "cpu", "steps": 1, "window": 256, "overlap": 32}
    result = render(sys.argv[1], sys.argv[2], overwrite=True, **settings)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(result.width, result.painted, peak.split()[1])
"""


def sparse_mask(path, side, tissue_side=1638):
    """Nuclei on a square: 4 % of the smaller slide, 0.4 % of the larger one."""
    low = side // 8
    high = low + tissue_side
    nuclei = (np.indices((512, side)) % 24 < 8).all(axis=0)
    nuclei[:, :low] = nuclei[:, high:] = False

    def rows(y0, y1):
        if y1 <= low or y0 >= high:
            return None
        inside = (np.arange(y0, y1) >= low) & (np.arange(y0, y1) < high)
        tissue = np.zeros((y1 - y0, side), np.uint8)
        tissue[inside, low:high] = 1
        return MaskWindow(2 * (nuclei[: y1 - y0] & (tissue > 0)).astype(np.uint8), None, tissue)

    write_slide_mask(path, side, side, 0.5, rows, instances=False, tissue=True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the memory in kilobytes")
@pytest.mark.exhaustive
def test_a_slide_nine_times_as_large_takes_as_much_memory(tiny_model, tmp_path):
    def peak(side):
        mask, slide = tmp_path / f"{side}.tif", tmp_path / "s.svs"
        command = [sys.executable, "-c", CODE, str(mask), str(slide), str(tiny_model)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr
        width, painted, kilobytes = map(int, run.stdout.split())
        assert width == side and painted >= (1638 / 224) ** 2
        return kilobytes

    for side in (8192, 24576):
        sparse_mask(tmp_path / f"{side}.tif", side)
    small, large = peak(8192), peak(24576)
    if large >= 1.2 * small:  # on a busy machine painting and encoding meet at other moments
        large = min(large, peak(24576))
    assert large < 1.2 * small, f"{small / 1024:.0f} and {large / 1024:.0f} MB"
