"""Renders that are interrupted, killed, starved or deserted, in real processes, and how each ends: with one line."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import psutil
import pytest

from wsigen.cli.options import STOPPED
from wsigen.errors import ClusterError, StoreError
from wsigen.painting.canvas import Canvas
from wsigen.rendering.job import render

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
STEPS = 6


@pytest.fixture(scope="module")
def options(tiny_model, demo_mask_path):
    return [str(demo_mask_path), "--model", str(tiny_model), "--device", "cpu", "--steps", str(STEPS)]


@pytest.fixture(scope="module")
def pixels(tiny_model, demo_mask_path, tmp_path_factory):
    """Of a render that nobody disturbs."""
    out = tmp_path_factory.mktemp("undisturbed") / "s.svs"
    render(demo_mask_path, out, model=str(tiny_model), device="cpu", steps=STEPS, keep_canvas=True)
    return canvas_pixels(out)


def canvas_pixels(out):
    return Canvas.open(f"{out}.canvas").read_region(0, 0, 600, 500, require=True)[0]


def start(options, out, *more):
    """A render in a process group of its own, which feels Ctrl-C even where the tests run in the background."""
    command = [sys.executable, "-m", "wsigen", "render", *options, "-o", str(out), "--keep-canvas", *more]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def chunks_of(out):
    return list(out.with_name(out.name + ".canvas").glob("colour-*/c/*/*/0"))


def wait_for_chunks(process, out, count):
    """Until so many chunks are there that hold more than glass."""
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        if sum(chunk.stat().st_size > 5_000 for chunk in chunks_of(out)) >= count:
            return
        time.sleep(0.005)
    raise AssertionError(f"ended too soon: {process.communicate()[0]}")


@pytest.mark.parametrize(("workers", "chunks"), [(1, 1), pytest.param(2, 3, marks=pytest.mark.exhaustive)])
def test_ctrl_c_says_how_to_go_on_and_the_pixels_are_the_same(options, pixels, tmp_path, workers, chunks):
    out = tmp_path / "s.svs"
    process = start(options, out, "--workers", str(workers))
    wait_for_chunks(process, out, chunks)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    text = process.communicate(timeout=120)[0]
    assert process.returncode == STOPPED, text
    assert "--resume" in text and "Traceback" not in text, text
    assert not out.exists() and not list(tmp_path.glob(".*.partial"))
    done = {chunk: chunk.stat().st_mtime_ns for chunk in chunks_of(out)}
    assert done
    again = start(options, out, "--resume")
    text = again.communicate(timeout=240)[0]
    assert again.returncode == 0, text
    assert np.array_equal(canvas_pixels(out), pixels)
    assert {chunk: chunk.stat().st_mtime_ns for chunk in done} == done, "what was done is not painted again"


def test_kill_9_of_the_driver_leaves_no_workers_and_the_pixels_are_the_same(options, pixels, tmp_path):
    out = tmp_path / "s.svs"
    process = start(options, out, "--workers", "2")
    wait_for_chunks(process, out, 3)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=120)
    assert not psutil.wait_procs(workers, timeout=20)[1], "workers end with their driver"
    again = start(options, out, "--resume", "--workers", "2")
    text = again.communicate(timeout=240)[0]
    assert again.returncode == 0, text
    assert np.array_equal(canvas_pixels(out), pixels)


def test_changed_inputs_are_refused_with_what_changed(options, tmp_path):
    out = tmp_path / "s.svs"
    process = start(options, out)
    wait_for_chunks(process, out, 1)
    process.kill()
    process.communicate(timeout=120)
    for more, named in [(["--seed", "5"], "seed is 0 there and 5 here"), (["--guidance-scale", "2"], "guidance_scale")]:
        refused = start(options, out, "--resume", *more)
        text = refused.communicate(timeout=120)[0]
        assert refused.returncode == 2 and named in text, text


def test_a_canvas_that_vanishes_is_named(tiny_model, demo_mask_path, tmp_path):
    def vanish(progress):
        if progress.painted > 10:
            shutil.rmtree(tmp_path / "s.svs.canvas", ignore_errors=True)

    with pytest.raises(StoreError, match=r"s\.svs\.canvas: the canvas has vanished"):
        render(demo_mask_path, tmp_path / "s.svs", model=str(tiny_model), device="cpu", on_paint=vanish)
    assert not (tmp_path / "s.svs").exists()


def test_a_full_disk_gives_one_line(options, tmp_path):
    """A limit on the size of files stands for the full disk."""
    out = tmp_path / "s.svs"
    code = (
        "import resource, sys; from wsigen.cli.main import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "render", *options, "-o", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert run.returncode == 2, run.stderr
    assert "cannot be written" in run.stderr.splitlines()[-1] and "Traceback" not in run.stderr


@contextmanager
def cluster(folder):
    """A scheduler and a worker as processes of their own, as on a real cluster."""
    address = folder / "scheduler.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    parts = [
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"],
        [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "2", "--no-dashboard"],
    ]
    processes = [
        subprocess.Popen(
            [*part, "--scheduler-file", str(address)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for part in parts
    ]
    try:
        from distributed import Client

        with Client(scheduler_file=str(address), timeout=60, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
            yield client, processes[0]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.exhaustive
def test_a_scheduler_that_dies_gives_one_line_and_the_pixels_are_the_same(tiny_model, demo_mask_path, pixels, tmp_path):
    out, settings = tmp_path / "s.svs", {"model": str(tiny_model), "device": "cpu", "steps": STEPS}
    with cluster(tmp_path) as (client, scheduler):

        def kill(progress):
            if progress.painted > 10:
                scheduler.kill()

        with pytest.raises(ClusterError) as caught:
            render(demo_mask_path, out, dask_scheduler=client.scheduler.address, on_paint=kill, **settings)
        assert "\n" not in str(caught.value) and "--resume" in str(caught.value)
    with cluster(tmp_path / "..") as (client, _):
        render(demo_mask_path, out, dask_scheduler=client, resume=True, keep_canvas=True, **settings)
        assert client.status == "running", "a client that was given stays open"
    assert np.array_equal(canvas_pixels(out), pixels)


def test_an_address_where_nothing_answers_is_named(tiny_model, demo_mask_path, tmp_path, monkeypatch):
    monkeypatch.setattr("wsigen.painting.dask_cluster.CONNECT_SECONDS", 1)
    with pytest.raises(ClusterError, match=r"--dask-scheduler tcp://127\.0\.0\.1:9: no Dask scheduler answers"):
        render(
            demo_mask_path, tmp_path / "s.svs", model=str(tiny_model), device="cpu", dask_scheduler="tcp://127.0.0.1:9"
        )
