"""`wsigen evaluate`, `wsigen audit` and `wsigen study` from end to end, on drawn tissue and small networks."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from drawn import SIDE, picture

from wsigen.cli.main import main
from wsigen.errors import SettingsError
from wsigen.evaluation.material import jpeg_history, real_patches
from wsigen.evaluation.report import Report, Section, table
from wsigen.evaluation.slide import painted_grid
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask
from wsigen.models.config import ModelConfig
from wsigen.models.stain_response import StainResponse
from wsigen.slides.metadata import SlideMetadata
from wsigen.slides.svs import write_svs

CPU = torch.device("cpu")


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def report_of(folder):
    return json.loads((Path(folder) / "report.json").read_text())


def rows_by(report, section, key):
    return {row[key]: row for row in report[section]["rows"]}


@pytest.fixture(scope="module")
def networks(features, segmenter):
    return ("--features", features, "--segmenter", segmenter, "--device", "cpu")


@pytest.fixture(scope="module")
def samples(data, tmp_path_factory):
    """What a perfect painter publishes: real pictures of other seeds with their labels."""
    images, labels = [], []
    for seed in range(20, 24):
        rgb, classes, _ = picture(seed)
        for y in range(0, SIDE - 63, 64):
            for x in range(0, SIDE - 63, 64):
                images.append(rgb[y : y + 64, x : x + 64])
                labels.append(classes[y : y + 64, x : x + 64])
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    np.savez(path, images=np.stack(images), labels=np.stack(labels))
    return path


def test_real_patches_come_with_their_labels_and_overlap_by_half_at_most(data):
    material = real_patches(data, "val", 64, 1000, CPU)
    patches = material.patches
    assert len(patches) == 3 * 25 and set(patches.groups) == {"e", "f", "g"}
    assert ((patches.instances > 0) == (patches.classes > 0)).all()
    for name, seed in zip("efg", (4, 5, 6)):
        first = patches.groups.index(name)
        assert np.array_equal(patches.images[first], picture(seed)[0][:64, :64])
    assert len(real_patches(data, "val", 64, 10, CPU).patches) == 10


def test_jpeg_history_leaves_its_grid(data):
    patches = real_patches(data, "val", 64, 4, CPU).patches.images
    stored = jpeg_history(patches, 50)
    change = np.abs(stored.astype(float) - patches)
    assert stored.shape == patches.shape and 0.5 < change.mean() < 12


def test_patches_of_a_model_are_measured(data, painter, networks, tmp_path):
    out = tmp_path / "report"
    command = ("evaluate", "patches", "--data", data, "-o", out, "--model", painter, "--window", 64, "--count", 24)
    result = run(*command, *networks, "--network-steps", 2)
    assert result.exit_code == 0, result.output
    report = report_of(out)
    sections = {"setup", "distances", "fidelity", "discriminability", "stain", "diversity", "memorisation"}
    assert sections < set(report)
    distances = report["distances"]["rows"][0]
    assert distances["N"] == 24 and distances["Fréchet"] > 5 * distances["floor"]  # an untrained painter paints noise
    nuclei = report["fidelity"]["rows"][0]
    assert nuclei["real dice"] > 0.8 > 0.5 > nuclei["shuffled dice"]
    assert nuclei["real pq"] > 0.5 > nuclei["pq"]
    assert rows_by(report, "discriminability", "view")["multi-scale features"]["AUC"] > 0.95
    assert report["diversity"]["rows"][0]["pixel deviation"] > 1
    copies = rows_by(report, "memorisation", "patches")
    assert copies["painted"]["share of near-copies"] <= copies["real, held out"]["share of near-copies"] + 0.01
    markdown = (out / "report.md").read_text()
    for picture_name in ("patches.png", "seeds.png", "suspects.png", "stain.png", "spectrum.png"):
        assert (out / picture_name).is_file() and picture_name in markdown
    assert run(*command, *networks).exit_code == 2
    assert "--overwrite" in run(*command, *networks).output


def test_perfect_samples_are_as_good_as_real(data, samples, networks, tmp_path):
    out = tmp_path / "report"
    result = run("evaluate", "patches", "--data", data, "-o", out, "--samples", samples, *networks, "--no-memorisation")
    assert result.exit_code == 0, result.output
    report = report_of(out)
    distances, nuclei = report["distances"]["rows"][0], report["fidelity"]["rows"][0]
    assert distances["excess"] < 2 * distances["floor"]
    assert nuclei["dice / real"] == pytest.approx(1, abs=0.08)
    assert "memorisation" not in report and "diversity" not in report


def test_copies_of_training_patches_are_found(data, networks, tmp_path):
    patches = real_patches(data, "train", 64, 24, CPU, machine=True).patches
    turned = np.rot90(patches.images, 1, (1, 2))
    np.savez(tmp_path / "copies.npz", images=turned, labels=np.rot90(patches.classes, 1, (1, 2)))
    out = tmp_path / "report"
    result = run(
        "evaluate",
        "patches",
        "--data",
        data,
        "-o",
        out,
        "--samples",
        tmp_path / "copies.npz",
        *networks,
        "--network-steps",
        2,
    )
    assert result.exit_code == 0, result.output
    painted = rows_by(report_of(out), "memorisation", "patches")["painted"]
    assert painted["share of near-copies"] == 1 and painted["above 0.9"] == 1


def test_inception_that_cannot_be_had_is_one_clear_note(data, samples, networks, tmp_path):
    out = tmp_path / "report"
    options = ("--network-steps", 1, "--inception", "--inception-weights", tmp_path / "none.pth", "--no-memorisation")
    result = run("evaluate", "patches", "--data", data, "-o", out, "--samples", samples, *networks, *options)
    assert result.exit_code == 0, result.output
    (note,) = report_of(out)["distances"]["notes"]
    assert note.startswith("Inception: ") and "leave them out" in note and "\n" not in note


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "x", "--samples", "y"), "not both"),
        (("--features", "nowhere"), "no measuring network 'nowhere'"),
        (("--samples", __file__), "not an .npz"),
        (("--window", 400), "no image of the split holds 400 x 400"),
    ],
)
def test_bad_input_is_named_and_nothing_written(data, networks, tmp_path, options, message):
    out = tmp_path / "report"
    result = run("evaluate", "patches", "--data", data, "-o", out, *networks, *options)
    assert result.exit_code == 2 and message in result.output and not out.exists()


# --- slides -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def painted_slide(tmp_path_factory):
    """A slide of drawn tissue with its mask and the record of a render: (slide, mask)."""
    folder = tmp_path_factory.mktemp("slide")
    parts = [[picture(10 * j + i) for i in range(4)] for j in range(4)]
    rgb, classes, ids = (
        np.block([[p[k] for p in row] for row in parts])
        if k
        else np.concatenate([np.concatenate([p[0] for p in row], 1) for row in parts])
        for k in range(3)
    )
    size = 4 * SIDE
    row, column = (np.arange(size) // SIDE)[:, None], (np.arange(size) // SIDE)[None]
    ids = np.where(ids > 0, ids + 100 * (4 * row + column), 0).astype(np.uint32)
    write_slide_mask(folder / "s_mask.tif", size, size, 0.5, [MaskWindow(classes.astype(np.uint8), ids)], True, False)
    write_svs(folder / "s.svs", size, size, lambda y0, y1: rgb[y0:y1].astype(np.uint8), SlideMetadata(0.5, 20.0, {}))
    (folder / "s.json").write_text(json.dumps({"paint": {"window": 128, "overlap": 16}}))
    return folder / "s.svs", folder / "s_mask.tif"


@pytest.mark.parametrize("name", ["s.svs", "s.ome.tiff", "s.dicom"])
def test_the_grid_of_a_slide_stands_in_its_record_whatever_its_format(painted_slide, name):
    assert painted_grid(painted_slide[0].with_name(name), None, None) == (128, 16)


def test_a_slide_is_measured(data, painted_slide, networks, features, tmp_path):
    slide, mask = painted_slide
    index, out = tmp_path / "index", tmp_path / "report"
    assert run("evaluate", "index", "--data", data, "-o", index, *networks[:2], "--device", "cpu").exit_code == 0
    options = ("--data", data, "--index", index, "--control", slide, "--sites", 100)
    result = run("evaluate", "slide", slide, mask, "-o", out, *networks, *options)
    assert result.exit_code == 0, result.output
    report = report_of(out)
    nuclei = report["fidelity"]["rows"][0]
    assert nuclei["nuclei"] == 16 * 64 and nuclei["dice"] > 0.8 and nuclei["shuffled dice"] < 0.5
    seams = {(row["statistic"], row["of"]): row["value"] for row in report["seams"]["rows"]}
    assert seams["gradient ratio", "painted slide"] == seams["gradient ratio", "real slide"]
    assert 0.7 < seams["gradient ratio", "painted slide"] < 1.4
    assert report["memorisation"]["rows"][0]["patches"] > 2 and report["distances"]["rows"][0]["N"] > 2
    with (out / "nuclei.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 16 * 64 == len({line["id"] for line in lines})
    found = np.mean([line["class"] == line["found_class"] for line in lines])
    assert found > 0.5 and all(0 <= float(line["x"]) < 4 * SIDE for line in lines)
    by_id = {line["id"]: line for line in lines}
    _, first_classes, first_ids = picture(0)
    y, x = np.argwhere(first_ids == 1).mean(0)
    assert abs(float(by_id["1"]["x"]) - x) < 0.1 and abs(float(by_id["1"]["y"]) - y) < 0.1
    assert int(by_id["1"]["class"]) == first_classes[first_ids == 1][0]

    result = run("audit", slide, "--index", index, "--features", features, "--device", "cpu")
    assert (
        result.exit_code == 0
        and "near-copies of training patches: 0.0%" in result.output
        and "held-out patches" in result.output
    )


def test_a_slide_without_record_or_with_another_mask_is_refused(painted_slide, networks, tmp_path):
    slide, mask = painted_slide
    other = tmp_path / "other.svs"
    other.write_bytes(slide.read_bytes())
    result = run("evaluate", "slide", other, mask, "-o", tmp_path / "r", *networks)
    assert result.exit_code == 2 and "give --window and --overlap" in result.output
    small = MaskWindow(np.ones((64, 64), np.uint8))
    write_slide_mask(tmp_path / "small.tif", 64, 64, 0.5, [small], False, False)
    result = run("evaluate", "slide", slide, tmp_path / "small.tif", "-o", tmp_path / "r", *networks)
    assert result.exit_code == 2 and "64 x 64 px, the slide is 768 x 768" in result.output
    result = run("audit", slide, "--index", tmp_path, "--features", networks[1])
    assert result.exit_code == 2 and "`wsigen evaluate index` writes one" in result.output


# --- study ------------------------------------------------------------------------------------------------------------


def test_a_study_compares_arms_and_resumes(data, painter, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'task = "segment"\narchitecture = "segmenter-tiny"\nwarmup_steps = 1\n'
        "[[phases]]\nwindows = [32]\nbatches = [4]\nsteps = 3\n"
    )
    out = tmp_path / "study"
    command = ("study", "segmentation", recipe, "--data", data, "-o", out, "--model", painter, "--seeds", 2)
    command = (*command, "--painted", 6, "--window", 64, "--device", "cpu")
    result = run(*command)
    assert result.exit_code == 0, result.output
    report = report_of(out / "report")
    assert report["test"]["rows"][0]["patches"] > 0 and report["test"]["rows"][0]["source images"] > 0
    row = report["dice"]["rows"][0]
    assert {"real", "painted", "both", "painted: change"} < set(row) and "±" in row["real"]
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("scores.json")}
    assert len(before) == 8
    assert run(*command).exit_code == 2
    assert run(*command, "--resume").exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    lost = [out / "runs/real-1", out / "runs/both-1"]
    scores = [(folder / "scores.json").read_bytes() for folder in lost]
    for folder in lost:
        shutil.rmtree(folder)
    assert run(*command, "--resume", "--jobs", 2).exit_code == 0
    assert scores == [(folder / "scores.json").read_bytes() for folder in lost]
    names = [entry["name"] for entry in json.loads((out / "data/painted/manifest.json").read_text())["images"]]
    assert sum(name.startswith("painted_") for name in names) == 6
    assert all(name.startswith("painted_") or name[-1] in "efg" for name in names)


def test_a_fitted_solver_is_the_painters_from_then_on(little_data, painter, tmp_path):
    folder, small = tmp_path / "fitted", tmp_path / "small.tif"
    source = tmp_path / "source"
    shutil.copytree(painter, source)
    rows = tuple(tuple(0.6 * (column == row + 1) for column in range(7)) for row in range(6))
    mended = replace(ModelConfig.load(painter), stain_response=StainResponse(rows))
    (source / "config.json").write_text(mended.to_json())
    fit = ("distill", "--method", "solver", "--model", source, "--data", little_data, "--device", "cpu", "-o", folder)
    result = run(*fit, "--steps", 2, "--steps", 3)
    assert result.exit_code == 0 and "2 steps: mean squared error" in result.output, result.output
    config = ModelConfig.load(folder)
    assert config.sampler == "fitted" and [len(plan) for plan in config.fitted] == [2, 3]
    assert config.sampler_for(3) == "fitted" and config.sampler_for(5) == "unipc"
    assert config.stain_response is None, "it was measured with another solver"
    for part in Path(painter).glob("*.safetensors"):
        assert (folder / part.name).read_bytes() == part.read_bytes()
    result = run(*fit, "--steps", 2)
    assert result.exit_code == 2 and f"{folder}: exists" in result.output
    result = run(*fit[:-1], tmp_path / "guided", "--steps", 2, "--guidance-scale", 1.5)
    guided = ModelConfig.load(tmp_path / "guided")
    assert (config.guidance_scale, guided.guidance_scale) == (1, 1.5), result.output
    assert guided.fitted_solver(2) != config.fitted_solver(2)
    result = run(*fit[:-1], tmp_path / "new", "--minutes", 1)
    assert result.exit_code == 2 and "--minutes: has no meaning with --method solver" in result.output
    result = run(*fit[:-1], tmp_path / "new", "--model", "mask-colon-20x")
    assert result.exit_code == 2 and "--model mask-colon-20x: solvers are fitted to painters" in result.output
    assert not (tmp_path / "new").exists()
    write_slide_mask(small, 96, 64, 0.5, [MaskWindow(picture(0)[1][:64, :96])], False, False)
    render = ("render", small, "--model", folder, "--device", "cpu", "--overwrite")
    result = run(*render, "--sampler", "fitted", "--steps", 5)
    assert result.exit_code == 2 and "no fitted solver of 5 steps; take --steps 2, 3" in result.output, result.output
    for steps, sampler in ((3, "fitted"), (5, "unipc")):
        result = run(*render, "--steps", steps)
        assert result.exit_code == 0, result.output
        recorded = json.loads(small.with_suffix(".json").read_text())["paint"]
        assert (recorded["sampler"], recorded["num_inference_steps"]) == (sampler, steps)
    result = run("render", small, "--model", tmp_path / "guided", "--device", "cpu", "--overwrite", "--steps", 2)
    assert result.exit_code == 0 and "2 steps with guidance 1.5, seed 0" in result.output, result.output
    assert json.loads(small.with_suffix(".json").read_text())["paint"]["guidance_scale"] == 1.5
    assert "guidance_scale 1.5" in run("info", small.with_suffix(".svs")).output


def test_distill_writes_a_painter_that_renders_in_two_steps(data, painter, painted_slide, tmp_path):
    run_folder, small = tmp_path / "run", tmp_path / "small.tif"
    tiny = ("--set", "phases=[{windows=[64], batches=[2], steps=2}]", "--set", "evaluate_every=9", "--device", "cpu")
    result = run("distill", "--model", painter, "--data", data, "-o", run_folder, "--guidance-scale", 1.5, *tiny)
    assert result.exit_code == 0 and "step 2 of 2" in result.output, result.output
    assert json.loads((run_folder / "settings.json").read_text())["distill"]["guidance_scale"] == 1.5
    write_slide_mask(small, 96, 64, 0.5, [MaskWindow(picture(0)[1][:64, :96])], False, False)
    result = run("render", small, "--model", run_folder / "model", "--steps", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    recorded = json.loads(small.with_suffix(".json").read_text())["paint"]
    assert (recorded["sampler"], recorded["num_inference_steps"]) == ("consistency", 2)


def test_a_painter_that_guides_itself_renders_guided_in_one_call_a_step(data, painter, tmp_path):
    run_folder, small = tmp_path / "run", tmp_path / "small.tif"
    tiny = ("--set", "phases=[{windows=[64], batches=[2], steps=2}]", "--set", "evaluate_every=9", "--device", "cpu")
    learn = ("distill", "--method", "guidance", "--model", painter, "--data", data, "-o", run_folder)
    result = run(*learn, "--guidance-scale", 1.5, *tiny)
    assert result.exit_code == 0 and "step 2 of 2" in result.output, result.output
    write_slide_mask(small, 96, 64, 0.5, [MaskWindow(picture(0)[1][:64, :96])], False, False)
    render = ("render", small, "--model", run_folder / "model", "--steps", 2, "--device", "cpu", "--overwrite")
    result = run(*render)
    assert result.exit_code == 0 and "2 steps with guidance 1.5, seed 0" in result.output, result.output
    assert json.loads(small.with_suffix(".json").read_text())["paint"]["guidance_scale"] == 1.5
    assert ModelConfig.load(run_folder / "model").guidance().calls == 1


# --- reports ----------------------------------------------------------------------------------------------------------


def test_a_report_is_written_after_each_section(tmp_path):
    report = Report(tmp_path / "r", "Title", {"model": "m", "left out": None})
    report.add(Section("one", "One", "Says.", [{"a": 1.23456, "b": None, "c": float("nan"), "d": np.float32(2)}]))
    stored = report_of(tmp_path / "r")
    assert stored["one"]["rows"] == [{"a": 1.23456, "b": None, "c": None, "d": 2.0}]
    assert "| 1.23 |  |  | 2 |" in (tmp_path / "r" / "report.md").read_text()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(SettingsError, match="holds no report"):
        Report(tmp_path / "full", "Title", {}, overwrite=True)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_tables_hold_every_column():
    assert table([{"a": 1}, {"b": 2000.5}]).splitlines() == ["| a | b |", "| --- | --- |", "| 1 |  |", "|  | 2000 |"]
    assert table([{"n": 12345}]).splitlines()[-1] == "| 12,345 |"
