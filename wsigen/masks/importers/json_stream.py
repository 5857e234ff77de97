"""JSON files of any size, read event by event: nothing larger than one object's outline is ever held.

ijson parses (through yajl, in C); this module walks its events. A consumer asks for the keys of a map or the items of
an array in turn, and for each either builds the value, skips it, or walks further down.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import Any

import ijson
import numpy as np

from wsigen.masks.importers.json_text import JsonText, Readable

BUFFER_BYTES = 1 << 20
MAX_DEPTH = 64
# A value that is built whole (properties, an annotation, a table) may not be larger; an outline has its own limit.
MAX_VALUE_ITEMS = 5_000_000
MAX_RING_VERTICES = 20_000_000


class JsonStream:
    """The events of one JSON document. Malformed input raises ValueError or ijson.JSONError.

    not_polygons: geometries without an area (points, lines) so far. damaged: outlines so far whose coordinates make no
    sense.
    """

    def __init__(self, file: Readable) -> None:
        self._events = ijson.basic_parse(JsonText(file), use_float=True, buf_size=BUFFER_BYTES)
        self.not_polygons = self.damaged = 0

    def next(self) -> tuple[str, Any]:
        """The next event; ValueError where the document has ended."""
        for event in self._events:
            return event
        raise ValueError("it ends too early")

    def members(self) -> Iterator[str]:
        """Keys of the map whose start was just read; the consumer takes each value before the next key."""
        for event, value in self._events:
            if event == "end_map":
                return
            yield value
        raise ValueError("it ends too early")

    def items(self) -> Iterator[tuple[str, Any]]:
        """First event of each item of the array whose start was just read; the consumer takes the rest of it."""
        for event, value in self._events:
            if event == "end_array":
                return
            yield event, value
        raise ValueError("it ends too early")

    def expect(self, wanted: str) -> bool:
        """Whether the next value begins with `wanted`; another value is skipped."""
        event, _ = self.next()
        if event == wanted:
            return True
        self.skip(event)
        return False

    def skip(self, first: str | None = None) -> None:
        """Pass over the next value, or over the rest of the one that began with the event `first`."""
        event = first or self.next()[0]
        depth = 0
        if event in ("start_map", "start_array"):
            depth = 1
        while depth:
            event, _ = self.next()
            if event in ("start_map", "start_array"):
                depth += 1
            elif event in ("end_map", "end_array"):
                depth -= 1

    def value(self, first: tuple[str, Any] | None = None) -> Any:
        """Build the next value, or the rest of the one whose first event was `first`."""
        event, value = first or self.next()
        self._room = MAX_VALUE_ITEMS
        return self._built(event, value, 0)

    def _built(self, event: str, value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(f"values are nested deeper than {MAX_DEPTH}")
        self._room -= 1
        if self._room < 0:
            raise ValueError(f"a value has more than {MAX_VALUE_ITEMS} parts")
        if event == "start_map":
            return {key: self._built(*self.next(), depth + 1) for key in self.members()}
        if event == "start_array":
            return [self._built(*item, depth + 1) for item in self.items()]
        return value

    def polygons(self) -> Iterator[list[np.ndarray]]:
        """Read nested `coordinates` of a Polygon or MultiPolygon; yields the rings (N, 2) float64 of each polygon.

        What is no polygon (points, lines) yields nothing and is counted in `not_polygons`. A value that is no number
        becomes NaN; from coordinates that are nested unevenly on, or a point of one value, nothing is yielded, and
        `damaged` is counted.
        """
        event, _ = self.next()
        if event != "start_array":
            self.skip(event)
            self.not_polygons += 1
            return
        depth, point_depth, at, sound = 1, 0, 0, True
        numbers, rings = array("d"), []
        for event, value in self._events:
            if event == "number" and depth == point_depth:
                if at < 2:
                    numbers.append(value)
                at += 1
            elif event == "start_array":
                depth += 1
                at = 0
                if depth > MAX_DEPTH:
                    raise ValueError(f"values are nested deeper than {MAX_DEPTH}")
            elif event == "end_array":
                depth -= 1
                above = point_depth - depth
                if above == 1:
                    sound &= at >= 2
                    at = 0
                    if len(numbers) > 2 * MAX_RING_VERTICES:
                        raise ValueError(f"an outline has more than {MAX_RING_VERTICES} points")
                elif above == 2 and point_depth >= 3:
                    if sound:
                        rings.append(np.array(numbers, np.float64).reshape(-1, 2))
                    numbers = array("d")
                elif above == 3 and rings and sound:
                    yield rings
                    rings = []
                if depth == 0:
                    self.damaged += not sound
                    self.not_polygons += sound and point_depth < 3
                    return
            else:
                if event == "start_map":
                    self.skip(event)
                point_depth = point_depth or depth
                sound &= depth == point_depth
                if at < 2:
                    numbers.append(value if event == "number" else math.nan)
                at += 1
        raise ValueError("it ends too early")
