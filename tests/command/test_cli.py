"""The command line as its users meet it: real files, a small network, real slides."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
import torch
from click.testing import CliRunner

from wsigen.cli.main import main
from wsigen.masks.demo.mask import write_demo_mask
from wsigen.models.config import ModelConfig
from wsigen.models.stain_response import StainResponse
from wsigen.networks.nasdm import NasdmModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network with random weights: what it paints is noise, how it is painted is all real."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    network = NasdmModel(ModelConfig.preset("tiny"))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.tif"
    write_demo_mask(path, 330, 290, seed=3)
    return path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def level0(path: Path) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]


def test_render_writes_a_slide_a_picture_and_a_record(model: Path, mask: Path, tmp_path: Path) -> None:
    out = tmp_path / "slide.svs"
    code, text = run("render", mask, "-o", out, "--model", model, "--seed", 5, "--device", "cpu")
    assert code == 0, text
    assert "nuclei" in text and "--from" in text
    with openslide.OpenSlide(out) as slide:
        assert slide.dimensions == (330, 290)
        assert slide.level_count >= 2
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert slide.properties["openslide.objective-power"] == "20"
        assert set(slide.associated_images) == {"label", "macro", "thumbnail"}
        assert "synthetic" in slide.properties["tiff.ImageDescription"]
    assert (tmp_path / "slide.png").stat().st_size > 0
    assert json.loads((tmp_path / "slide.json").read_text())["paint"]["seed"] == 5
    assert not (tmp_path / "slide.svs.canvas").exists()


def test_a_slide_is_painted_again_from_its_record(model: Path, mask: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "a.svs", tmp_path / "b.svs"
    assert run("render", mask, "-o", first, "--model", model, "--style", "violet", "--device", "cpu")[0] == 0
    code, text = run("render", "--from", tmp_path / "a.json", "-o", again)
    assert code == 0, text
    assert np.array_equal(level0(first), level0(again))
    record = json.loads((tmp_path / "a.json").read_text())
    record["run"]["mask_sha256"] = "0" * 64
    (tmp_path / "a.json").write_text(json.dumps(record))
    code, text = run("render", "--from", tmp_path / "a.json", "-o", tmp_path / "c.svs")
    assert code == 2 and "mask_sha256" in text and not (tmp_path / "c.svs").exists()


def test_a_record_holds_the_stain_that_was_asked_for_whatever_the_network_is_told(
    model: Path, mask: Path, tmp_path: Path
) -> None:
    mended, config = tmp_path / "mended", ModelConfig.load(model)
    shutil.copytree(model, mended)
    rows = tuple(tuple(0.1 if column == 0 else 0.6 * (column == row + 1) for column in range(7)) for row in range(6))
    (mended / "config.json").write_text(replace(config, stain_response=StainResponse(rows)).to_json())
    for name, folder in (("plain", model), ("a", mended)):
        code, text = run("render", mask, "-o", tmp_path / f"{name}.svs", "--model", folder, "--device", "cpu")
        assert code == 0, text
    assert not np.array_equal(level0(tmp_path / "plain.svs"), level0(tmp_path / "a.svs"))
    plain, record = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "a"))
    assert record["paint"]["style"] == plain["paint"]["style"] == config.style().to_config()
    assert record["run"]["style"] == plain["run"]["style"]
    assert record["run"]["model_sha256"] != plain["run"]["model_sha256"]
    code, text = run("render", "--from", tmp_path / "a.json", "-o", tmp_path / "b.svs")
    assert code == 0, text
    assert np.array_equal(level0(tmp_path / "a.svs"), level0(tmp_path / "b.svs"))
    # The same weights without the response paint other pixels.
    code, text = run("render", "--from", tmp_path / "a.json", "--model", model, "-o", tmp_path / "c.svs")
    assert code == 2 and "model" in text and not (tmp_path / "c.svs").exists(), text


def test_seeds_and_styles_change_the_slide_and_nothing_else_does(model: Path, mask: Path, tmp_path: Path) -> None:
    def painted(name: str, *options: object) -> np.ndarray:
        out = tmp_path / f"{name}.svs"
        code, text = run("render", mask, "-o", out, "--model", model, "--device", "cpu", *options)
        assert code == 0, text
        return level0(out)

    one = painted("one", "--seed", 1)
    assert np.array_equal(one, painted("same", "--seed", 1))
    assert not np.array_equal(one, painted("other", "--seed", 2))


def test_nothing_that_exists_is_touched_unless_asked(model: Path, mask: Path, tmp_path: Path) -> None:
    out = tmp_path / "slide.svs"
    out.write_bytes(b"mine")
    code, text = run("render", mask, "-o", out, "--model", model)
    assert code == 2 and str(out) in text and "--overwrite" in text
    assert out.read_bytes() == b"mine"
    assert run("render", mask, "-o", out, "--model", model, "--overwrite", "--device", "cpu")[0] == 0
    assert openslide.OpenSlide.detect_format(out) == "aperio"


def test_files_beside_the_slide_are_not_touched_unless_asked(model: Path, tmp_path: Path) -> None:
    coarse = tmp_path / "s_mask.tif"  # the name that the mask gets at the slide's scale
    write_demo_mask(coarse, 150, 140, seed=3, mpp=1.0)
    before = coarse.read_bytes()
    for option in ((), ("--overwrite",)):
        code, text = run("render", coarse, "-o", tmp_path / "s.svs", "--model", model, "--device", "cpu", *option)
        assert code == 2 and "s_mask.tif: the mask at the slide's scale would be written over it" in text
    for name in ("t.json", "t.png", "t_mask.tif"):
        (tmp_path / name).write_text("mine")
        code, text = run("render", coarse, "-o", tmp_path / "t.svs", "--model", model, "--device", "cpu")
        assert code == 2 and f"{tmp_path / name} exists; replace it with --overwrite" in text
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    assert coarse.read_bytes() == before and list(tmp_path.iterdir()) == [coarse]


def test_a_mask_at_another_scale_is_resampled_and_written_beside_the_slide(model: Path, tmp_path: Path) -> None:
    coarse = tmp_path / "coarse.tif"
    write_demo_mask(coarse, 150, 140, seed=3, mpp=1.0)
    code, text = run("render", coarse, "-o", tmp_path / "s.svs", "--model", model, "--device", "cpu")
    assert code == 0, text
    with openslide.OpenSlide(tmp_path / "s.svs") as slide:
        assert slide.dimensions == (300, 280)
    with tifffile.TiffFile(tmp_path / "s_mask.tif") as resampled:
        assert resampled.pages[0].shape == (280, 300)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.tif", b"these are words", "text.tif"),
        ("empty.tif", b"", "empty.tif"),
        ("cut.tif", None, "cut.tif"),
    ],
)
def test_a_file_that_is_no_mask_gets_one_line(
    mask: Path, tmp_path: Path, model: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(mask.read_bytes()[:3000] if content is None else content)
    code, text = run("render", path, "-o", tmp_path / "x.svs", "--model", model)
    assert code == 2
    assert words in text and len(text.strip().splitlines()) == 1
    assert not (tmp_path / "x.svs").exists()


@pytest.mark.parametrize(
    ("planes", "words"),
    [
        ([np.zeros((64, 64), np.float32)], "float32"),
        ([np.full((64, 64), 9, np.uint8)], "9"),
        ([np.ones((64, 64), np.uint8), np.ones((40, 64), np.uint16)], "40"),
        ([np.zeros((64, 64, 3), np.uint8)], "RGB"),
        ([np.zeros((64, 64), np.uint8)], "nuclei"),
    ],
)
def test_a_mask_with_wrong_planes_gets_one_line(
    planes: list[np.ndarray], words: str, tmp_path: Path, model: Path
) -> None:
    path = tmp_path / "bad.tif"
    with tifffile.TiffWriter(path) as tif:
        for plane in planes:
            tif.write(plane, photometric="rgb" if plane.ndim == 3 else "minisblack")
    code, text = run("render", path, "-o", tmp_path / "x.svs", "--model", model)
    assert code == 2, text
    assert "bad.tif" in text and words in text and len(text.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--model", "no-such-model"], "no-such-model"),
        (["--style", "turquoise"], "turquoise"),
        (["--style", "no/such.svs"], "such.svs"),
        (["--batch-size", "1"], "batch"),
        (["--overlap", "7"], "7"),
        (["--device", "cuda"], "cuda"),
        (["-o", "slide.jpg"], "slide.jpg"),
        (["-o", "no/such/folder/slide.svs"], "folder"),
    ],
)
def test_a_wrong_option_gets_one_line(options: list[str], word: str, mask: Path, model: Path, tmp_path: Path) -> None:
    if options[0] == "--device" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    defaults = {"--model": str(model), "-o": str(tmp_path / "x.svs")}
    rest = [part for option, value in defaults.items() if option != options[0] for part in (option, value)]
    code, text = run("render", mask, *options, *rest)
    assert code == 2, text
    assert word in text and len(text.strip().splitlines()) == 1


def test_mask_demo_and_info(tmp_path: Path) -> None:
    out = tmp_path / "demo.tif"
    code, text = run("mask", "demo", "-o", out, "--size", 400)
    assert code == 0 and "wsigen render" in text
    assert run("mask", "demo", "-o", out, "--size", 400)[0] == 2
    code, text = run("mask", "info", out)
    assert code == 0
    assert "400 x 400 px" in text and "0.5 um/px" in text and "epithelial" in text and "instance" in text


def test_info_models_and_doctor_speak(model: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    run("render", mask, "-o", tmp_path / "s.svs", "--model", model, "--device", "cpu")
    code, text = run("info", tmp_path / "s.svs")
    assert code == 0 and "synthetic: version" in text and "0.5 um/px" in text
    code, text = run("models")
    assert code == 0 and "(default)" in text and "CC-BY-NC-SA-4.0" in text
    assert "is told: stain (violet, lavender, lilac, rose, magenta, plum); mask; tissue; context" in text
    code, text = run("models", model)
    assert code == 0 and text.startswith("tiny v1:") and "is told: stain (violet); mask; tissue; context" in text
    code, text = run("doctor")
    assert code == 0 and "attention:" in text and "group norm:" in text
    assert torch.cuda.is_available() or "triton: Triton needs a CUDA device" in text


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--norm", "triton"), "WSIGEN_NORM=triton: Triton needs a CUDA device; set WSIGEN_NORM=auto"),
        (
            ("--attention", "xformers"),
            "WSIGEN_ATTENTION=xformers: xformers needs a CUDA device; set WSIGEN_ATTENTION=auto",
        ),
        (("--norm", "torch", "--attention", "torch"), ""),
    ],
)
def test_back_ends_are_chosen_by_options(model: Path, mask: Path, tmp_path: Path, option: tuple, message: str) -> None:
    out = tmp_path / "s.svs"
    command = [sys.executable, "-m", "wsigen", "render", mask, "-o", out, "--model", model, "--device", "cpu", *option]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, timeout=300)
    if message:
        assert done.returncode == 2 and message in done.stderr and not out.exists()
        assert "Traceback" not in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        chosen = json.loads((tmp_path / "s.json").read_text())["run"]["back_ends"]
        assert chosen == {"attention": "torch", "norm": "torch"}


def test_the_shipped_model_paints_tissue_where_the_mask_has_it(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    write_demo_mask(path, 400, 400, seed=5)
    code, text = run("render", path, "-o", tmp_path / "s.svs", "--device", "cpu", "--steps", 2)
    assert code == 0, text
    with tifffile.TiffFile(path) as tif:
        classes = tif.pages[0].asarray()
    grey = level0(tmp_path / "s.svs").astype(float).mean(axis=2)
    assert grey[classes > 0].mean() < grey[classes == 0].mean() - 25  # nuclei are dark


def test_help_starts_fast() -> None:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "wsigen", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, wsigen.cli.main; print('torch' in sys.modules, 'numpy' in sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert loaded.stdout.split() == ["False", "False"]
    assert min(times) < 0.5


def test_a_back_end_that_cannot_run_gets_one_line(mask: Path, model: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "wsigen", "render", str(mask), "-o", str(tmp_path / "x.svs"), "--model", str(model)],
        env=os.environ | {"WSIGEN_ATTENTION": "magic"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "WSIGEN_ATTENTION" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr


def test_a_finished_slide_is_not_resumed(model: Path, mask: Path, tmp_path: Path) -> None:
    out = tmp_path / "slide.svs"
    options = ["-o", out, "--model", model, "--device", "cpu"]
    assert run("render", mask, *options)[0] == 0
    before = out.read_bytes()
    code, text = run("render", mask, *options, "--resume")
    assert code == 2 and "finished" in text
    assert out.read_bytes() == before


def test_cells_are_imported_painted_and_written_in_other_formats(model: Path, tmp_path: Path) -> None:
    ring = [[10, 10], [30, 10], [30, 40], [10, 40], [10, 10]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "detection", "classification": {"name": "Tumor", "color": [200, 0, 0]}},
    }
    source, painted = tmp_path / "cells.geojson", tmp_path / "mask.tif"
    source.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    options = ["-o", painted, "--size", "330x290", "--mpp", 0.5]
    code, text = run("mask", "import", source, *options)
    assert code == 2 and "Tumor 1" in text and len(text.strip().splitlines()) == 1
    code, text = run("mask", "import", source, *options, "--class-map", "Tumor=epithelial")
    assert code == 0 and "1 of 1 objects" in text
    assert run("mask", "import", source, "--size", "330", "-o", tmp_path / "x.tif")[0] == 2
    out = tmp_path / "s.ome.tiff"
    code, text = run("render", painted, "-o", out, "--model", model, "--device", "cpu", "--labels", "geojson")
    assert code == 0, text
    assert {p.name for p in tmp_path.iterdir()} >= {"s.ome.tiff", "s.png", "s.json", "s.geojson"}
    with tifffile.TiffFile(out) as tif:
        assert tif.is_ome and tif.series[0].shape == (290, 330, 3)
    truth = json.loads((tmp_path / "s.geojson").read_text())
    assert [f["properties"]["classification"]["name"] for f in truth["features"]] == ["epithelial"]
    assert run("render", painted, "-o", out, "--model", model)[0] == 2
    code, text = run("render", painted, "-o", tmp_path / "s.svs", "--format", "tiff", "--model", model)
    assert code == 2 and ".tiff" in text
    assert run("render", painted, "-o", tmp_path / "t.svs", "--model", model, "--device", "cpu")[0] == 0
    code, text = run("export", tmp_path / "t.svs", "-o", tmp_path / "t.ome.zarr")
    assert code == 0 and "330 x 290 px" in text
    like = ["mask", "import", source, "--like", tmp_path / "t.svs", "--unknown", "skip", "-o", tmp_path / "l.tif"]
    code, text = run(*like)
    assert code == 2 and "no nuclei (1 left out by class (Tumor 1))" in text
    code, text = run(*like, "--allow-empty")
    assert code == 0 and "330 x 290 px, 0.5 um/px" in text and "left out by class (Tumor 1)" in text
    code, text = run("mask", "export", painted, "-o", tmp_path / "t.db")
    assert code == 0 and "1 nuclei" in text


PUBLISHED = Path(os.environ.get("WSIGEN_TEST_DATA", "no data"))  # a folder with consep/ and lizard/


@pytest.mark.skipif(not (PUBLISHED / "consep").is_dir(), reason="WSIGEN_TEST_DATA names no folder with consep/")
def test_published_labels_are_imported_and_painted(model: Path, tmp_path: Path) -> None:
    folder, name = PUBLISHED / "consep", "test_10_000"
    table = ["--table", folder / "types.json", "--class-map", "consep", "--mpp", 0.25]
    code, text = run("mask", "import", folder / "instances" / f"{name}.png", *table, "-o", tmp_path / "m.tif")
    assert code == 0, text
    code, text = run("render", tmp_path / "m.tif", "-o", tmp_path / "s.svs", "--model", model, "--labels", "coco")
    assert code == 0, text
    with openslide.OpenSlide(tmp_path / "s.svs") as slide:
        assert slide.dimensions == (128, 128)
    truth = json.loads((tmp_path / "s.coco.json").read_text())
    assert truth["images"][0]["width"] == 128 and truth["annotations"]
