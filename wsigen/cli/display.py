"""What a command shows while it works: lines, progress bars, and how Ctrl-C ends it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsigen.cli.options import STOPPED
from wsigen.system.reporting import Reporter

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from wsigen.painting.scheduler import Progress
    from wsigen.rendering.many import SlideEntry
    from wsigen.rendering.mask_job import MaskPlan
    from wsigen.rendering.plan import RenderPlan


class Stage:
    """Bars of one stage; ``name`` tells it from the others of a slide."""

    def __init__(self, display: Display, name: str = "") -> None:
        self.display, self.name = display, f" {name}" if name else ""
        self.plan: RenderPlan | MaskPlan | None = None
        self.painting: Any = None
        self.encoding: Any = None

    def on_plan(self, plan: RenderPlan | MaskPlan) -> None:
        """Print what is about to happen."""
        self.plan = plan
        self.display.begin(plan)

    def on_paint(self, progress: Progress) -> None:
        """Move the bar of windows."""
        bars = self.display.moving()
        if self.painting is None:
            label = f"painting{self.name}"
            self.painting = bars.add_task(label, total=progress.total, speed="", completed=progress.resumed)
            bars.start()
        elapsed = bars.tasks[self.painting].elapsed or 0.0
        speed = f"{progress.painted / elapsed:.1f} windows/s" if elapsed > 0 and progress.painted else ""
        bars.update(self.painting, completed=progress.done, speed=speed)

    def on_rows(self, rows: int) -> None:
        """Move the bar of rows that are written."""
        bars = self.display.moving()
        assert self.plan is not None
        if self.encoding is None:
            self.encoding = bars.add_task(f"encoding{self.name}", total=self.plan.height, speed="rows")
        bars.update(self.encoding, completed=rows)


class Display:
    """Lines and progress bars of a render, or of a mask that is sampled."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bars: Bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.kept: Path | None = None  # what an interrupted run leaves
        self.interrupted = False
        self.on_check: Callable[[Any], None] = lambda plan: None
        self.stages: list[Stage] = []
        self.slides: Any = None
        self.windows: Any = None

    def stage(self, name: str = "") -> Stage:
        """Bars of one more stage."""
        self.stages.append(Stage(self, name))
        return self.stages[-1]

    def begin(self, plan: RenderPlan | MaskPlan) -> None:
        """Print what a plan is about to do."""
        self.kept = self.kept or plan.canvas
        for line in plan.describe():
            self.console.print(line, markup=False)
        self.on_check(plan)

    def moving(self) -> Bars:
        """The bars, to be moved; raises KeyboardInterrupt after Ctrl-C."""
        self._raise_if_interrupted()
        return self.bars

    def on_plan_of_many(self, plan: RenderPlan) -> None:
        """Print which slide of a series begins."""
        self.kept = plan.out.parent
        self.console.print(f"{plan.out.name}: {plan.projection.painted:,} windows to paint", markup=False)
        if note := plan.config.stain_note(plan.spec.style):
            self.console.print(f"note: {note}", markup=False)

    def on_slide(self, entry: SlideEntry, ended: int, total: int) -> None:
        """Move the bar of slides."""
        bars = self.moving()
        self.console.print(f"{entry.slide}: {entry.status} {entry.error}".rstrip(), markup=False)
        if self.slides is None:
            self.slides = bars.add_task("slides", total=total, speed="")
            bars.start()
        bars.update(self.slides, completed=ended)

    def on_windows(self, windows: int) -> None:
        """Count windows of a series."""
        bars = self.moving()
        if self.windows is None:
            self.windows = bars.add_task("windows", total=None, speed="")
            bars.start()
        bars.update(self.windows, completed=windows)

    def on_signal(self, _signal: int, _frame: object) -> None:
        """Ctrl-C: at once while nothing is painted, or the second time; else at the next report, a moment later.

        An exception from a signal handler is lost where it meets a destructor or a callback: the render would go on.
        """
        painting = self.windows is not None or any(stage.painting is not None for stage in self.stages)
        again = self.interrupted
        self.interrupted = True
        if again or not painting:
            raise KeyboardInterrupt

    def _raise_if_interrupted(self) -> None:
        if self.interrupted:
            raise KeyboardInterrupt


@contextmanager
def progress_display() -> Iterator[Display]:
    """Show progress; on Ctrl-C say what is kept and how to go on."""
    display = Display()
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not where the shell told the process to ignore it
        signal.signal(signal.SIGINT, display.on_signal)
    try:
        yield display
        display._raise_if_interrupted()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut the last words off
        display.bars.stop()
        if display.kept is not None and display.kept.exists():
            click.echo(f"stopped; what is painted is kept in {display.kept}: the same command with --resume goes on")
        else:
            click.echo("stopped; nothing was written")
        sys.exit(STOPPED)
    finally:
        display.bars.stop()
        signal.signal(signal.SIGINT, before)


@contextmanager
def work_bars(kept: str = "nothing was written", stay: bool = False) -> Iterator[Reporter]:
    """A progress bar for each kind of work, which stay at the end if asked; on Ctrl-C say what is ``kept``."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=console, transient=not stay) as bars:

        def show(what: str, done: float, total: float = 1.0, /) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        try:
            yield show
        except KeyboardInterrupt:
            bars.stop()
            click.echo(f"stopped; {kept}")
            sys.exit(STOPPED)
