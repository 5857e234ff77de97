"""No change of pixels lands unnoticed: small canvases are painted anew and compared with those that are stored."""

import json
import shutil

import golden_canvases
import numpy as np
import pytest
from golden_canvases import CANVASES, FOLDER, REFRESH, difference, here, paint, picture, stored

from wsigen.pixels import PIXELS


@pytest.mark.parametrize("name", CANVASES)
def test_pixels_are_those_of_before(name):
    differs = difference(name, paint(name))
    assert differs is None, (
        f"{differs}. If pixels are meant to change: raise PIXELS in wsigen/pixels.py, then {REFRESH}"
    )


def test_the_golden_canvases_are_of_this_number_of_pixels():
    number = stored()["pixels"]
    assert number == PIXELS, f"PIXELS is {PIXELS}, the golden canvases are of number {number}: {REFRESH}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of what is stored, which tests may change; one canvas of it is painted."""
    shutil.copytree(FOLDER, tmp_path / "golden")
    monkeypatch.setattr(golden_canvases, "FOLDER", tmp_path / "golden")
    monkeypatch.setattr(golden_canvases, "CANVASES", {"shipped": lambda folder: picture("shipped")})
    return tmp_path / "golden"


def test_rounding_of_another_machine_passes_and_any_change_is_noticed(folder, monkeypatch):
    before = picture("shipped")
    monkeypatch.setattr(golden_canvases, "here", lambda: "a machine that is not known")
    rounded, darker, spot = before.copy(), before.copy(), before.copy()
    rounded[40:42, 30] ^= 1
    darker[::3] -= np.uint8(1) * (darker[::3] > 0)
    spot[40, 30] ^= 64
    assert difference("shipped", rounded) is None
    assert "of values differ, by up to 1 of 255" in difference("shipped", darker)
    assert "by up to 64 of 255" in difference("shipped", spot)
    assert "its picture is" in difference("shipped", before[1:])


def test_a_known_machine_must_paint_the_same(folder):
    golden = stored()
    golden["sha256"]["shipped"][here()] = golden_canvases.sha256(picture("shipped"))
    (folder / "golden.json").write_text(json.dumps(golden))
    rounded = picture("shipped").copy()
    rounded[40, 30] ^= 1
    assert difference("shipped", picture("shipped")) is None
    assert "painted it exactly so before" in difference("shipped", rounded)


def test_other_pixels_are_stored_under_another_number_alone(folder, monkeypatch, capsys):
    other = 255 - picture("shipped")
    monkeypatch.setattr(golden_canvases, "CANVASES", {"shipped": lambda folder: other})
    assert golden_canvases.refresh() == 2 and "raise PIXELS" in capsys.readouterr().out
    assert not np.array_equal(picture("shipped"), other)
    monkeypatch.setattr(golden_canvases, "PIXELS", PIXELS + 1)
    assert golden_canvases.refresh() == 0
    assert np.array_equal(picture("shipped"), other)
    assert stored() == {"pixels": PIXELS + 1, "sha256": {"shipped": {here(): golden_canvases.sha256(other)}}}


def test_another_machine_adds_its_hashes(folder, monkeypatch):
    monkeypatch.setattr(golden_canvases, "here", lambda: "a machine that is not known")
    before = stored()["sha256"]["shipped"]
    assert golden_canvases.refresh() == 0
    added = {"a machine that is not known": golden_canvases.sha256(picture("shipped"))}
    assert stored()["sha256"]["shipped"] == before | added
