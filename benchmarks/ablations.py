"""What each choice of the painter's recipe brings: short runs that differ in one of them, measured like the painter.

    python benchmarks/ablations.py train --data data -o ablations --jobs 4
    python benchmarks/ablations.py measure --data data -o ablations --jobs 4

A run is ``wsigen train configs/nasdm-colon-20x.toml`` with the changes in VARIANTS, a measurement ``wsigen evaluate
patches`` on the held-out side; both print to ``ablations/NAME.log``. All runs see as many pixels. What is finished is
kept: start a command again after Ctrl-C. ``measure`` prints the table.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click

RECIPE = "configs/nasdm-colon-20x.toml"
BATCH = 64  # of windows of 128 px; others hold as many pixels
SIDE = 128  # of the patches that are measured, px


class Variant(NamedTuple):
    """What a run changes, and the side of its training windows in px."""

    what: str
    changes: tuple[str, ...] = ()
    window: int = 128


STRONG = "rare_class_weight=[24.0, 0.5, 0.5, 12.0, 40.0, 0.0]"
TUNED = ('initial_model="nasdm-colon-20x"', "learning_rate=1e-4")
VARIANTS = {
    "base": Variant("the recipe: v, 128 px, 19.7 M parameters"),
    "small": Variant("4.2 M parameters (nasdm-colon-20x-small)", ('architecture="nasdm-colon-20x-small"',)),
    "window-64": Variant("windows of 64 px", window=64),
    "window-256": Variant("windows of 256 px", window=256),
    "seed": Variant("the recipe, another seed: what chance gives", ("seed=7",)),
    "eps": Variant("predicts the noise", ('prediction="eps"',)),
    "unbalanced": Variant("all crops as often", ("rare_class_weight=[]",)),
    "balanced": Variant("rare classes four to seven times as often", (STRONG,)),
    "by-hand": Variant("without masks made by a network", ("machine_label_weight=0.0",)),
    "tuned": Variant("the painter, trained on", TUNED),
    "tuned-balanced": Variant("the painter, trained on, rare classes four to seven times as often", (*TUNED, STRONG)),
}


@click.group()
def main() -> None:
    """Train variants of the painter's recipe, and measure them."""


def common(command: Any) -> Any:
    """Options of both commands."""
    for option in (
        click.option("--data", type=click.Path(path_type=Path, exists=True), required=True),
        click.option("-o", "--out", type=click.Path(path_type=Path), required=True),
        click.option("--only", type=click.Choice(list(VARIANTS)), multiple=True, help="[default: all]"),
        click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs side by side."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    ):
        command = option(command)
    return command


@main.command()
@common
@click.option("--steps", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--batch", type=click.IntRange(4), default=BATCH, show_default=True, help="At windows of 128 px.")
def train(data: Path, out: Path, only: tuple[str, ...], jobs: int, device: str, steps: int, batch: int) -> None:
    """Train variants; those that were trained already are left alone."""

    def run(name: str) -> None:
        folder = out / name
        if (folder / "done").exists():
            return
        _, changes, window = VARIANTS[name]
        size = max(1, batch * SIDE**2 // window**2)
        changes = (
            *changes,
            f"phases=[{{windows=[{window}], batches=[{size}], steps={steps}}}]",
            f"warmup_steps={min(200, steps // 5)}",
            f"decay_steps={steps // 3}",
            f"evaluate_every={10 * steps}",
        )
        settings = [part for change in changes for part in ("--set", change)]
        _wsigen(folder, "train", RECIPE, "--data", data, "-o", folder, "--device", device, "--resume", *settings)
        (folder / "done").touch()

    _side_by_side(run, only, jobs)


@main.command()
@common
@click.option("--count", type=click.IntRange(8), default=1000, show_default=True, help="Held-out patches at most.")
@click.option("--network-steps", type=click.IntRange(1), default=400, show_default=True, help="Of the small network.")
def measure(
    data: Path, out: Path, only: tuple[str, ...], jobs: int, device: str, count: int, network_steps: int
) -> None:
    """Measure the variants that were trained, and print the table."""
    trained = [name for name in only or VARIANTS if (out / name / "done").exists()]

    def run(name: str) -> None:
        report = out / name / "report"
        if (out / name / "measured").exists():
            return
        sizes = ("--window", SIDE, "--count", count, "--network-steps", network_steps)
        place = ("--data", data, "-o", report, "--model", out / name / "model", "--device", device)
        _wsigen(out / name, "evaluate", "patches", *place, *sizes, "--no-memorisation", "--overwrite")
        (out / name / "measured").touch()

    _side_by_side(run, trained, jobs)
    click.echo(table(out, trained))


def _wsigen(log: Path, *arguments: Any) -> None:
    """Run a command of the package; its output is added to ``log``.log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{log}.log").open("a", encoding="utf-8") as file:
        command = [sys.executable, "-m", "wsigen", *map(str, arguments)]
        if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode:
            raise click.ClickException(f"{' '.join(command)}: failed; see {log}.log")


def _side_by_side(run: Any, names: Any, jobs: int) -> None:
    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(run, name) for name in names or VARIANTS]:
            future.result()


def table(out: Path, names: list[str]) -> str:
    """The measurements as Markdown."""
    lines: list[str] = []
    for name in names:
        report = json.loads((out / name / "report" / "report.json").read_text(encoding="utf-8"))
        views = {row["view"]: row["AUC"] for row in report["discriminability"]["rows"]}
        dice = {row["class"]: row["dice"] for row in report["fidelity"]["rows"]}
        if not lines:
            head = ["run", "excess", *(f"AUC, {view}" for view in views), *(f"Dice, {kind}" for kind in dice)]
            real = [row["real dice"] for row in report["fidelity"]["rows"]]
            lines += [_line(head), _line(["---"] * len(head)), _line(["real", 0.0, *[""] * len(views), *real])]
        row = [VARIANTS[name].what, report["distances"]["rows"][0]["excess"], *views.values(), *dice.values()]
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: list[Any]) -> str:
    return "| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    main()
