"""On a GPU, with the shipped network at its own batch: a slide is the same however and wherever it is painted.

Slides of 8,192 px; what is compared are the pixels of the canvas, before JPEG.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import wsigen
from wsigen.masks.conditions import read_surroundings
from wsigen.masks.demo.mask import demo_mask
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask
from wsigen.models.config import ModelConfig
from wsigen.models.registry import DEFAULT_MODEL, find_model
from wsigen.painting.canvas import Canvas
from wsigen.painting.painter import Painter, WindowJob
from wsigen.painting.rows import rows_are_equal
from wsigen.painting.slide_worker import load_model, make_painter
from wsigen.rendering.plan import plan_render
from wsigen.rendering.stage import canvas_beside

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SIDE, DRAWN = 8192, 2048
RECT = (2900, 1700, 900, 700)
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("slides")


@pytest.fixture(scope="module")
def mask(folder):
    """Copies of drawn tissue, with glass between them."""
    drawn, copies = demo_mask(DRAWN, DRAWN, 4), SIDE // DRAWN
    highest = int(drawn.instances.max())

    def bands():
        for row in range(copies):
            classes, instances, tissue = (
                np.tile(plane, (1, copies)) for plane in (drawn.classes, drawn.instances, drawn.tissue)
            )
            number = row * copies + np.arange(SIDE, dtype=np.uint32) // DRAWN
            yield MaskWindow(
                classes, np.where(instances > 0, instances + number * highest, 0).astype(np.uint32), tissue
            )

    path = folder / "mask.tif"
    write_slide_mask(path, SIDE, SIDE, 0.5, bands(), True, True)
    return path


def canvas_hash(out, rect=(0, 0, SIDE, SIDE)):
    """Hash of the pixels of a finished slide's canvas."""
    pixels, known = Canvas.open(canvas_beside(Path(out))).read_region(*rect, require=True)
    assert known.all()
    return hashlib.sha256(pixels).hexdigest()


@pytest.fixture(scope="module")
def one(folder, mask):
    """The slide as one GPU paints it: its name."""
    out = folder / "one.svs"
    result = wsigen.render(mask, out, device="cuda", keep_canvas=True)
    assert result.painted > 1000
    return out


@pytest.fixture(scope="module")
def spec(mask):
    return plan_render(mask, settings=wsigen.config.RenderSettings(device="cuda")).spec


@pytest.fixture(scope="module")
def painter(spec):
    return make_painter(spec, load_model(spec))


@pytest.fixture(scope="module")
def jobs(mask, spec):
    """As many windows as a batch has, with a strip each that is painted already, as a later stage sees them."""
    side, rng, found = spec.window, np.random.default_rng(5), []
    source = SlideMask.open(mask, 6)
    for number in range(spec.batch_size):
        x, y = (int(start) for start in rng.integers(0, SIDE - side, 2))
        known = np.zeros((side, side), bool)
        known[:, : 8 * (number % 4)] = True
        context = np.where(known[..., None], rng.integers(120, 256, (side, side, 3)), 0).astype(np.uint8)
        found.append(WindowJob(x, y, read_surroundings(source, x, y, side, side, 0.5), context, known))
    source.close()
    return found


def test_the_shipped_batch_is_what_is_tested(spec):
    config = ModelConfig.load(find_model(DEFAULT_MODEL))
    assert (spec.batch_size, spec.window, spec.dtype) == (64, config.window, "bfloat16")


def test_all_rows_of_a_batch_of_one_window_are_equal(painter, jobs):
    pixels = painter.paint([jobs[5]] * painter.batch_size)
    assert pixels.std() > 10, "a picture, not a constant"
    assert rows_are_equal(torch.from_numpy(pixels.copy()), painter.batch_size)


def test_a_permuted_batch_has_permuted_pixels(painter, jobs):
    expected = painter.paint(jobs).copy()
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(jobs))
        assert np.array_equal(painter.paint([jobs[place] for place in order]), expected[order])


@pytest.mark.parametrize("count", [1, 3, 31, 60, 63])
def test_a_batch_that_is_not_full_has_the_pixels_of_a_full_one(painter, jobs, count):
    expected = painter.paint(jobs).copy()
    assert np.array_equal(painter.paint(jobs[-count:]), expected[-count:])


@pytest.mark.parametrize("batch_size", [2, 16, 32, 48, 96, 128])
def test_other_batch_sizes_keep_rows_equal_too(spec, painter, jobs, batch_size):
    other = Painter(
        painter.model,
        spec.style,
        sampler=spec.sampler,
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        batch_size=batch_size,
        device="cuda",
        dtype=torch.bfloat16,
    )
    assert rows_are_equal(torch.from_numpy(other.paint([jobs[5]] * batch_size).copy()), batch_size)


def test_a_second_painter_has_the_pixels_of_the_first(spec, painter, jobs):
    assert np.array_equal(make_painter(spec, load_model(spec)).paint(jobs), painter.paint(jobs))


def test_the_same_command_paints_the_same_slide_twice(folder, mask, one):
    again = folder / "again.svs"
    wsigen.render(mask, again, device="cuda", keep_canvas=True)
    assert canvas_hash(again) == canvas_hash(one)


def test_a_killed_and_resumed_slide_is_the_same(folder, mask, one):
    out = folder / "killed.svs"
    command = [sys.executable, "-m", "wsigen", "render", str(mask), "-o", str(out), "--device", "cuda"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    canvas = canvas_beside(out)
    while process.poll() is None and sum(file.is_file() for file in canvas.rglob("c/*/*/*")) < 12:
        time.sleep(0.02)
    assert process.poll() is None, "finished before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wsigen.render(mask, out, device="cuda", keep_canvas=True, resume=True)
    assert canvas_hash(out) == canvas_hash(one)


def test_a_part_of_a_slide_is_that_part(folder, mask, one):
    out = folder / "part.svs"
    wsigen.render(mask, out, device="cuda", keep_canvas=True, rect=RECT)
    assert canvas_hash(out, RECT) == canvas_hash(one, RECT)


def test_a_slide_that_is_painted_while_it_is_read_is_the_same(mask, one):
    with wsigen.open_generated(mask, device="cuda") as slide:
        region = np.asarray(slide.read_region(RECT[:2], 0, RECT[2:]))[..., :3]
    assert hashlib.sha256(np.ascontiguousarray(region)).hexdigest() == canvas_hash(one, RECT)


SCRIPT = """
import torch
import wsigen.painting.painter  # opens the GPU where it is imported, in worker processes too
import wsigen

if __name__ == "__main__":
    wsigen.render({mask!r}, {out!r}, device="cuda", workers=2, keep_canvas=True)
"""


@two_gpus
def test_two_gpus_paint_the_slide_of_one_also_from_a_script_that_imports_torch(folder, mask, one):
    out, script = folder / "two.svs", folder / "script.py"
    script.write_text(SCRIPT.format(mask=str(mask), out=str(out)))
    process = subprocess.Popen([sys.executable, str(script)], cwd=folder)
    most = [0] * torch.cuda.device_count()
    while process.poll() is None:
        for number in range(len(most)):
            free, total = torch.cuda.mem_get_info(number)
            most[number] = max(most[number], total - free)
        time.sleep(0.05)
    assert process.returncode == 0
    assert canvas_hash(out) == canvas_hash(one)
    assert min(most[:2]) > 6 << 30, f"one GPU had nothing to do: {most}"


@two_gpus
def test_two_gpus_paint_the_same_slide_twice(folder, mask, one):
    out = folder / "two_again.svs"
    wsigen.render(mask, out, device="cuda", workers=2, keep_canvas=True)
    assert canvas_hash(out) == canvas_hash(one)


def test_the_doctor_says_what_it_tried():
    done = subprocess.run(
        [sys.executable, "-m", "wsigen", "doctor", "--device", "cuda"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "rows of a batch of 64 windows of 256 px" in done.stdout


def test_a_machine_that_has_compiled_nothing_says_so(mask, folder, monkeypatch):
    settings = wsigen.config.RenderSettings(device="cuda")
    monkeypatch.setenv("WSIGEN_CACHE", str(folder / "none"))
    assert any("compiled" in line for line in plan_render(mask, folder / "new.svs", settings).describe())
    monkeypatch.undo()
    assert not any("compiled" in line for line in plan_render(mask, folder / "new.svs", settings).describe())
