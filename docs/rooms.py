"""The rooms of the package, that is its folders, and a picture of what they import of each other.

`python docs/rooms.py` draws `docs/rooms.svg` anew from the imports. `tests/test_imports.py` checks that the picture is
what the code gives, and that imports run one way. The steps in the picture are those of `docs/architecture.md`.
"""

from __future__ import annotations

import ast
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs/architecture.md", ROOT / "docs/rooms.svg"
WALK = "## A mask's way through the code"  # the part of the page whose steps stand in the picture
KERNELS = "wsigen_kernels"
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

Arrow = tuple[str, str]  # who imports, what is imported


@cache
def modules() -> dict[str, Path]:
    """Files of the package by the name under which they are imported."""
    found = {}
    for folder, package in (("wsigen", "wsigen"), ("kernels", KERNELS)):
        for path in (ROOT / folder).rglob("*.py"):
            parts = (package, *path.relative_to(ROOT / folder).with_suffix("").parts)
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """What a file imports anywhere, inside functions too: packages, modules, and names in either."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by the full name, so that the tests see it"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def file_arrows() -> frozenset[Arrow]:
    """Pairs (file, file that it imports)."""
    known, found = modules(), set()
    for module, path in known.items():
        for name in imported(path):
            target = name if name in known else name.rpartition(".")[0]
            if target in known and target != module:
                found.add((module, target))
    return frozenset(found)


def floor(module: str) -> int:
    """Number of the floor on which a module stands."""
    first, *rest = module.split(".")
    return FLOOR_OF.get(first if first == KERNELS else ".".join((first, *rest[:1])), GROUND)


SMALL, PUBLIC = "small modules", "wsigen"  # boxes of modules that lie in no folder


def room_of(module: str) -> str:
    """The room of a module in the picture: its folder, or a box for modules that lie in none."""
    package, *rest = module.split(".")
    if package == KERNELS:
        return "kernels"
    if not rest:
        return PUBLIC
    if rest[0] in ("cli", "__main__"):
        return "cli"
    in_a_folder = (ROOT / "wsigen" / rest[0]).is_dir()
    return rest[0] if in_a_folder or rest[0] == "config" else SMALL


def room_arrows() -> set[Arrow]:
    """Pairs (room, room that it imports)."""
    pairs = {(room_of(module), room_of(target)) for module, target in file_arrows()}
    return {(room, target) for room, target in pairs if room != target}


def needed(arrows: Iterable[Arrow]) -> set[Arrow]:
    """Arrows that do not follow from the others. There must be no circle."""
    below = defaultdict(set)
    for room, target in arrows:
        below[room].add(target)

    @cache
    def all_below(room: str) -> frozenset[str]:
        return frozenset().union(below[room], *map(all_below, below[room]))

    return {(a, b) for a, b in arrows if not any(b in all_below(other) for other in below[a] - {b})}


def rows_of(arrows: Iterable[Arrow]) -> list[list[str]]:
    """Rooms by row, from the top: a room stands right under the lowest room that imports it."""
    above = defaultdict(set)
    for room, target in arrows:
        above[target].add(room)
    rooms = sorted({room for arrow in arrows for room in arrow})

    @cache
    def row(room: str) -> int:
        return 1 + max((row(other) for other in above[room]), default=-1)

    return [[room for room in rooms if row(room) == number] for number in range(1 + max(map(row, rooms)))]


def walk_steps() -> dict[str, list[int]]:
    """The steps of a mask's way by room: from the links of the numbered list in the page."""
    steps, number, text = (
        defaultdict(list),
        0,
        PAGE.read_text(encoding="utf-8").partition(WALK)[2].partition("\n## ")[0],
    )
    for line in text.splitlines():
        if started := re.match(r"(\d+)\. ", line):
            number = int(started[1])
        elif line and not line.startswith(" "):  # text around the list
            continue
        for target in re.findall(r"\]\(\.\./(wsigen/[\w/]+)\.py\)", line):
            room = room_of(target.replace("/", "."))
            if number not in steps[room]:
                steps[room].append(number)
    return steps


def whole_picture() -> str:
    """The picture of this package, as SVG."""
    arrows = room_arrows()
    return Drawing(rows_of(arrows), needed(arrows), Counter(map(room_of, modules())), walk_steps()).svg()


MARGIN, ROW, TOP = 16, 102, 16
BOX_HEIGHT, BOX_WIDTH, GAP = 66, 160, 22
STARTS, ROUNDS = 40, 40  # orders of the rows that are tried, and how often each is improved
NOTES = (
    "An arrow: imports. An arrow that follows from others is left out: a room may import all that lies",
    "further along its arrows.",
    "Violet: a mask comes through here on its way to a slide, in the steps that are named.",
)
STYLE = """
  .paper { fill: #ffffff } text { font-family: sans-serif; fill: #1c1b22 }
  .box { fill: #f2f1f7; stroke: #8a85a0 } .walked { fill: #e5dcff; stroke: #5e35b1; stroke-width: 2 }
  .name { font-size: 16px; font-weight: bold } .count { font-size: 13px; fill: #55525f }
  .steps { font-size: 13px; fill: #4527a0; font-weight: bold } .note { font-size: 13px; fill: #55525f }
  .arrow { fill: none; stroke: #8a85a0; stroke-width: 1.4 } .head { fill: #8a85a0 }
"""


class Drawing:
    """Lays rooms out in rows and draws them.

    An arrow over several rows passes through free places of the rows between, which are kept for it, so that no line
    crosses a box.
    """

    def __init__(
        self, rows: list[list[str]], arrows: set[Arrow], counts: Counter[str], steps: dict[str, list[int]]
    ) -> None:
        self.arrows, self.counts, self.steps = sorted(arrows), counts, steps
        self.row_of = {room: number for number, row in enumerate(rows) for room in row}
        self.rows = [list(row) for row in rows]
        self.ways = {arrow: self._way(arrow) for arrow in self.arrows}
        self._place()

    def _way(self, arrow: Arrow) -> list[str]:
        """An arrow's stations from row to row; those between its ends are free places, put into their rows."""
        room, target = arrow
        between = range(self.row_of[room] + 1, self.row_of[target])
        places = [f"{room}>{target}@{row}" for row in between]
        for row, place in zip(between, places, strict=True):
            self.rows[row].append(place)
            self.row_of[place] = row
        return [room, *places, target]

    def _place(self) -> None:
        """Find an x for every box and free place; of several orders to begin with the one with the fewest crossings."""
        neighbours = defaultdict(list)
        for upper, lower in self._parts():
            neighbours[upper].append(lower)
            neighbours[lower].append(upper)
        tried = [self._relaxed(neighbours, random.Random(number)) for number in range(STARTS)]
        self.x = min(tried, key=lambda x: (self._crossings(x), self._length(x)))
        left = min(x - self._half(place) for place, x in self.x.items())
        self.x = {place: x - left + MARGIN for place, x in self.x.items()}
        self.width = round(max(x + self._half(place) for place, x in self.x.items()) + MARGIN)

    def _parts(self) -> list[tuple[str, str]]:
        """The arrows, cut into parts from one row to the next."""
        return [part for way in self.ways.values() for part in pairwise(way)]

    def _relaxed(self, neighbours: dict[str, list[str]], chance: random.Random) -> dict[str, float]:
        """Places where each lies near the mean of its neighbours, from an order by chance."""
        x = {}
        for row in self.rows:
            x |= self._spread({place: 1000 * chance.random() for place in row})
        for number in range(ROUNDS):
            for row in self.rows if number % 2 else reversed(self.rows):
                x |= self._spread(
                    {place: sum(x[n] for n in neighbours[place]) / len(neighbours[place]) for place in row}
                )
        return x

    def _crossings(self, x: dict[str, float]) -> int:
        """How often lines cross."""
        by_row = defaultdict(list)
        for upper, lower in self._parts():
            by_row[self.row_of[upper]].append((x[upper], x[lower]))
        return sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for row in by_row.values() for a, b in combinations(row, 2))

    def _length(self, x: dict[str, float]) -> float:
        """How far lines go sideways."""
        return sum(abs(x[upper] - x[lower]) for upper, lower in self._parts())

    def _spread(self, wanted: dict[str, float]) -> dict[str, float]:
        """The places of a row as near to where they want to be as their widths allow, in that order."""
        row = sorted(wanted, key=lambda place: wanted[place])
        apart = [self._apart(left, right) for left, right in pairwise(row)]
        from_left = [wanted[row[0]]]
        for place, gap in zip(row[1:], apart, strict=True):
            from_left.append(max(from_left[-1] + gap, wanted[place]))
        from_right = [wanted[row[-1]]]
        for place, gap in zip(row[-2::-1], reversed(apart), strict=True):
            from_right.append(min(from_right[-1] - gap, wanted[place]))
        middle = [(left + right) / 2 for left, right in zip(from_left, reversed(from_right), strict=True)]
        return dict(zip(row, middle, strict=True))

    def _half(self, place: str) -> float:
        return 0.0 if "@" in place else BOX_WIDTH / 2

    def _apart(self, left: str, right: str) -> float:
        return self._half(left) + self._half(right) + GAP

    def _y(self, place: str) -> float:
        return TOP + ROW * self.row_of[place]

    def svg(self) -> str:
        """The whole picture."""
        height = TOP + ROW * len(self.rows) + 44
        rooms = [room for row in self.rows for room in row if "@" not in room]
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {height}" width="{self.width}">',
            "<title>The rooms of wsigen and what they import</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path class="head" d="M0,0 L8,4 L0,8 z"/></marker></defs>',
            f'<rect class="paper" width="{self.width}" height="{height}" rx="8"/>',
            *(self._line(self.ways[arrow]) for arrow in self.arrows),
            *(self._box(room) for room in rooms),
            *(
                f'<text class="note" x="{MARGIN}" y="{height - 50 + 20 * number}">{line}</text>'
                for number, line in enumerate(NOTES)
            ),
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    def _line(self, way: list[str]) -> str:
        """A smooth line from the lower edge of a box to the upper edge of another."""
        x, y = self.x[way[0]], self._y(way[0]) + BOX_HEIGHT
        path = [f"M{x:.0f},{y:.0f}"]
        for place in way[1:]:
            to_x, to_y = self.x[place], self._y(place)
            bend = (y + to_y) / 2
            path.append(f"C{x:.0f},{bend:.0f} {to_x:.0f},{bend:.0f} {to_x:.0f},{to_y:.0f}")
            x, y = to_x, to_y
            if "@" in place:
                y += BOX_HEIGHT
                path.append(f"L{x:.0f},{y:.0f}")
        return f'<path class="arrow" marker-end="url(#head)" d="{" ".join(path)}"/>'

    def _box(self, room: str) -> str:
        """A room with its number of modules, and the steps of the walk in it."""
        x, y, count, steps = self.x[room], self._y(room), self.counts[room], self.steps.get(room, [])
        lines = [("name", room), ("count", f"{count} module{'s' * (count > 1)}")]
        if steps:
            lines.append(("steps", f"step{'s' * (len(steps) > 1)} {_ranges(steps)}"))
        first = y + (22 if steps else 31)
        return "\n".join(
            [
                f'<rect class="{"walked" if steps else "box"}" x="{x - BOX_WIDTH / 2:.0f}" y="{y:.0f}" '
                f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>',
                *(
                    f'<text class="{kind}" x="{x:.0f}" y="{first + 18 * number:.0f}" text-anchor="middle">'
                    f"{escape(text)}</text>"
                    for number, (kind, text) in enumerate(lines)
                ),
            ]
        )


def _ranges(numbers: list[int]) -> str:
    """Numbers in few characters: 1, 3 to 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


if __name__ == "__main__":
    PICTURE.write_text(whole_picture(), encoding="utf-8")
