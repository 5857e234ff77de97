"""A class table is numbered 1..n, and round-trips through a model's config."""

import pytest

from wsigen.errors import ModelError
from wsigen.masks.classes import ClassTable

ENTRIES = [{"index": 1, "name": "epithelial", "colour": "#6e46be"}, {"index": 2, "name": "plasma", "colour": "#009682"}]


def test_a_table_round_trips_through_config():
    table = ClassTable.from_config(ENTRIES)
    assert table.to_config() == ENTRIES
    assert table.names == ("epithelial", "plasma") and len(table) == 2
    assert table.classes[0].rgb == (0x6E, 0x46, 0xBE)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "0 classes"),
        ([ENTRIES[1]], "number the classes"),
        ([ENTRIES[0], {**ENTRIES[0], "index": 2}], "name of its own"),
        ([{**ENTRIES[0], "colour": "red"}], "#rrggbb"),
        ([{"index": 1, "name": "x"}], "give index, name and colour"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(entries, words):
    with pytest.raises(ModelError, match=words):
        ClassTable.from_config(entries)
