"""A slide and its mask, painted together: each pixel is the one that rendering the mask's file paints.

The slide is taller than a tile of the mask that is decoded at a time, so that it begins before the mask is finished.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import openslide
import pytest
import torch
from click.testing import CliRunner

from wsigen.cli.main import main
from wsigen.config import RenderSettings
from wsigen.errors import MaskError, SettingsError, StoreError
from wsigen.layouts.decoded import TILE, DecodedMask
from wsigen.layouts.decoding import Decoder
from wsigen.layouts.layout import REGIONS, Layout
from wsigen.layouts.mask_code import BLANK, MaskCode
from wsigen.masks.classes import ClassTable
from wsigen.masks.conditions import HALO
from wsigen.masks.slide_mask import SlideMask
from wsigen.models.config import LIZARD_CLASSES, ModelConfig
from wsigen.networks.nasdm import NasdmModel
from wsigen.painting.canvas import Canvas
from wsigen.painting.grid import Rectangle, WindowGrid, bounding
from wsigen.painting.scheduler import Below, Run, TaskScheduler
from wsigen.painting.slide_worker import TaskResult
from wsigen.rendering.job import render
from wsigen.rendering.synthesis import LayoutRequest, plan_above, plan_mask, seen_of_mask, synthesise
from wsigen.rendering.verifying import verify

WIDTH, HEIGHT = 200, 2000
REQUEST = LayoutRequest("adenocarcinoma", (WIDTH, HEIGHT), 3)


def random_model(config: ModelConfig, folder) -> str:
    torch.manual_seed(11)
    model = NasdmModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def mask_model(tmp_path_factory):
    return random_model(ModelConfig.preset("tiny-mask"), tmp_path_factory.mktemp("mask-model") / "tiny-mask")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    painter = random_model(ModelConfig.preset("tiny"), tmp_path_factory.mktemp("painter") / "tiny")
    return RenderSettings(model=painter, seed=3, steps=1, device="cpu", dtype="float32", batch_size=4)


class Events:
    """What is heard of the two stages, in order."""

    def __init__(self):
        self.heard = []

    def mask(self, progress):
        self.heard.append(("mask", progress))

    def slide(self, progress):
        self.heard.append(("slide", progress))

    def places(self, stage):
        """Places in the order at which tasks of a stage ended."""
        return [place for place, (name, progress) in enumerate(self.heard) if name == stage and progress.ended]


def synth(out, settings, mask_model, events=None, **options):
    events = events or Events()
    reports = {"on_mask": events.mask, "on_paint": events.slide} | options
    return synthesise(out, REQUEST, settings, mask_model=mask_model, mask_steps=1, **reports)


@pytest.fixture(scope="module")
def whole(settings, mask_model, tmp_path_factory):
    return synth(tmp_path_factory.mktemp("whole") / "s.svs", settings, mask_model)


def pixels(slide) -> np.ndarray:
    with openslide.OpenSlide(slide) as opened:
        return np.asarray(opened.read_region((0, 0), 0, opened.dimensions).convert("RGB"))


def planes(mask) -> tuple[np.ndarray, ...]:
    with SlideMask.open(mask, 6) as opened:
        read = opened.read(0, 0, opened.width, opened.height)
    return read.classes, read.instances, read.tissue


def assert_same(folder, whole):
    """Pixels, mask and files are those of the undisturbed run."""
    result, undisturbed = folder / "s.svs", whole.slide.slide
    assert np.array_equal(pixels(result), pixels(undisturbed))
    assert all(map(np.array_equal, planes(folder / "s_masks.tif"), planes(whole.mask.mask)))
    files = {path.name for path in undisturbed.parent.iterdir()}
    assert {path.name for path in folder.iterdir()} == files == set(FILES)


FILES = ("s.svs", "s.png", "s.json", "s_masks.tif", "s_masks.layout.tif")


def test_the_slide_is_that_of_the_masks_file_and_so_is_its_record(whole, settings, tmp_path):
    mask, slide = whole.mask.mask, whole.slide
    again = render(mask, tmp_path / "s.svs", **{k: v for k, v in vars(settings).items() if v})
    assert np.array_equal(pixels(slide.slide), pixels(again.slide))
    assert slide.picture.read_bytes() == again.picture.read_bytes()
    records = [json.loads(result.record.read_text()) for result in (slide, again)]
    for record in records:
        del record["timings"]
    assert records[0] == records[1]
    assert all(check.equal for check in verify(slide.slide, mask, windows=3))
    assert len(np.unique(pixels(slide.slide).reshape(-1, 3), axis=0)) > 1000


class Handed:
    """An `Executor` that paints nothing: it notes which tasks are handed out, and ends the oldest of four."""

    capacity, lanes, live = 4, 1, False

    def __init__(self, on_task):
        self.on_task, self.running, self.done = on_task, [], set()

    def prepare(self, job):
        return []

    def submit(self, job, task, priority):
        self.on_task(job, task)
        self.running.append((Future(), job, task))
        return self.running[-1][0]

    def check(self):
        if not self.running:
            return
        future, job, task = self.running.pop(0)
        self.done.update((job.canvas, *chunk) for chunk in task.chunks)
        future.set_result(TaskResult())


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (1033, 700)])
def test_the_slide_begins_before_the_mask_is_finished_but_after_what_it_reads_of_it(
    settings, mask_model, tmp_path, size
):
    request = LayoutRequest("muscle", size, 3)
    below = plan_mask(tmp_path / "m.tif", request, replace(settings, model=mask_model))
    above = plan_above(below, tmp_path / "s.svs", settings)
    runs = []
    for plan in (below, above):
        canvas = Canvas.create(tmp_path / plan.out.name, plan.blocks, plan.run)
        seen = Below(runs[0], partial(seen_of_mask, below.grid)) if runs else None
        runs.append(Run(canvas, plan.spec, occupied=plan.occupied, below=seen))
    mask, order, meanwhile = runs[0].canvas, [], set()
    blank = {(str(mask.path), *chunk) for chunk in runs[0].plan.blank}

    def handed_out(job, task):
        order.append("mask" if job.canvas == str(mask.path) else "slide")
        if order[-1] == "slide":
            meanwhile.update(other for _, running, other in executor.running if running.canvas == str(mask.path))
            layout = runs[1].canvas.layout
            for window in (window for chunk in task.chunks for window in layout.windows(*chunk)):
                for part in read_of_mask(below.layout, layout.grid.extent(window)):
                    needed = {(mask.layout.block_of(w), w.parity) for w in mask.grid.windows(part)}
                    assert {(str(mask.path), *chunk) for chunk in needed} <= executor.done | blank

    executor = Handed(handed_out)
    engine = TaskScheduler(executor)
    for run in runs:
        engine.add(run)
    while not all(run.finished for run in runs):
        engine.step()
    assert order.count("slide") > 10
    if size[1] > TILE + HEIGHT // 3:  # else the first windows follow from all of it
        assert meanwhile, "the slide waits for the whole mask"


def read_of_mask(layout, extent):
    """The parts of a mask's picture that are read for a window of the slide."""
    read = []

    def panels(x, y, w, h):
        read.append(Rectangle(x, y, w, h))
        return np.broadcast_to(np.array(BLANK, np.uint8), (h, w, 3))

    x, y, w, h = extent
    mask = DecodedMask(Path("canvas"), panels, layout, Decoder(MaskCode.of(LIZARD_CLASSES)))
    mask.read(x - HALO, y - HALO, w + 2 * HALO, h + 2 * HALO)
    return read


def test_the_canvases_are_gone_in_the_end(whole):
    assert {path.name for path in whole.slide.slide.parent.iterdir()} == set(FILES)


def test_two_workers_paint_the_same(whole, settings, mask_model, tmp_path):
    events = Events()
    synth(tmp_path / "s.svs", replace(settings, workers=2), mask_model, events)
    assert_same(tmp_path, whole)
    assert len(events.places("mask")) > 20 and len(events.places("slide")) > 20


def start(settings, mask_model, out, *more):
    """``wsigen synth`` in a process group of its own, which feels Ctrl-C even where tests run in the background."""
    options = {
        **{"--layout": REQUEST.source, "--size": f"{WIDTH}x{HEIGHT}", "--seed": REQUEST.seed, "-o": out},
        **{"--mask-model": mask_model, "--mask-steps": 1, "--model": settings.model, "--steps": settings.steps},
        **{"--batch-size": settings.batch_size, "--device": settings.device, "--dtype": settings.dtype},
    }
    return subprocess.Popen(
        [sys.executable, "-m", "wsigen", "synth", *(str(part) for option in options.items() for part in option), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def chunks_of(canvas):
    return list(canvas.glob("colour-*/c/*/*/0"))


def stop_at(process, canvas, count, number):
    """Send a signal once so many chunks of a canvas are there, and return what was printed."""
    deadline = time.monotonic() + 120
    while process.poll() is None and len(chunks_of(canvas)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert process.poll() is None, f"ended too soon: {process.communicate()[0]}"
    os.killpg(process.pid, number)
    return process.communicate(timeout=120)[0]


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize(
    ("stage", "number"), [("s_masks.tif", signal.SIGKILL), ("s.svs", signal.SIGKILL), ("s.svs", signal.SIGINT)]
)
def test_a_stopped_run_is_resumed_to_the_same_pixels_and_files(whole, settings, mask_model, tmp_path, stage, number):
    out = tmp_path / "s.svs"
    text = stop_at(start(settings, mask_model, out), tmp_path / f"{stage}.canvas", 4, number)
    assert not out.exists()
    if number == signal.SIGINT:
        assert "--resume" in text and "Traceback" not in text, text
        assert not list(tmp_path.glob(".*")), "half a file is left"
    assert (tmp_path / "s_masks.tif.canvas" / "run.json").is_file(), "the slide is painted from it"
    again = start(settings, mask_model, out, "--resume")
    text = again.communicate(timeout=200)[0]
    assert again.returncode == 0, text
    for left in tmp_path.glob(".*"):  # by the killed process
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert_same(tmp_path, whole)


class StopOnceTheMaskIsWritten(Events):
    """Interrupts the painting of the slide when the mask's file is there."""

    def __init__(self, mask):
        super().__init__()
        self.file = mask

    def slide(self, progress):
        super().slide(progress)
        masks = [heard for stage, heard in self.heard if stage == "mask"]
        if progress.ended and masks[-1].done == masks[-1].total:
            deadline = time.monotonic() + 60
            while not self.file.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            raise KeyboardInterrupt


def test_a_run_goes_on_after_the_mask_was_written(whole, settings, mask_model, tmp_path):
    events = StopOnceTheMaskIsWritten(tmp_path / "s_masks.tif")
    with pytest.raises(KeyboardInterrupt):
        synth(tmp_path / "s.svs", settings, mask_model, events)
    left = {path.name for path in tmp_path.iterdir()} - {"s.png"}  # which grows meanwhile
    assert left == {"s_masks.tif", "s_masks.layout.tif", "s_masks.tif.canvas", "s.svs.canvas"}
    events = Events()
    synth(tmp_path / "s.svs", settings, mask_model, events, resume=True)
    assert not events.places("mask") and len(events.places("slide")) > 3
    assert_same(tmp_path, whole)


def test_a_slide_that_is_lost_is_painted_from_the_mask_that_is_there(whole, settings, mask_model, tmp_path):
    for name in ("s_masks.tif", "s_masks.layout.tif"):
        (tmp_path / name).write_bytes((whole.mask.mask.parent / name).read_bytes())
    events = Events()
    synth(tmp_path / "s.svs", settings, mask_model, events, resume=True)
    assert not events.places("mask")
    assert_same(tmp_path, whole)


def test_a_painter_of_another_scale_waits_for_the_whole_mask(settings, mask_model, tmp_path):
    finer = random_model(replace(ModelConfig.preset("tiny"), mpp=0.25), tmp_path / "finer")
    events, request = Events(), LayoutRequest("muscle", (200, 150), 3)
    reports = {"on_mask": events.mask, "on_paint": events.slide}
    result = synthesise(
        tmp_path / "s.svs", request, replace(settings, model=finer), mask_model=mask_model, mask_steps=1, **reports
    )
    assert (result.slide.width, result.slide.height) == (400, 300)
    assert events.places("mask")[-1] < events.places("slide")[0]
    assert not list(tmp_path.glob("*.canvas"))


def test_a_painter_of_fewer_classes_is_refused_before_anything_is_painted(settings, mask_model, tmp_path):
    tiny = ModelConfig.preset("tiny")
    fewer = replace(tiny, classes=ClassTable.from_config(tiny.classes.to_config()[:4]))
    two = random_model(fewer, tmp_path / "fewer")
    with pytest.raises(SettingsError, match="paints 4 classes of nuclei, and the mask has 6"):
        synthesise(
            tmp_path / "s.svs",
            LayoutRequest("muscle", (200, 150), 3),
            replace(settings, model=two),
            mask_model=mask_model,
        )
    assert not (tmp_path / "s.svs").exists() and not list(tmp_path.glob("*.canvas"))


def test_a_canvas_of_the_mask_that_vanishes_ends_the_run(settings, mask_model, tmp_path):
    canvas = tmp_path / "s_masks.tif.canvas"

    def vanish(progress):
        if progress.ended and (canvas / "run.json").exists():
            (canvas / "run.json").unlink()

    with pytest.raises(StoreError, match=r"s_masks\.tif\.canvas: the canvas has vanished"):
        synth(tmp_path / "s.svs", settings, mask_model, on_mask=vanish)
    assert not (tmp_path / "s.svs").exists() and not (tmp_path / "s_masks.tif").exists()


def test_a_mask_that_cannot_be_written_ends_the_run_before_the_slide_is_painted(settings, mask_model, tmp_path):
    events = Events()

    def in_the_way(progress):
        events.mask(progress)
        if progress.ended and not (tmp_path / "s_masks.tif").exists():
            (tmp_path / "s_masks.tif").mkdir()

    with pytest.raises(MaskError, match=r"s_masks\.tif"):
        synth(tmp_path / "s.svs", settings, mask_model, events, on_mask=in_the_way)
    assert (tmp_path / "s_masks.tif.canvas").is_dir() and not (tmp_path / "s.svs").exists()
    last = events.heard[-1][1]
    assert last.done < last.total, "the slide is painted in vain"


def test_errors_of_the_mask_are_one_line(settings, mask_model, tmp_path):
    """A limit on the size of files stands for the full disk."""
    if sys.platform == "win32":
        pytest.skip("limits the size of files")
    code = (
        "import resource, sys; from wsigen.cli.main import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)); main(sys.argv[1:])"
    )
    options = ["--size", "200x150", "--seed", "3", "--device", "cpu", "--mask-model", mask_model, "--mask-steps", "1"]
    command = [sys.executable, "-c", code, "synth", *options, "--model", settings.model, "-o", str(tmp_path / "s.svs")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
    assert "cannot be written" in run.stderr.splitlines()[-1] and run.stderr.count("cannot be written") == 1


def test_models_that_are_mixed_up_are_one_line_and_nothing_is_written(settings, mask_model, tmp_path):
    options = ["--size", "200x150", "--mask-model", settings.model, "--model", settings.model]
    result = CliRunner().invoke(main, ["synth", *options, "-o", str(tmp_path / "s.svs")])
    assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1
    assert "paints slides, not masks" in result.output and not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(1033, 90), (2060, 1200), (1024, 1024), (300, 2100), (64, 1025)])
def test_a_window_of_the_slide_waits_for_all_that_it_reads_of_the_mask(size):
    """Also at the border, where what lies beyond is reflected, up to a window's width away."""
    width, height = size
    grid = WindowGrid(width, height, 256, 32)
    rows, columns = -(-height // 32), -(-width // 32)
    layout = Layout(np.zeros((6 + len(REGIONS), rows, columns), np.uint8), LIZARD_CLASSES.names, width, height, 0.5)
    for window in grid.windows(Rectangle(0, 0, width, height)):
        read, seen = read_of_mask(layout, grid.extent(window)), seen_of_mask(grid, grid.extent(window))
        assert bounding([seen, *read]) == seen, f"{window} reads {read} and waits for {seen} alone"
        assert seen.x >= 0 and seen.y >= 0 and seen.x + seen.width <= width and seen.y + seen.height <= height
