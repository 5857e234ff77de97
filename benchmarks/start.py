"""Where the time of a first start goes: from the process's beginning to the slide's end, phase by phase.

The render runs as the command line runs it, in this process. With --fresh nothing is compiled or checked yet: what
wsigen and Triton keep goes to folders of its own, which are removed. The disk's cache is the system's; a machine that
has just started has none.

    python benchmarks/start.py --device cuda --fresh
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "slide_masks.tif"


def process_began() -> float:
    """When this process began, in seconds of time.time(); now where the system does not say."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, ValueError, IndexError):
        return time.time()


@dataclass
class Timeline:
    """Phases of a start: name, begin and end, in seconds since the process began."""

    began: float
    phases: list[tuple[str, float, float]] = field(default_factory=list)

    def now(self) -> float:
        """Seconds since the process began."""
        return time.time() - self.began

    def add(self, name: str, begin: float, end: float | None = None) -> None:
        """Add a phase that ends now, or ended then."""
        self.phases.append((name, begin, self.now() if end is None else end))

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Note every call of a function that ``owner`` holds."""
        function = getattr(owner, attribute)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.add(name, begin)

        setattr(owner, attribute, timed)

    def describe(self) -> list[str]:
        """Lines in order of beginning; phases overlap where they run beside one another."""
        rows = sorted(self.phases, key=lambda phase: phase[1])
        return [f"{begin:7.2f} s  {end - begin:6.2f} s  {name}" for name, begin, end in rows]


def watch_painting(timeline: Timeline) -> None:
    """Note what a render does beside planning and painting."""
    from wsigen_kernels import compiling

    from wsigen.painting import early, process_worker
    from wsigen.painting.painter import Painter
    from wsigen.rendering import job

    timeline.watch(job, "plan_render", "plan: read the mask, check")
    timeline.watch(process_worker, "load_model", "model: read the weights, move them to the device")
    timeline.watch(Painter, "open", "painter: open, of which")
    timeline.watch(Painter, "_compile", "  kernels: note, compile, load")
    timeline.watch(early, "compiled", "    wait for what compiles beside")
    timeline.watch(compiling, "sources_of", "    see what is missing")
    timeline.watch(compiling, "compile_in_processes", "    compile what is missing")
    timeline.watch(Painter, "_check", "  rows check")


def watch_opening(timeline: Timeline) -> None:
    """Note what opens beside the imports."""
    from wsigen.system import gpu

    timeline.watch(gpu, "open_context", "beside: driver and context of the GPU")
    timeline.watch(gpu, "load_libraries", "beside: cuDNN and cuBLAS")


def watch_file(timeline: Timeline, folder: Path, pattern: str, name: str) -> None:
    """Note when a file appears in a folder, in a thread."""
    begin = timeline.now()

    def wait() -> None:
        while not (found := list(folder.glob(pattern))):
            time.sleep(0.02)
        timeline.add(name, begin, found[0].stat().st_mtime - timeline.began)

    threading.Thread(target=wait, daemon=True).start()


def kernels_in(folder: Path) -> Counter[str]:
    """Kernels that were compiled into a cache of Triton, by name."""
    return Counter(path.stem for path in folder.glob("*/*.cubin"))


def run(device: str, mask: Path, out: Path, rect: tuple[int, ...] | None, timeline: Timeline) -> None:
    """Render as ``wsigen render`` does, and note the phases."""
    begin = timeline.now()
    from wsigen.cli.opening import gpu_opened_beside

    watch_opening(timeline)
    options = {"device": device, "dtype": "auto", "dask_scheduler": None, "workers": None, "model": ""}
    with gpu_opened_beside(options) as opened:
        timeline.add("import torch, where a GPU is opened", begin)
        begin = timeline.now()
        from wsigen.rendering import job

        timeline.add("import wsigen and what it uses", begin)
        watch_painting(timeline)

        def on_plan(_: Any) -> None:
            waited = timeline.now()
            opened()
            timeline.add("wait for cuDNN and cuBLAS", waited)

        result = job.render(mask, out, device=device, rect=rect, on_plan=on_plan)
    end = timeline.now()
    painted = end - result.timings["encoding"]
    timeline.add("render: painting", painted - result.timings["painting"], painted)
    timeline.add("render: encoding that painting did not hide", painted, end)


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--mask", type=click.Path(exists=True, path_type=Path), default=EXAMPLE, show_default=True)
@click.option("--rect", type=int, nargs=4, metavar="X Y W H", help="Paint this part alone, as a CPU would take long.")
@click.option("--fresh", is_flag=True, help="With empty caches of wsigen and Triton.")
def main(device: str, mask: Path, rect: tuple[int, ...] | None, fresh: bool) -> None:
    """Print the phases of a start, and the kernels that were compiled."""
    timeline = Timeline(process_began())
    timeline.add("Python, and this script's imports", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        if fresh:
            os.environ["WSIGEN_CACHE"], os.environ["TRITON_CACHE_DIR"] = f"{folder}/wsigen", f"{folder}/triton"
            watch_file(timeline, Path(folder, "wsigen"), "early-*.json", "beside: compile the listed kernels")
        run(device, mask, Path(folder, "slide.svs"), rect, timeline)
        kernels = kernels_in(Path(folder, "triton"))
    total = timeline.now()
    click.echo("  begin    lasts")
    for line in timeline.describe():
        click.echo(line)
    click.echo(f"{total:7.2f} s  in all; {len(sys.modules):,} modules imported")
    if fresh:
        counts = ", ".join(f"{name} {count}" for name, count in kernels.most_common())
        click.echo(f"{sum(kernels.values())} kernels compiled: {counts}")


if __name__ == "__main__":
    main()
