"""`wsigen evaluate stain`: what a painter paints of the stain that it is told, and a model that makes up for it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from drawn import picture

from wsigen.cli.main import main
from wsigen.errors import DataError
from wsigen.evaluation.asked_stain.fitting import slopes
from wsigen.evaluation.asked_stain.painting import density_sums, pooled
from wsigen.models.config import ModelConfig
from wsigen.models.stain import STYLE_NUMBERS, measure_style

SMALL = ("--windows", 4, "--styles", 12, "--device", "cpu")


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def evaluated(data, painter, tmp_path_factory):
    """A report, and a copy of the painter with the response that was measured."""
    folder = tmp_path_factory.mktemp("stain")
    out, mended = folder / "report", folder / "mended"
    result = run("evaluate", "stain", "--data", data, "-o", out, "--model", painter, "--write", mended, *SMALL)
    assert result.exit_code == 0, result.output
    return out, mended, result.output


def test_sums_of_windows_give_the_numbers_of_a_style():
    patches = np.stack([picture(seed)[0] for seed in range(3)])
    patches[0, :50] = 250  # glass
    whole = measure_style(patches.reshape(-1, 192, 3), np.zeros((3 * 192, 192), bool), "all")
    np.testing.assert_allclose(pooled(density_sums(patches)), whole.vector, atol=1e-6)
    sums = density_sums(patches)
    assert pooled(np.stack([sums, sums[::-1]])).shape == (2, 6)


def test_windows_of_glass_alone_have_no_stain():
    with pytest.raises(DataError, match="no tissue was painted"):
        pooled(density_sums(np.full((2, 16, 16, 3), 250, np.uint8)))


def test_slopes_are_of_painted_over_asked_numbers():
    asked = np.random.default_rng(0).normal(size=(5, 6))
    asked[:, 3] = 1.0
    found = slopes(asked, 0.5 * asked + 3)
    assert found[3] is None
    assert [found[i] for i in (0, 1, 2, 4, 5)] == pytest.approx([0.5] * 5)


def test_the_report_holds_asked_and_painted_numbers(evaluated):
    out, _, output = evaluated
    report = json.loads((out / "report.json").read_text())
    assert [row["number"] for row in report["slopes"]["rows"]] == list(STYLE_NUMBERS)
    rows = report["sources"]["rows"]
    assert {row["style"] for row in rows} == {"e", "f", "g"}
    assert {row["numbers"] for row in rows} == {"asked", "painted before", "painted", "expected"}
    assert all(np.isfinite(row["mean green"]) for row in rows)
    assert report["setup"]["rows"][0]["windows"] == 4 and report["setup"]["rows"][0]["of held-out images"] == 2
    assert [row["style"] for row in report["styles"]["rows"]] == ["ours"] * 3
    assert (out / "stains.png").is_file() and "stains.png" in (out / "report.md").read_text()
    assert "asked and painted: number mean red, slope before" in output


def test_the_copy_differs_by_its_response_alone(evaluated, painter):
    _, mended, output = evaluated
    plain, other = ModelConfig.load(painter), ModelConfig.load(mended)
    assert plain.stain_response is None and other.stain_response is not None
    assert json.loads(plain.to_json()) == json.loads(other.to_json()) | {"stain_response": None}
    assert sorted(path.name for path in mended.iterdir()) == sorted(path.name for path in Path(painter).iterdir())
    assert f"--model {mended}" in output
    assert not list(mended.parent.glob("*.partial"))


def test_what_paints_with_the_response_can_be_measured_again(evaluated, data, tmp_path):
    """The network's answer to what it is told is measured, whether the model has a response or not."""
    first, mended, _ = evaluated
    own = tmp_path / "own"
    shutil.copytree(mended, own)
    out = tmp_path / "report"
    result = run("evaluate", "stain", "--data", data, "-o", out, "--model", own, "--write", own, *SMALL)
    assert result.exit_code == 0, result.output
    assert ModelConfig.load(own) == ModelConfig.load(mended)
    one, other = (json.loads((folder / "report.json").read_text()) for folder in (first, out))
    assert one["sources"] == other["sources"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--styles", 5), "--styles 5: a response needs 12 or more"),
        (("--window", 66), "--window 66: must be a multiple of"),
        (("--window", 256), "no held-out picture holds a window of 256 px"),
        (("--write", "{tmp}/there"), "exists and is not the model's folder"),
        (("--write", "{tmp}/missing/model"), "does not exist; make it first"),
        (("--model", "mask-colon-20x"), "is told no stain style"),
    ],
)
def test_what_cannot_be_done_is_refused_before_painting(data, painter, tmp_path, arguments, says):
    (tmp_path / "there").mkdir()
    given = [str(argument).format(tmp=tmp_path) for argument in arguments]
    out = tmp_path / "report"
    result = run("evaluate", "stain", "--data", data, "-o", out, "--model", painter, *SMALL, *given)
    assert result.exit_code == 2 and says in result.output, result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not out.exists()


def test_pictures_of_one_source_image_are_too_few(data, painter, tmp_path):
    alone, out = tmp_path / "alone", tmp_path / "report"
    shutil.copytree(data, alone)
    manifest = json.loads((alone / "manifest.json").read_text())
    manifest["images"] = [entry for entry in manifest["images"] if entry["group"] == "e"]
    (alone / "manifest.json").write_text(json.dumps(manifest))
    result = run("evaluate", "stain", "--data", alone, "-o", out, "--model", painter, *SMALL)
    assert result.exit_code == 2 and "one source image alone holds windows of 64 px" in result.output, result.output
    assert not out.exists()


def test_held_out_pictures_are_enough(data, painter, tmp_path):
    """Training pictures, which are many, may be left out of the folder."""
    held_out, out = tmp_path / "held-out", tmp_path / "report"
    shutil.copytree(data, held_out)
    manifest = json.loads((held_out / "manifest.json").read_text())
    manifest["images"] = [entry for entry in manifest["images"] if entry["split"] == "val"]
    (held_out / "manifest.json").write_text(json.dumps(manifest))
    result = run("evaluate", "stain", "--data", held_out, "-o", out, "--model", painter, *SMALL)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "report.json").read_text())["setup"]["rows"][0]["of held-out images"] == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_model_that_cannot_be_written_to_is_refused(data, painter, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(painter, own)
    own.chmod(0o555)
    result = run("evaluate", "stain", "--data", data, "-o", tmp_path / "r", "--model", own, "--write", own, *SMALL)
    own.chmod(0o755)
    assert result.exit_code == 2 and "cannot be written to; name a new folder" in result.output
