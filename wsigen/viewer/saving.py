""" "Save as slide": the render of what is being looked at, in a thread of its own, with its progress as plain data."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsigen.config import RenderSettings
from wsigen.errors import WsigenError
from wsigen.painting.scheduler import Progress
from wsigen.rendering.job import render
from wsigen.rendering.plan import RenderPlan
from wsigen.rendering.stage import canvas_beside


def slide_path(plan: RenderPlan, chosen: Path | None) -> Path:
    """Where the slide of a plan goes: where the user chose at the start, else beside the mask, named by settings."""
    if chosen is not None:
        return chosen
    spec = plan.spec
    told = "-".join(_part_of_name(str(value)) for value in (spec.style.name, *dict(spec.conditions).values()))
    steps = "" if spec.num_inference_steps == plan.config.num_inference_steps else f"-{spec.num_inference_steps}steps"
    return plan.mask.with_name(f"{plan.mask.stem}-{told}-seed{spec.seed}{steps}.svs")


def _part_of_name(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", value)[:40]


class SaveJob:
    """One render, started at once. ``status`` says how far it is; `stop` gives it up and keeps what is painted."""

    def __init__(self, plan: RenderPlan, out: Path, settings: RenderSettings, ended: Callable[[], None]) -> None:
        self.out = out
        self._plan, self._settings, self._ended = plan, settings, ended
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._status: dict[str, Any] = {
            "state": "running", "name": out.name, "windows": 0, "painted": 0, "rows": 0, "height": plan.height,
            "message": "",
        }  # fmt: skip
        self._thread = threading.Thread(target=self._run, name="wsigen-view-save", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    @property
    def status(self) -> dict[str, Any]:
        """Plain JSON: state (running, done, stopped, failed), windows, painted, rows, height, message."""
        with self._lock:
            return dict(self._status)

    def stop(self) -> None:
        """Ask it to end soon."""
        self._stop.set()

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()

    def _set(self, **values: Any) -> None:
        with self._lock:
            self._status |= values

    def _run(self) -> None:
        try:
            self._render()
            self._set(state="done", message=f"wrote {self.out.name}")
        except InterruptedError:
            self._set(state="stopped", message="stopped; what is painted is kept, saving again goes on")
        except WsigenError as error:
            self._set(state="failed", message=str(error))
        except Exception as error:
            self._set(state="failed", message=f"{type(error).__name__}: {error}")
        finally:
            self._ended()

    def _render(self) -> None:
        spec = self._plan.spec
        settings = vars(self._settings) | {
            "seed": spec.seed, "style": spec.style, "steps": spec.num_inference_steps,
            "conditions": dict(spec.conditions),
        }  # fmt: skip
        render(
            self._plan.mask,
            self.out,
            resume=canvas_beside(self.out).exists(),
            on_paint=self._on_paint,
            on_rows=lambda rows: self._on_rows(rows),
            **settings,
        )

    def _on_paint(self, progress: Progress) -> None:
        self._raise_if_stopped()
        self._set(windows=progress.total, painted=progress.done)

    def _on_rows(self, rows: int) -> None:
        self._raise_if_stopped()
        self._set(rows=rows)

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set():
            raise InterruptedError
