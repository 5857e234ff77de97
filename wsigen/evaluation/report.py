"""Report folders: ``report.json`` for machines, ``report.md`` for people, and the plots and pictures of both."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsigen.errors import SettingsError
from wsigen.version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes

JSON_FILE, MARKDOWN_FILE = "report.json", "report.md"
Row = Mapping[str, Any]


@dataclass
class Section:
    """A table with what to make of it, and its pictures (file names in the report folder)."""

    key: str  # in report.json
    title: str
    says: str
    rows: Sequence[Row] = ()
    notes: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)


class Report:
    """Collects sections and writes them to a folder, again after each: a run that is stopped leaves what it had."""

    def __init__(self, folder: Path, title: str, command: Mapping[str, Any], overwrite: bool = False) -> None:
        """Make the folder. SettingsError if it holds anything, unless it is a report to be overwritten."""
        self.folder, self.title, self.command = Path(folder), title, dict(command)
        if self.folder.is_file() or (self.folder.is_dir() and any(self.folder.iterdir())):
            if not overwrite:
                raise SettingsError(
                    f"{folder}: exists; write over it with --overwrite, or choose another folder with -o"
                )
            if not (self.folder / JSON_FILE).is_file():
                raise SettingsError(
                    f"{folder}: holds no {JSON_FILE}, so it is no report; choose another folder with -o"
                )
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sections: list[Section] = []
        self._write()

    def add(self, section: Section) -> None:
        """Add a section and write the report anew."""
        self.sections.append(section)
        self._write()

    def picture(self, name: str, pixels: np.ndarray) -> str:
        """Write (H, W, 3) uint8 as a PNG; return its file name for a section."""
        import pyvips

        pyvips.Image.new_from_array(np.ascontiguousarray(pixels)).write_to_file(str(self.folder / f"{name}.png"))
        return f"{name}.png"

    def plot(self, name: str, draw: Callable[[Axes], None]) -> list[str]:
        """Draw with matplotlib; return the file name, or nothing where matplotlib is not installed."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return []
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        draw(figure.subplots())
        figure.savefig(self.folder / f"{name}.png", dpi=120)
        return [f"{name}.png"]

    def _write(self) -> None:
        data = {"title": self.title, "wsigen": __version__, "command": self.command}
        data |= {part.key: {"says": part.says, "rows": list(part.rows), "notes": part.notes} for part in self.sections}
        text = json.dumps(_plain(data), indent=1, allow_nan=False) + "\n"
        (self.folder / JSON_FILE).write_text(text, encoding="utf-8")
        (self.folder / MARKDOWN_FILE).write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """The report as Markdown."""
        settings = ", ".join(f"{key} {value}" for key, value in self.command.items() if value is not None)
        parts = [f"# {self.title}\n", f"wsigen {__version__}: {settings}.\n"]
        for section in self.sections:
            parts += [f"## {section.title}\n", section.says + "\n"]
            if section.rows:
                parts.append(table(section.rows))
            parts += [f"{note}\n" for note in section.notes]
            parts += [f"![{section.title}]({name})\n" for name in section.pictures]
        return "\n".join(parts)


def table(rows: Sequence[Row]) -> str:
    """A Markdown table; numbers with three significant digits, nothing for None."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers of numpy become Python's, what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def sheet(rows: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Pictures in rows: each entry is (N, H, W, 3) uint8, all of one shape; returns one picture on white."""
    count, height, width, _ = rows[0].shape
    out = np.full((len(rows) * (height + gap) - gap, count * (width + gap) - gap, 3), 255, np.uint8)
    for j, row in enumerate(rows):
        for i, picture in enumerate(row):
            out[j * (height + gap) : j * (height + gap) + height, i * (width + gap) : i * (width + gap) + width] = (
                picture
            )
    return out
