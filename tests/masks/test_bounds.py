"""On a slide that was scanned in part, QuPath counts from the corner of the bounds: in import, export and tissue."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from leica import SIZE, write_slide_with_bounds

from wsigen.cli.main import main
from wsigen.masks.origin import Origin
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow
from wsigen.viewer.scene import SceneSettings, open_scene


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def read(path: Path) -> MaskWindow:
    with SlideMask.open(path, 6) as mask:
        return mask.read(0, 0, mask.width, mask.height)


def corner(plane: np.ndarray) -> tuple[int, int]:
    """Column and row of the first marked pixel."""
    rows, columns = np.nonzero(plane)
    return int(columns.min()), int(rows.min())


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide_with_bounds(tmp_path / "slide.scn")


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    ring = [[10, 10], [20, 10], [20, 20], [10, 20], [10, 10]]
    properties = {"objectType": "detection", "classification": {"name": "Epithelial"}}
    cell = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}
    (tmp_path / "cells.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [cell]}))
    return tmp_path / "cells.geojson"


def test_info_says_where_the_bounds_are(slide: Path) -> None:
    code, text = run("info", slide)
    assert code == 0 and "bounds: 200 x 160 px at (50, 40)" in text


@pytest.mark.parametrize(("origin", "expected"), [("auto", (60, 50)), ("bounds", (60, 50)), ("slide", (10, 10))])
def test_outlines_of_qupath_count_from_the_bounds(
    origin: str, expected: tuple[int, int], slide: Path, cells: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mask.tif"
    code, text = run("mask", "import", cells, "--like", slide, "--origin", origin, "-o", out)
    assert code == 0, text
    assert ("--origin slide" in text) == (origin != "slide")
    assert read(out).classes.shape == SIZE[::-1] and corner(read(out).classes) == expected


def test_other_formats_count_from_the_corner_of_the_slide(slide: Path, tmp_path: Path) -> None:
    nucleus = {"contour": [[10, 10], [19, 10], [19, 19], [10, 19]], "type": 1}
    (tmp_path / "h.json").write_text(json.dumps({"mag": 20, "nuc": {"1": nucleus}}))
    arguments = ("mask", "import", tmp_path / "h.json", "--like", slide, "--class-map", "pannuke", "--overwrite")
    for origin, expected in (("auto", (10, 10)), ("bounds", (60, 50))):
        code, text = run(*arguments, "--origin", origin, "-o", tmp_path / "mask.tif")
        assert code == 0, text
        assert corner(read(tmp_path / "mask.tif").classes) == expected


def test_scaled_outlines_are_moved_by_pixels_of_the_slide(slide: Path, tmp_path: Path) -> None:
    nucleus = {"contour": [[20, 20], [39, 20], [39, 39], [20, 39]], "type": 1}
    (tmp_path / "h.json").write_text(json.dumps({"mag": 40, "nuc": {"1": nucleus}}))
    code, text = run(
        *("mask", "import", tmp_path / "h.json", "--like", slide, "--class-map", "pannuke"),
        *("--origin", "bounds", "-o", tmp_path / "mask.tif", "--mpp", "0.5"),
    )
    assert code == 0, text
    assert corner(read(tmp_path / "mask.tif").classes) == (60, 50)


def test_tissue_outlines_of_qupath_count_from_the_bounds_too(slide: Path, cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "mask.tif"
    tissue = cells.with_name("tissue.geojson")
    tissue.write_text(cells.read_text().replace("detection", "annotation").replace("Epithelial", "Tissue"))
    code, text = run("mask", "import", cells, "--like", slide, "--tissue", tissue, "-o", out)
    assert code == 0, text
    window = read(out)
    assert window.tissue is not None and corner(window.tissue == 1) == (60, 50)
    assert np.count_nonzero(window.tissue == 1) == 100


@pytest.mark.parametrize("ending", [".geojson", ".db"])
@pytest.mark.parametrize("origin", ["auto", "bounds", "slide"])
def test_what_is_exported_for_a_slide_comes_back_to_its_place(
    ending: str, origin: str, slide: Path, cells: Path, tmp_path: Path
) -> None:
    first, out, again = tmp_path / "first.tif", tmp_path / f"out{ending}", tmp_path / "again.tif"
    run("mask", "import", cells, "--like", slide, "-o", first)
    code, text = run("mask", "export", first, "-o", out, "--like", slide, "--origin", origin)
    assert code == 0, text
    counted_from_bounds = origin == "bounds" or (origin == "auto" and ending == ".geojson")
    assert ("--origin slide" in text) == counted_from_bounds
    if ending == ".geojson":
        ring = json.loads(out.read_text())["features"][0]["geometry"]["coordinates"][0]
        assert min(ring) == ([10, 10] if counted_from_bounds else [60, 50])
    code, text = run("mask", "import", out, "--like", slide, "--origin", origin, "-o", again)
    assert code == 0, text
    assert np.array_equal(read(again).classes, read(first).classes)


@pytest.mark.parametrize("origin", list(Origin))
def test_the_viewer_counts_alike_and_says_so(origin: Origin, slide: Path, cells: Path) -> None:
    scene = open_scene(SceneSettings(slide, cells, origin))
    try:
        x, y = (15, 15) if origin is Origin.SLIDE else (65, 55)
        found = scene.overlays["overlay"].find(x, y)
        assert found is not None and found.area == 100
        assert [note for note in scene.notes if "(50, 40)" in note] == scene.notes
        assert len(scene.notes) == (origin is not Origin.SLIDE)
    finally:
        scene.close()


def test_bounds_that_are_not_there_cannot_be_counted_from(slide: Path, cells: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.tif"
    code, text = run("mask", "import", cells, "--size", "400x300", "--origin", "bounds", "-o", mask)
    assert code == 2 and "--like" in text and not mask.exists()
    run("mask", "import", cells, "--like", slide, "-o", mask)
    for out, more, words in (
        ("o.geojson", ["--origin", "bounds"], "--like"),
        ("o.json", ["--origin", "bounds", "--like", slide], "whole slide"),
    ):
        code, text = run("mask", "export", mask, "-o", tmp_path / out, *more)
        assert code == 2 and words in text and not (tmp_path / out).exists()
    run("mask", "import", cells, "--size", "100x80", "-o", tmp_path / "small.tif")
    code, text = run("mask", "export", tmp_path / "small.tif", "-o", tmp_path / "o.geojson", "--like", slide)
    assert code == 2 and "give the slide of this mask" in text
