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
    from wsigen.painting.scheduler import Progress
    from wsigen.rendering.many import SlideEntry
    from wsigen.rendering.plan import RenderPlan
    from wsigen.rendering.synthesis import MaskPlan


class Display:
    """Lines and progress bars of a render, or of a mask that is sampled."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.plan: RenderPlan | MaskPlan | None = None
        self.kept: Path | None = None  # what an interrupted run leaves
        self.interrupted = False
        self.on_check: Callable[[Any], None] = lambda plan: None
        self.painting: Any = None
        self.encoding: Any = None

    def on_plan(self, plan: RenderPlan | MaskPlan) -> None:
        """Print what is about to happen, and begin new bars."""
        self.plan, self.kept = plan, plan.canvas
        self.painting = self.encoding = None
        for line in plan.describe():
            self.console.print(line, markup=False)
        self.on_check(plan)

    def on_paint(self, progress: Progress) -> None:
        """Move the bar of windows."""
        self._raise_if_interrupted()
        if self.painting is None:
            self.painting = self.bars.add_task("painting", total=progress.total, speed="", completed=progress.resumed)
            self.bars.start()
        elapsed = self.bars.tasks[self.painting].elapsed or 0.0
        speed = f"{progress.painted / elapsed:.1f} windows/s" if elapsed > 0 and progress.painted else ""
        self.bars.update(self.painting, completed=progress.done, speed=speed)

    def on_rows(self, rows: int) -> None:
        """Move the bar of encoded rows."""
        self._raise_if_interrupted()
        assert self.plan is not None
        if self.encoding is None:
            self.encoding = self.bars.add_task("encoding", total=self.plan.height, speed="rows")
        self.bars.update(self.encoding, completed=rows)

    def on_plan_of_many(self, plan: RenderPlan) -> None:
        """Print which slide of a series begins."""
        self.kept = plan.out.parent
        self.console.print(f"{plan.out.name}: {plan.projection.painted:,} windows to paint", markup=False)
        if note := plan.config.stain_note(plan.spec.style):
            self.console.print(f"note: {note}", markup=False)

    def on_slide(self, entry: SlideEntry, ended: int, total: int) -> None:
        """Move the bar of slides."""
        self._raise_if_interrupted()
        self.console.print(f"{entry.slide}: {entry.status} {entry.error}".rstrip(), markup=False)
        if self.encoding is None:
            self.encoding = self.bars.add_task("slides", total=total, speed="")
            self.bars.start()
        self.bars.update(self.encoding, completed=ended)

    def on_windows(self, windows: int) -> None:
        """Count windows of a series."""
        self._raise_if_interrupted()
        if self.painting is None:
            self.painting = self.bars.add_task("windows", total=None, speed="")
            self.bars.start()
        self.bars.update(self.painting, completed=windows)

    def on_signal(self, _signal: int, _frame: object) -> None:
        """Ctrl-C: at once while nothing is painted, or the second time; else at the next report, a moment later.

        An exception from a signal handler is lost where it meets a destructor or a callback: the render would go on.
        """
        painting, again = self.painting is not None, self.interrupted
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
