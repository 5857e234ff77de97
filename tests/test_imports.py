"""Imports run one way: a room imports rooms of lower floors, and no files import each other in a circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
GROUND = 1
# From the lowest floor to the highest; what is named nowhere stands on the ground, beside wsigen.errors.
FLOORS = (
    "wsigen_kernels",
    "wsigen.errors wsigen.system",
    "wsigen.diffusion",
    "wsigen.masks",
    "wsigen.layouts",
    "wsigen.slides",
    "wsigen.models",
    "wsigen.conditions",
    "wsigen.networks wsigen.config",
    "wsigen.painting",
    "wsigen.rendering",
    "wsigen.dataset wsigen.training",
    "wsigen.evaluation",
    "wsigen.viewer",
    "wsigen",  # what users import
    "wsigen.cli wsigen.__main__",
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}

Arrow = tuple[str, str]


def modules() -> dict[str, Path]:
    """Files of the package by the name under which they are imported."""
    found = {}
    for folder, package in (("wsigen", "wsigen"), ("kernels", "wsigen_kernels")):
        for path in (ROOT / folder).rglob("*.py"):
            parts = (package, *path.relative_to(ROOT / folder).with_suffix("").parts)
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """What a file imports anywhere, inside functions too: packages, modules, and names in either."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by the full name, so that this test sees it"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def found_arrows() -> set[Arrow]:
    """Pairs (file, file that it imports)."""
    known, found = modules(), set()
    for module, path in known.items():
        for name in imported(path):
            target = name if name in known else name.rpartition(".")[0]
            if target in known and target != module:
                found.add((module, target))
    return found


def floor(module: str) -> int:
    first, *rest = module.split(".")
    return FLOOR_OF.get(first if first == "wsigen_kernels" else ".".join((first, *rest[:1])), GROUND)


def runs_up(arrow: Arrow) -> bool:
    return floor(arrow[1]) > floor(arrow[0])


def circle(arrows: set[Arrow]) -> list[str]:
    """Files that import each other in a circle, in order; empty where there is none."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for arrow in sorted(arrows):
        sorter.add(*arrow)
    try:
        sorter.prepare()
    except CycleError as error:
        return error.args[1]
    return []


ARROWS = found_arrows()


def test_no_import_runs_up():
    upward = [f"{module} imports {target}" for module, target in sorted(ARROWS) if runs_up((module, target))]
    assert not upward, "a room imports rooms of lower floors: see FLOORS"


def test_no_files_import_each_other_in_a_circle():
    found = circle(ARROWS)
    assert not found
