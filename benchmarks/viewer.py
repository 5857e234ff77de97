"""How long a page of the viewer waits: for tiles, finished and live, and from a look to the painted view.

The real server answers over HTTP on this machine, as a browser asks: six connections at a time, and one alone. The
finished slide is drawn (textured everywhere, JPEG, no worse to read than tissue); the live one is a demo mask or the
example. Live tiles are asked while the painter works, which is when a page asks.

    python benchmarks/viewer.py --device cuda --size 8192 --view 1920x1080
"""

from __future__ import annotations

import http.client
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyvips

from wsigen.config import RenderSettings
from wsigen.errors import WsigenError
from wsigen.masks.demo.mask import write_demo_mask
from wsigen.viewer.scene import Scene, SceneSettings, open_scene
from wsigen.viewer.server import HOST, listen, make_server

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "slide_masks.tif"
CONNECTIONS = 6  # of a browser to one host
FINISHED_SIDE = 8192


@contextmanager
def served(settings: SceneSettings) -> Iterator[tuple[Scene, int]]:
    """A scene behind its server, and the port."""
    scene, listener = open_scene(settings), listen(None)
    server = make_server(scene)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield scene, listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        scene.close()
        listener.close()


class Client:
    """One connection that stays open."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection(HOST, port, timeout=60)

    def get(self, path: str) -> tuple[bytes, float]:
        """Body and seconds; raises RuntimeError for anything but 200."""
        started = time.perf_counter()
        self.connection.request("GET", path)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {content[:200]!r}")
        return content, time.perf_counter() - started

    def post(self, path: str, body: dict[str, Any]) -> None:
        """Send JSON."""
        self.connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status}")
        answer.read()


def tile_paths(prefix: str, levels: list[list[int]], count: int, ending: str, seed: int = 0) -> list[str]:
    """Tiles of all levels, as many of each where there are as many."""
    chance, paths = random.Random(seed), []
    for index in range(count):
        level = index % len(levels)
        width, height = levels[level]
        column, row = chance.randrange(-(-width // 256)), chance.randrange(-(-height // 256))
        paths.append(f"{prefix}/{level}/{column}_{row}.{ending}")
    return paths


def latencies(port: int, paths: list[str], connections: int) -> list[float]:
    """Seconds of each request, over so many connections at a time."""
    local = threading.local()

    def one(path: str) -> float:
        if not hasattr(local, "client"):
            local.client = Client(port)
        return local.client.get(path)[1]

    with ThreadPoolExecutor(connections) as pool:
        return list(pool.map(one, paths))


def figures(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds."""
    return {
        "median_ms": round(1000 * statistics.median(seconds), 2),
        "p95_ms": round(1000 * float(np.percentile(seconds, 95)), 2),
        "tiles": len(seconds),
    }


def draw_slide(path: Path, side: int) -> None:
    """A pyramid of coloured noise of several scales: JPEG, 256 px tiles."""
    planes = []
    for seed in range(3):
        noise = pyvips.Image.gaussnoise(side // 8, side // 8, mean=150, sigma=60, seed=seed).resize(8)
        fine = pyvips.Image.gaussnoise(side, side, mean=0, sigma=20, seed=seed + 3)
        planes.append(noise + fine)
    image = planes[0].bandjoin(planes[1:]).cast("uchar").copy(interpretation="srgb")
    image.tiffsave(str(path), tile=True, tile_width=256, tile_height=256, pyramid=True, compression="jpeg", Q=87,
                   xres=2000, yres=2000, resunit="cm")  # fmt: skip


def measure_finished(folder: Path, tiles: int) -> dict[str, Any]:
    """Tiles of a finished slide, and how soon a page has its first view."""
    path = folder / "finished.tif"
    draw_slide(path, FINISHED_SIDE)
    with served(SceneSettings(path)) as (_, port):
        started = time.perf_counter()
        client = Client(port)
        for name in ("", "page/style.css", "page/app.js", "page/openseadragon/openseadragon.min.js"):
            client.get("/" + name)
        scene = json.loads(client.get("/api/scene")[0])
        levels = scene["pictures"][0]["levels"]
        fitting = next(index for index, (width, _) in enumerate(levels) if width <= 1440)
        width, height = levels[fitting]
        view = [
            f"/tiles/slide/{fitting}/{x}_{y}.jpg" for y in range(-(-height // 256)) for x in range(-(-width // 256))
        ]
        latencies(port, view, CONNECTIONS)
        first = time.perf_counter() - started
        paths = tile_paths("/tiles/slide", levels, tiles, "jpg")
        return {
            "first_view_s": round(first, 3),
            "one_connection": figures(latencies(port, paths, 1)),
            "six_connections": figures(latencies(port, paths, CONNECTIONS)),
        }


def measure_live(mask: Path, render: RenderSettings, view: tuple[int, int], tiles: int) -> dict[str, Any]:
    """Look at the middle of a mask that has no slide: tiles meanwhile, and the time to the painted view."""
    started = time.perf_counter()
    with served(SceneSettings(mask, render=render)) as (scene, port):
        live = scene.live
        assert live is not None
        reading = time.perf_counter() - started
        until(lambda: live.view.slide is not None, 300)
        opening = time.perf_counter() - started - reading
        client = Client(port)
        levels = json.loads(client.get("/api/scene")[0])["pictures"][0]["levels"]
        with events(port) as session:
            width, height = (min(size, whole) for size, whole in zip(view, levels[0]))
            look = {
                "session": session, "x": (levels[0][0] - width) // 2, "y": (levels[0][1] - height) // 2,
                "width": width, "height": height,
            }  # fmt: skip
            clicked = time.perf_counter()
            client.post("/api/look", look)
            live_tiles = latencies(port, tile_paths("/tiles/live", levels, tiles, "jpg"), CONNECTIONS)
            shown = "?mode=outline&show=1,2,3,4,5,6"
            overlay = latencies(
                port, [p + shown for p in tile_paths("/overlays/mask", levels, tiles, "png")], CONNECTIONS
            )
            busy = live.status(session)["painted"] < live.status(session)["windows"]
            until(lambda: live.status(session)["painted"] > 0, 600)
            first = time.perf_counter() - clicked
            until(lambda: live.status(session)["painted"] == live.status(session)["windows"] > 0, 3600)
            painted = time.perf_counter() - clicked
            windows = live.status(session)["windows"]
            columns = range(look["x"] // 256, (look["x"] + width - 1) // 256 + 1)
            rows = range(look["y"] // 256, (look["y"] + height - 1) // 256 + 1)
            ready = [f"/tiles/live/0/{x}_{y}.jpg" for y in rows for x in columns]
            done = latencies(port, ready * max(1, tiles // len(ready)), CONNECTIONS)
        return {
            "device": live.view.plan.machine.device.description,
            "steps": live.view.plan.spec.num_inference_steps,
            "reading_s": round(reading, 2),
            "model_s": round(opening, 2),
            "view": f"{width}x{height}",
            "windows_in_view": windows,
            "first_window_s": round(first, 2),
            "painted_view_s": round(painted, 2),
            "tiles_while_painting": figures(live_tiles),
            "overlay_while_painting": figures(overlay),
            "still_painting_then": busy,
            "tiles_painted": figures(done),
        }


@contextmanager
def events(port: int) -> Iterator[str]:
    """A page's event stream, kept open; gives the session."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request("GET", "/api/events")
    stream = connection.getresponse()
    stream.readline()
    session = json.loads(stream.readline().decode().removeprefix("data: "))["session"]
    closing = threading.Event()

    def drain() -> None:
        while not closing.is_set() and stream.readline():
            pass

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    try:
        yield session
    finally:
        closing.set()
        reader.join(15)
        connection.close()


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition; raises TimeoutError."""
    end = time.perf_counter() + seconds
    while not condition():
        if time.perf_counter() > end:
            raise TimeoutError("the viewer did not get there in time")
        time.sleep(0.02)


def report(result: dict[str, Any]) -> None:
    """Print the figures for people."""
    finished, live = result["finished"], result["live"]
    click.echo(
        f"finished slide, {FINISHED_SIDE:,} px: page and first view in {finished['first_view_s']:.2f} s; tiles "
        f"{_words(finished['one_connection'])} alone, {_words(finished['six_connections'])} with six connections"
    )
    click.echo(
        f"live, {live['device']}, {live['steps']} steps: mask read in {live['reading_s']} s, model loaded in "
        f"{live['model_s']} s; a view of {live['view']} px ({live['windows_in_view']} windows): first window after "
        f"{live['first_window_s']} s, all painted after {live['painted_view_s']} s"
    )
    click.echo(
        f"tiles while it paints {_words(live['tiles_while_painting'])}, overlay "
        f"{_words(live['overlay_while_painting'])}; painted tiles {_words(live['tiles_painted'])}"
    )
    if not live["still_painting_then"]:
        click.echo("(the view was painted before the last of the tiles came)")


def _words(found: dict[str, float]) -> str:
    return f"{found['median_ms']:.1f} ms (95 %: {found['p95_ms']:.1f} ms)"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", default="nasdm-colon-20x", show_default=True, help="Name or folder.")
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]), show_default=True)
@click.option("--batch-size", type=click.IntRange(min=2), help="Windows a forward. [default: the device's]")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the sampler. [default: the model's]")
@click.option("--size", type=click.IntRange(min=1), help="A demo mask of this side, px. [default: the example]")
@click.option("--view", default="1200x800", show_default=True, help="What the page shows, px of level 0.")
@click.option("--tiles", default=300, type=click.IntRange(min=10), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Append one line of JSON to this file.")
def main(
    model: str,
    device: str,
    batch_size: int | None,
    steps: int | None,
    size: int | None,
    view: str,
    tiles: int,
    json_file: Path | None,
) -> None:
    """Time the viewer."""
    width, _, height = view.partition("x")
    render = RenderSettings(model=model, device=device, batch_size=batch_size, steps=steps)
    try:
        with tempfile.TemporaryDirectory(prefix="wsigen-benchmark-") as name:
            mask = EXAMPLE
            if size:
                mask = Path(name) / "demo_mask.tif"
                write_demo_mask(mask, size, size, 0)
            finished = measure_finished(Path(name), tiles)
            live = measure_live(mask, render, (int(width), int(height)), tiles)
    except WsigenError as error:
        raise click.ClickException(str(error)) from error
    result = {"benchmark": "viewer", "model": model, "finished": finished, "live": live}
    report(result)
    if json_file:
        with json_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
