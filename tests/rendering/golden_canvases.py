"""Golden canvases: small slides and a mask that are painted anew and compared with the pixels that were painted before.

    python tests/rendering/golden_canvases.py

refreshes what is stored: after PIXELS was raised with a change of pixels, or to add the hashes of another machine. It
refuses to store other pixels under the number that they had.

Stored are the pictures, and their hashes for each environment that painted them. In a known environment pixels must be
equal; in another one torch may round otherwise, so they may differ from the pictures by as much as rounding does. All
inputs are made here from integers, so that no change of another module is taken for one of pixels.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import wsigen
from wsigen.config import RenderSettings
from wsigen.layouts.layout import REGIONS, Layout
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask
from wsigen.models.config import ModelConfig
from wsigen.networks.nasdm import NasdmModel
from wsigen.painting.canvas import Canvas
from wsigen.pixels import PIXELS
from wsigen.rendering.layout_request import LayoutRequest
from wsigen.rendering.mask_job import sample_mask

FOLDER = Path(__file__).with_name("golden")
REFRESH = "python tests/rendering/golden_canvases.py"
# Without any vector instructions 2 of 36,000 values of the shipped model differ, by 1 of 255, from those with AVX512.
MOST_OFF, MOST_SHARE = 2, 0.005  # of 255; of values that differ at all
ON_CPU = {"device": "cpu", "dtype": "float32", "batch_size": 4}


def draw_mask(path: Path, width: int, height: int) -> Path:
    """A mask of round nuclei of all classes in tissue, with a corner of glass and one that is unknown."""
    draw = np.random.RandomState(3)  # its numbers never change, as those of newer generators may
    classes, instances = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint32)
    tissue = np.ones((height, width), np.uint8)
    tissue[: height // 2, 2 * width // 3 :] = 0
    tissue[3 * height // 4 :, : width // 3] = 255
    y, x = np.mgrid[:height, :width]
    for number in range(1, width * height // 150):
        column, row, radius = draw.randint(width), draw.randint(height), draw.randint(3, 7)
        nucleus = ((x - column) ** 2 + (y - row) ** 2 <= radius**2) & (tissue == 1)
        classes[nucleus], instances[nucleus] = number % 6 + 1, number
    write_slide_mask(path, width, height, 0.5, [MaskWindow(classes, instances, tissue)], instances=True, tissue=True)
    return path


def make_model(folder: Path, preset: str) -> Path:
    """A network whose weights follow from their names alone: whole numbers, so that every machine makes the same."""
    network = NasdmModel(ModelConfig.preset(preset))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            draw = np.random.RandomState(zlib.crc32(name.encode()))
            numbers = draw.randint(-1000, 1001, tuple(parameter.shape)).astype(np.float32)
            parameter.copy_(torch.from_numpy(numbers * np.float32(0.00015)))
    network.save_pretrained(folder)
    return folder


def paint_slide(folder: Path, width: int, height: int, model: str, **settings: object) -> np.ndarray:
    """Canvas of a rendered slide: (height, width, 3) uint8."""
    mask = draw_mask(folder / "mask.tif", width, height)
    wsigen.render(mask, folder / "s.svs", model=model, seed=5, keep_canvas=True, **ON_CPU, **settings)
    return read_canvas(folder / "s.svs.canvas", width, height)


def paint_mask(folder: Path, width: int, height: int, preset: str) -> np.ndarray:
    """Canvas of a mask that is sampled from a layout."""
    names = ModelConfig.preset(preset).classes.names
    shape = (len(names) + len(REGIONS), -(-height // 32), -(-width // 32))
    planes = np.random.RandomState(7).randint(0, 256, shape).astype(np.uint8)
    Layout(planes, names, width, height, 0.5).save(folder / "layout.tif")
    settings = RenderSettings(model=str(make_model(folder / "model", preset)), seed=5, window=32, overlap=8, **ON_CPU)
    sample_mask(folder / "m.tif", LayoutRequest(str(folder / "layout.tif")), settings, keep_canvas=True)
    return read_canvas(folder / "m.tif.canvas", width, height)


def paint_tiny(folder: Path, sampler: str, guidance_scale: float = 1.0) -> np.ndarray:
    """Canvas of a network with random weights: three by three windows."""
    model = str(make_model(folder / "model", "tiny"))
    chosen = {"sampler": sampler, "steps": 3, "guidance_scale": guidance_scale, "window": 32, "overlap": 8}
    return paint_slide(folder, 44, 40, model, **chosen)


def read_canvas(path: Path, width: int, height: int) -> np.ndarray:
    """Pixels of a whole canvas."""
    return Canvas.open(path).read_region(0, 0, width, height, require=True)[0]


CANVASES: dict[str, Callable[[Path], np.ndarray]] = {
    "shipped": lambda folder: paint_slide(folder, 132, 92, "nasdm-colon-20x", window=64, overlap=16),
    "tiny-ddpm": lambda folder: paint_tiny(folder, "ddpm"),
    "tiny-ddim": lambda folder: paint_tiny(folder, "ddim"),
    "tiny-unipc": lambda folder: paint_tiny(folder, "unipc"),
    "tiny-guided": lambda folder: paint_tiny(folder, "dpm++2m", guidance_scale=2.0),
    "tiny-mask": lambda folder: paint_mask(folder, 44, 40, "tiny-mask"),
}


def paint(name: str) -> np.ndarray:
    """Paint a golden canvas now."""
    with tempfile.TemporaryDirectory() as folder:
        return CANVASES[name](Path(folder))


def here() -> str:
    """What decides how floats round on this machine: torch, and the processor and what torch uses of it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    processor = [facts.get(key, "") for key in ("model name", "cpu family", "model", "stepping")]
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {' '.join(processor)}".strip()


def stored() -> dict:
    """What the golden file says: the number of the pixels, and hashes by canvas and environment."""
    path = FOLDER / "golden.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"pixels": 0, "sha256": {}}


def picture(name: str) -> np.ndarray:
    """The stored pixels of a canvas."""
    with Image.open(FOLDER / f"{name}.png") as image:
        return np.asarray(image)


def sha256(pixels: np.ndarray) -> str:
    """Hash of pixels."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def difference(name: str, pixels: np.ndarray) -> str | None:
    """How a canvas differs from the stored one by more than it may; None if it does not."""
    known = stored()["sha256"].get(name, {}).get(here())
    if known == sha256(pixels):
        return None
    if not (FOLDER / f"{name}.png").is_file():
        return f"{name}: no picture of it is stored"
    before = picture(name)
    if before.shape != pixels.shape:
        return f"{name}: is {pixels.shape}, its picture is {before.shape}"
    off = np.abs(before.astype(np.int16) - pixels)
    said = f"{name}: {(off > 0).mean():.3%} of values differ, by up to {off.max()} of 255"
    if known is not None:
        return f"{said}; {here()} painted it exactly so before"
    return said if off.max() > MOST_OFF or (off > 0).mean() > MOST_SHARE else None


def refresh() -> int:
    """Store what is painted now; returns the exit code."""
    before, painted = stored(), {name: paint(name) for name in CANVASES}
    same = before["pixels"] == PIXELS
    new = [name for name in CANVASES if name not in before["sha256"]]
    changed = [said for name, pixels in painted.items() if name not in new and (said := difference(name, pixels))]
    if same and changed:
        print("pixels have changed: raise PIXELS in wsigen/pixels.py first", *changed, sep="\n")
        return 2
    FOLDER.mkdir(exist_ok=True)
    hashes = {name: dict(before["sha256"].get(name, {})) if same else {} for name in CANVASES}
    for name, pixels in painted.items():
        if not same or name in new:
            Image.fromarray(pixels).save(FOLDER / f"{name}.png", optimize=True)
        hashes[name][here()] = sha256(pixels)
    text = json.dumps({"pixels": PIXELS, "sha256": hashes}, indent=2, sort_keys=True)
    (FOLDER / "golden.json").write_text(text + "\n", encoding="utf-8")
    print(f"stored {len(painted)} canvases of pixels {PIXELS} in {FOLDER}, for {here()}")
    return 0


if __name__ == "__main__":
    sys.exit(refresh())
