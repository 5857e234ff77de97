"""Imports run one way: a room imports rooms of lower floors, and no files import each other in a circle."""

import runpy
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import SimpleNamespace

rooms = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "docs/rooms.py")))

Arrow = tuple[str, str]


def runs_up(arrow: Arrow) -> bool:
    return rooms.floor(arrow[1]) > rooms.floor(arrow[0])


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


ARROWS = set(rooms.file_arrows())


def test_no_import_runs_up():
    upward = [f"{module} imports {target}" for module, target in sorted(ARROWS) if runs_up((module, target))]
    assert not upward, "a room imports rooms of lower floors: see FLOORS in docs/rooms.py"


def test_no_files_import_each_other_in_a_circle():
    found = circle(ARROWS)
    assert not found


def test_the_picture_shows_the_rooms_of_the_code():
    drawn = rooms.PICTURE.read_text(encoding="utf-8")
    assert drawn == rooms.whole_picture(), "draw it anew: python docs/rooms.py"


def test_a_masks_way_goes_through_rooms_that_import_each_other():
    steps = rooms.walk_steps()
    assert sorted({number for numbers in steps.values() for number in numbers}) == list(range(1, 15))
    assert {"cli", "rendering", "masks", "painting", "conditions", "networks", "slides"} <= steps.keys()


def test_arrows_that_follow_from_others_are_left_out():
    assert rooms.needed({("a", "b"), ("b", "c"), ("a", "c")}) == {("a", "b"), ("b", "c")}
