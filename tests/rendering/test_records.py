"""`render --from` a record: the same pixels again, or one line that says why not; no option is dropped in silence."""

import json
import shutil

import numpy as np
import openslide
import pytest
from click.testing import CliRunner

import wsigen
from wsigen.cli.main import main
from wsigen.rendering.records import record_of


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def refusal(*arguments):
    """The one line of a command that must end with exit code 2. Lines of a plan may stand before it."""
    code, text = run(*arguments)
    lines = text.strip().splitlines()
    assert code == 2 and sum(line.startswith("wsigen: ") for line in lines) == 1, text
    return lines[-1]


def level0(path):
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def changed_record(path, target, **environment):
    """A copy of a record that was painted in another environment."""
    record = json.loads(path.read_text())
    record["run"]["environment"] |= environment
    target.write_text(json.dumps(record))
    return target


@pytest.fixture(scope="module")
def home(tiny_model, demo_mask_path, tmp_path_factory):
    """A folder with a mask, a model that does not ship, and a slide of both."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_model, folder / "model")
    shutil.copy(demo_mask_path, folder / "mask.tif")
    settings = ("--model", folder / "model", "--device", "cpu", "--seed", 3, "--rect", 40, 30, 260, 200)
    code, text = run("render", folder / "mask.tif", "-o", folder / "a.svs", *settings, "--jpeg-quality", 80)
    assert code == 0, text
    return folder


def test_a_slide_of_an_own_model_is_painted_again(home, tmp_path):
    code, text = run("render", "--from", home / "a.json", "-o", tmp_path / "b.svs")
    assert code == 0, text
    assert np.array_equal(level0(home / "a.svs"), level0(tmp_path / "b.svs"))
    record = json.loads((home / "a.json").read_text())
    assert record["paint"]["model"] == str(home / "model") and record["model_name"] == "tiny"


def test_a_model_and_a_mask_that_moved_are_named(home, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(home, moved)
    record = json.loads((moved / "a.json").read_text())
    record["paint"]["model"], record["mask"] = "/nowhere/model", "/nowhere/mask.tif"
    (moved / "a.json").write_text(json.dumps(record))
    again = ("render", "--from", moved / "a.json", "-o", tmp_path / "b.svs")
    assert "its model tiny is not in /nowhere/model any more; name its folder with --model" in refusal(*again)
    model = ("--model", moved / "model")
    assert "its mask /nowhere/mask.tif is missing; name it: wsigen render MASK --from" in refusal(*again, *model)
    code, text = run(*again, *model, moved / "mask.tif")
    assert code == 0, text
    assert np.array_equal(level0(home / "a.svs"), level0(tmp_path / "b.svs"))


def test_another_model_or_mask_is_refused_with_the_mend(home, tiny_model, tmp_path):
    shutil.copytree(home / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"description": "trained further"}))
    again = ("render", "--from", home / "a.json", "-o", tmp_path / "b.svs")
    line = refusal(*again, "--model", tmp_path / "model")
    assert "model_sha256" in line and "name the folder of the model that painted it with --model" in line
    assert run("mask", "demo", "--size", 300, "-o", tmp_path / "other.tif")[0] == 0
    assert "name the mask that the slide was painted from" in refusal(*again, tmp_path / "other.tif")
    assert "mask_sha256" in refusal(*again, tmp_path / "other.tif", "--plan")
    assert "its mask alone" in refusal(*again, home / "mask.tif", tmp_path / "other.tif")
    assert not (tmp_path / "b.svs").exists()


@pytest.mark.parametrize(
    "option",
    [
        ("--seed", 3),
        ("--seeds", "1,2"),
        ("--style", "violet"),
        ("--styles", "all"),
        ("--rect", 0, 0, 10, 10),
        ("--steps", 4),
        ("--sampler", "ddim"),
        ("--guidance-scale", 1.5),
        ("--window", 128),
        ("--overlap", 16),
        ("--batch-size", 4),
        ("--dtype", "float32"),
    ],
)
def test_options_that_change_pixels_are_refused_beside_a_record(home, tmp_path, option):
    line = refusal("render", "--from", home / "a.json", "-o", tmp_path / "b.svs", *option)
    assert f"{option[0]}: would change the pixels that --from {home / 'a.json'} paints again" in line
    assert not list(tmp_path.iterdir())


def test_options_that_leave_pixels_alone_count_beside_a_record(home, tmp_path):
    out = tmp_path / "b.ome.tiff"
    options = (
        "--format",
        "ome.tiff",
        "--jpeg-quality",
        60,
        "--canvas",
        tmp_path / "c",
        "--keep-canvas",
        "--workers",
        2,
    )
    code, text = run("render", "--from", home / "a.json", "-o", out, "--device", "cpu", "--timings", *options)
    assert code == 0 and "painting:" in text, text
    assert (tmp_path / "c" / "run.json").is_file()
    record = json.loads(record_of(out).read_text())
    assert record["jpeg_quality"] == 60 and json.loads((home / "a.json").read_text())["jpeg_quality"] == 80
    assert record["run"] == json.loads((home / "a.json").read_text())["run"]


def test_a_new_version_paints_again_what_an_old_one_painted_as_long_as_the_pixels_are_the_same(home, tmp_path):
    record = json.loads((home / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(record | {"wsigen": "0.0.1"}))
    code, text = run("render", "--from", tmp_path / "a.json", "-o", tmp_path / "b.svs", "--plan")
    assert code == 0, text


@pytest.mark.parametrize("command", ["render", "verify"])
def test_other_pixels_are_refused(home, tmp_path, command):
    def line(record):
        again = ("render", "--from", record, "-o", tmp_path / "b.svs")
        verify = ("verify", home / "a.svs", "--mask", home / "mask.tif", "--record", record)
        return refusal(*(again if command == "render" else verify))

    other = changed_record(home / "a.json", tmp_path / "other.json", pixels=0)
    numbers = "its pixels are of number 0, and this version of wsigen paints number"
    assert numbers in line(other) and f"the version of wsigen that painted it, {wsigen.__version__}" in line(other)
    machine = changed_record(home / "a.json", tmp_path / "machine.json", device="cuda 12.8, NVIDIA H200")
    assert "environment.device is 'cuda 12.8, NVIDIA H200' there" in line(machine)
    record = json.loads((home / "a.json").read_text())
    del record["run"]["environment"]["pixels"]
    old = tmp_path / "old.json"
    old.write_text(json.dumps(record))
    assert f"{old}: was written before wsigen numbered its pixels" in line(old)
    record["run"]["environment"]["pixels"] = wsigen.pixels.PIXELS
    record["run"]["back_ends"]["attention"] = "xformers"
    old.write_text(json.dumps(record))
    assert "back_ends.attention is 'xformers' there" in line(old) and "WSIGEN_ATTENTION=xformers" in line(old)


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: [],
        lambda record: record | {"mask": 7},
        lambda record: record | {"jpeg_quality": None},
        lambda record: record | {"paint": record["paint"] | {"batch_size": "4"}},
        lambda record: record | {"paint": record["paint"] | {"style": "violet"}},
        lambda record: record | {"run": {}},
        lambda record: {name: value for name, value in record.items() if name != "paint"},
    ],
)
def test_what_is_no_record_gets_one_line(home, tmp_path, damage):
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(damage(json.loads((home / "a.json").read_text()))))
    assert f"{bad} is not the .json record of a slide" in refusal("render", "--from", bad, "-o", tmp_path / "b.svs")


def test_an_unfinished_canvas_of_other_pixels_is_not_resumed(home, tmp_path):
    options = ("--model", home / "model", "--device", "cpu")
    out = tmp_path / "b.svs"
    assert run("render", home / "mask.tif", "-o", out, *options, "--keep-canvas")[0] == 0
    out.unlink()
    stored = tmp_path / "b.svs.canvas" / "run.json"
    record = json.loads(stored.read_text())
    pixels = record["run"]["environment"].pop("pixels")
    for environment, words in (
        ({"pixels": pixels + 1}, f"its pixels are of number {pixels + 1}, and this version of wsigen paints"),
        ({"wsigen": "0.1.0"}, "its pixels are older than their numbers, and this version of wsigen paints number"),
    ):
        run_there = record["run"] | {"environment": record["run"]["environment"] | environment}
        stored.write_text(json.dumps(record | {"run": run_there}))
        assert words in refusal("render", home / "mask.tif", "-o", out, *options, "--resume")
    assert not out.exists()


@pytest.mark.parametrize(
    ("slide", "record"),
    [
        ("s.svs", "s.json"),
        ("S.SVS", "S.json"),
        ("s.ome.tiff", "s.json"),
        ("s.tiff", "s.json"),
        ("a.b.ome.zarr", "a.b.json"),
        ("s.dicom", "s.json"),
        ("folder", "folder.json"),
    ],
)
def test_a_record_lies_beside_its_slide_under_its_name(slide, record):
    assert record_of(f"x/{slide}").as_posix() == f"x/{record}"
