"""A slide is a function of its settings: not of block size, order, workers, region, or a kill and a resumption."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from wsigen.errors import SettingsError, StoreError
from wsigen.painting.canvas import Canvas
from wsigen.painting.dask_cluster import local_cluster
from wsigen.painting.grid import Block, BlockGrid, Parity, Rectangle, WindowGrid
from wsigen.painting.process_worker import Job, ProcessWorker
from wsigen.painting.scheduler import Run, paint_canvas
from wsigen.painting.slide_worker import SlideWorker, fixed_threads, load_model, new_threads
from wsigen.painting.spec import PaintSpec, run_record
from wsigen.painting.tasks import chunk_sources, make_plan

WIDTH, HEIGHT = 330, 260  # of the mask in conftest.py
GRID = WindowGrid(WIDTH, HEIGHT, 64, 8, 3)


def new_canvas(path, spec, b=2):
    return Canvas.create(path, BlockGrid(GRID, b), run_record(spec, "mask", "model"))


def slide(canvas):
    return canvas.read_region(0, 0, WIDTH, HEIGHT, require=True)[0]


@pytest.fixture(scope="module")
def painted(spec, tmp_path_factory):
    """The slide in one block, in this process: the canvas and its pixels."""
    canvas = new_canvas(tmp_path_factory.mktemp("reference") / "c.canvas", spec, b=4)
    progress = paint_canvas(canvas, spec)
    assert progress.done == progress.total == GRID.columns * GRID.rows
    return canvas, slide(canvas), progress


def test_the_slide_has_tissue_and_exact_glass(painted, spec):
    _, pixels, progress = painted
    assert pixels[:, :200].std() > 10
    assert (pixels[:, 219:] == spec.style.glass_rgb).all()
    assert progress.glass == 2 * GRID.rows, "the two columns on the right own nothing but glass"


@pytest.fixture(scope="module")
def painted_finely(spec, tmp_path_factory):
    """The slide in the smallest blocks: the canvas and every progress report."""
    canvas = new_canvas(tmp_path_factory.mktemp("fine") / "c.canvas", spec, b=1)
    seen = []
    paint_canvas(canvas, spec, on_progress=seen.append)
    return canvas, seen


def test_pixels_do_not_depend_on_the_block_size(painted, painted_finely, spec, tmp_path):
    assert np.array_equal(slide(painted_finely[0]), painted[1])
    canvas = new_canvas(tmp_path / "c", spec, b=2)
    paint_canvas(canvas, spec)
    assert np.array_equal(slide(canvas), painted[1])


def test_pixels_do_not_depend_on_the_threads_that_torch_has(painted, spec, tmp_path):
    before = torch.get_num_threads()
    region = Rectangle(60, 120, 40, 40)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            canvas = new_canvas(tmp_path / str(threads), spec, b=1)
            paint_canvas(canvas, spec, region=region)
            assert torch.get_num_threads() == threads, "the caller's setting is put back"
        finally:
            torch.set_num_threads(before)
        assert np.array_equal(canvas.read_region(*region)[0], painted[1][120:160, 60:100])


def test_progress_only_grows_and_rows_are_finished_from_the_top(painted_finely, spec, tmp_path):
    _, seen = painted_finely
    plan = make_plan(new_canvas(tmp_path / "c", spec, b=1))
    done, rows = [p.done for p in seen], [p.rows_done for p in seen]
    assert done == sorted(done) and done[-1] == seen[-1].total
    assert rows == sorted(rows) and rows[-1] == HEIGHT
    last = {task.chunks[0][0].q: rank for rank, task in enumerate(plan.tasks)}
    assert last[0] < last[1] and last[0] < last[2], "the first row is finished first"


def test_rows_that_are_told_finished_can_be_read_while_others_are_painted(painted, spec, tmp_path):
    canvas, rows = new_canvas(tmp_path / "c", spec, b=1), [0]

    def read(progress):
        if progress.rows_done > rows[-1]:
            done = canvas.read_region(0, 0, WIDTH, progress.rows_done, require=True)[0]
            assert np.array_equal(done, painted[1][: progress.rows_done])
            rows.append(progress.rows_done)

    run = Run(canvas, spec, on_progress=read)
    with fixed_threads():
        pools = new_threads("cpu")
        slide_worker = SlideWorker.open(spec, canvas.path, pools)
        for task in run.plan.tasks:
            run.ended(task, slide_worker.run(task))
            run.report(task)
        slide_worker.close()
        pools.close()
    assert rows == [0, 112, HEIGHT] and run.finished, "the last row has no odd windows, and is finished before"


def test_pixels_do_not_depend_on_the_order_of_blocks(painted, spec, tmp_path):
    canvas = new_canvas(tmp_path / "c", spec, 1)
    tasks = make_plan(canvas).tasks
    rng = np.random.default_rng(0)
    shuffled = [tasks[i] for i in rng.permutation(len(tasks))]
    with fixed_threads():
        pools = new_threads("cpu")
        slide_worker = SlideWorker.open(spec, canvas.path, pools)
        for task in sorted(shuffled, key=lambda task: task.stage):
            slide_worker.run(task)
            if task.stage and rng.random() < 0.2:
                slide_worker.run(task)  # a task that is run twice does not see its own pixels
        slide_worker.close()
        pools.close()
    assert np.array_equal(slide(canvas), painted[1])


def test_two_workers_one_of_which_dies_paint_the_same_pixels(painted, spec, tmp_path):
    canvas = new_canvas(tmp_path / "c", spec, b=1)
    killed = []

    def kill_once(progress):
        if progress.ended and not killed:
            workers = [c for c in psutil.Process().children(True) if "spawn_main" in " ".join(c.cmdline())]
            workers[0].kill()
            killed.append(workers[0])

    progress = paint_canvas(canvas, spec, workers=2, on_progress=kill_once)
    assert killed and progress.rows_done == HEIGHT
    assert (progress.painted, progress.glass) == (painted[2].painted, painted[2].glass)
    assert np.array_equal(slide(canvas), painted[1])


def test_a_running_cluster_is_used_and_takes_an_interrupted_run_up_again(painted, spec, tmp_path):
    canvas = new_canvas(tmp_path / "c", spec, b=1)

    def interrupt(progress):
        if progress.done > 10:
            raise KeyboardInterrupt

    with local_cluster("cpu", 1, threads=2) as cluster:
        with pytest.raises(KeyboardInterrupt):
            paint_canvas(canvas, spec, scheduler=cluster.scheduler_address, on_progress=interrupt)
        with pytest.raises(StoreError, match=r"cannot see .*nowhere"):
            paint_canvas(canvas, replace(spec, model="nowhere"), scheduler=cluster.scheduler_address)
        assert 0 < make_plan(canvas).resumed < make_plan(canvas).total
        paint_canvas(canvas, spec, scheduler=cluster.scheduler_address)
    assert np.array_equal(slide(canvas), painted[1])


def test_a_killed_process_is_resumed_with_the_same_pixels(painted, spec, tmp_path):
    canvas = new_canvas(tmp_path / "c", spec, 1)
    code = (
        "import sys; from wsigen.painting.canvas import Canvas;"
        "from wsigen.painting.scheduler import Run, paint_canvas;"
        "from wsigen.painting.spec import PaintSpec;"
        "paint_canvas(Canvas.open(sys.argv[1]), PaintSpec.from_json(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(canvas.path), spec.to_json()])
    deadline = time.monotonic() + 60
    while len(list(canvas.path.rglob("c/*/*/0"))) < 4 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    again = Canvas.resume(canvas.path, BlockGrid(GRID, 4), run_record(spec, "mask", "model"))
    plan = make_plan(again)
    assert 0 < plan.resumed < plan.total, "killed in the middle"
    progress = paint_canvas(again, spec)
    assert progress.resumed == plan.resumed and progress.done == progress.total
    assert np.array_equal(slide(again), painted[1])


def test_an_interrupt_leaves_a_canvas_that_can_be_resumed(painted, spec, tmp_path):
    canvas = new_canvas(tmp_path / "c", spec, 1)

    def interrupt(progress):
        if progress.done > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paint_canvas(canvas, spec, on_progress=interrupt)
    assert 0 < make_plan(canvas).resumed < make_plan(canvas).total
    paint_canvas(canvas, spec)
    assert np.array_equal(slide(canvas), painted[1])


@pytest.mark.parametrize("parity", [Parity(0, 0), Parity(0, 1), Parity(1, 1)])
def test_a_damaged_chunk_is_painted_again_and_nothing_else(painted, painted_finely, spec, tmp_path, parity):
    shutil.copytree(painted_finely[0].path, tmp_path / "c")
    file = tmp_path / "c" / f"colour-{parity.x}{parity.y}" / "c" / "1" / "1" / "0"
    file.write_bytes(file.read_bytes()[:-100])
    again = Canvas.open(tmp_path / "c")
    (task,) = make_plan(again).tasks
    assert task.chunks == ((Block(1, 1), parity),)
    paint_canvas(again, spec)
    assert np.array_equal(slide(again), painted[1])


def test_a_region_alone_has_the_pixels_of_the_whole_slide(painted, spec, tmp_path):
    canvas = new_canvas(tmp_path / "c", spec, 1)
    region = Rectangle(100, 120, 50, 40)
    progress = paint_canvas(canvas, spec, region=region)
    assert progress.total < GRID.columns * GRID.rows
    rgb, known = canvas.read_region(*region)
    assert known.all()
    assert np.array_equal(rgb, painted[1][120:160, 100:150])


def test_tasks_wait_for_the_tasks_that_write_what_their_windows_see(spec, tmp_path):
    for b in (1, 2):
        layout = BlockGrid(GRID, b)
        for block in layout.blocks():
            for parity in [Parity(0, 0), Parity(1, 0), Parity(0, 1), Parity(1, 1)]:
                seen = {
                    (layout.block_of(neighbour), neighbour.parity)
                    for window in layout.windows(block, parity)
                    for neighbour in GRID.dependencies(window)
                }
                assert seen <= set(chunk_sources(block, parity))
    plan = make_plan(new_canvas(tmp_path / "c", spec, 1))
    for position, task in enumerate(plan.tasks):
        assert plan.waits_for[task] <= set(plan.tasks[:position])


def test_a_finished_canvas_is_not_painted_again(painted, spec):
    canvas, _, first = painted
    progress = paint_canvas(Canvas.open(canvas.path), replace(spec, model="/nowhere"))
    assert progress.painted == 0 and progress.resumed == first.total


def test_run_record_names_what_decides_the_pixels_and_no_paths(spec):
    record = run_record(spec, "m1", "w1")
    moved = replace(spec, source="/elsewhere/mask.tif", model="/elsewhere/model")
    assert run_record(moved, "m1", "w1") == record
    for other in (
        run_record(replace(spec, seed=8), "m1", "w1"),
        run_record(replace(spec, batch_size=8), "m1", "w1"),
        run_record(spec, "m2", "w1"),
        run_record(spec, "m1", "w2"),
        run_record(spec, "m1", "w1", {"attention": "other"}),
    ):
        assert other != record
    assert json.loads(json.dumps(record)) == record
    assert PaintSpec.from_json(spec.to_json()) == spec


def test_resume_refuses_another_seed(painted, spec):
    with pytest.raises(StoreError, match="seed is 7 there and 8 here"):
        Canvas.resume(painted[0].path, BlockGrid(GRID, 2), run_record(replace(spec, seed=8), "mask", "model"))


def test_a_canvas_of_another_size_than_the_mask_is_refused(spec, tmp_path):
    layout = BlockGrid(WindowGrid(WIDTH + 1, HEIGHT, 64, 8, 3), 2)
    canvas = Canvas.create(tmp_path / "c", layout, run_record(spec, "mask", "model"))
    with pytest.raises(StoreError, match="331"):
        paint_canvas(canvas, spec)


def test_a_worker_that_would_paint_otherwise_is_refused(spec, tmp_path):
    canvas = new_canvas(tmp_path / "c", spec)
    pools = new_threads("cpu")
    process_worker = ProcessWorker(pools, "worker tcp://10.0.0.1:1")
    job = Job.of(canvas, spec)
    with (
        pytest.raises(StoreError, match=r"10\.0\.0\.1.*use like machines"),
        process_worker.slide_worker(replace(job, environment='{"torch": "0.0"}')),
    ):
        pass
    elsewhere = replace(job, spec=replace(spec, source="/elsewhere/mask.tif"))
    with (
        pytest.raises(StoreError, match=r"10\.0\.0\.1.*cannot see /elsewhere/mask\.tif"),
        process_worker.slide_worker(elsewhere),
    ):
        pass
    process_worker.close()


def test_windows_must_suit_the_model(spec, tmp_path):
    with pytest.raises(SettingsError, match="--workers 0"):
        paint_canvas(new_canvas(tmp_path / "c", spec), spec, workers=0)
    assert load_model(spec).unet.size_multiple == 4
