"""Other ways to paint an area: each covers it, and each is what it is said to be."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from drawn import picture

from wsigen.choices import SEAM_METHODS
from wsigen.cli.main import main
from wsigen.evaluation.baselines import AreaPainter, read_area
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask
from wsigen.networks.nasdm import NasdmModel

CPU = torch.device("cpu")
WINDOW, OVERLAP, MARGIN = 64, 8, 2


@pytest.fixture(scope="module")
def mask(tmp_path_factory):
    path = tmp_path_factory.mktemp("mask") / "mask.tif"
    classes = np.block([[picture(2 * j + i)[1] for i in range(2)] for j in range(2)])
    tissue = np.ones_like(classes)
    tissue[:60, :60] = (classes > 0)[:60, :60]
    write_slide_mask(path, *classes.shape, 0.5, [MaskWindow(classes, None, tissue)], False, True)
    return path


@pytest.fixture(scope="module")
def painted(mask, painter):
    model = NasdmModel.from_pretrained(painter)
    with SlideMask.open(mask, 6) as opened:
        area = read_area(opened, model, 172, WINDOW, OVERLAP, CPU)
    work = AreaPainter(model, area, WINDOW, OVERLAP, 2, 3)
    return area, {method: (work.paint(method), work.calls) for method in SEAM_METHODS}


def test_every_method_covers_the_area_and_leaves_glass(painted):
    area, pictures = painted
    assert area.side == 176 and area.glass.any()
    glass = area.glass[0, 0, MARGIN:-MARGIN, MARGIN:-MARGIN].numpy() > 0
    for pixels, _ in pictures.values():
        assert pixels.shape == (172, 172, 3)
        assert np.unique(pixels[~glass]).size > 2
        assert len(np.unique(pixels[glass], axis=0)) == 1


@pytest.mark.parametrize("stride", [WINDOW - OVERLAP, WINDOW // 2])
def test_windows_cover_the_area_to_its_last_pixel(painted, painter, stride):
    area, _ = painted
    work = AreaPainter(NasdmModel.from_pretrained(painter), area, WINDOW, OVERLAP, 1, 0)
    places = work._places(stride)
    averaged = work._averaged(places, torch.full((len(places), 3, WINDOW, WINDOW), 0.25), torch.ones(1, 1))
    assert torch.allclose(averaged[(area.glass == 0).expand_as(averaged)], torch.tensor(0.25))


def test_methods_differ_where_windows_meet_and_not_inside_the_first(painted):
    _, pictures = painted
    blended, cut, apart, feathered = (pictures[method][0].astype(int) for method in SEAM_METHODS[:4])
    first = np.s_[: WINDOW - OVERLAP - MARGIN, : WINDOW - OVERLAP - MARGIN]
    assert np.array_equal(blended[first], cut[first])
    assert np.array_equal(cut[first], apart[first])
    assert np.abs(apart[first] - feathered[first]).max() <= 1
    beyond = np.s_[:WINDOW, WINDOW : WINDOW + 20]
    assert not np.array_equal(blended[beyond], cut[beyond]) and not np.array_equal(cut[beyond], apart[beyond])


def test_a_guided_painter_is_guided_by_every_method(painted, painter):
    area, pictures = painted
    model = NasdmModel.from_pretrained(painter)
    model.config = replace(model.config, guidance_scale=2.0)
    work = AreaPainter(model, area, WINDOW, OVERLAP, 2, 3)
    for method in ("independent", "MultiDiffusion"):
        plain, calls = pictures[method]
        assert not np.array_equal(work.paint(method), plain) and work.calls == 2 * calls


def test_calls_are_about_equal(painted):
    _, pictures = painted
    calls = {method: number for method, (_, number) in pictures.items()}
    assert all(calls[method] == 9 * 2 for method in SEAM_METHODS[:4])
    assert calls["MultiDiffusion"] == 25  # one step of 5 x 5 windows is the nearest to 18


def test_a_study_of_seams_is_written(mask, painter, tmp_path):
    out = tmp_path / "report"
    command = ["study", "seams", str(mask), "-o", str(out), "--model", str(painter), "--size", "384", "--steps", "1"]
    result = CliRunner().invoke(main, [*command, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    rows = json.loads((out / "report.json").read_text())["seams"]["rows"]
    assert [row["method"] for row in rows] == list(SEAM_METHODS) and all(row["gradient ratio"] > 0 for row in rows)
    assert (out / "multidiffusion.png").is_file()
    result = CliRunner().invoke(main, [*command, "--size", "100", "--overwrite"])
    assert result.exit_code == 2 and "give 128 px or more" in result.output
    result = CliRunner().invoke(main, [*command, "--overlap", "9", "--overwrite"])
    assert result.exit_code == 2 and "--overlap 9: must be a multiple of 8" in result.output
    chosen = ("--method", "context, blended", "--overlap", "24", "--overwrite")
    result = CliRunner().invoke(main, [*command, *chosen])
    assert result.exit_code == 0, result.output
    found = json.loads((out / "report.json").read_text())
    assert [row["method"] for row in found["seams"]["rows"]] == ["context, blended"]
    assert found["command"]["overlap"] == 24
