"""Many slides on one set of workers, and the manifest of what became of them."""

import csv
import shutil

import numpy as np
import openslide
import pytest
import torch

import wsigen
from wsigen.errors import SettingsError
from wsigen.masks.demo.mask import write_demo_mask
from wsigen.models.config import ModelConfig
from wsigen.networks.nasdm import NasdmModel
from wsigen.rendering.many import list_slides


def level_pixels(path):
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def rows(folder):
    with (folder / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_mask_with_every_seed_and_one_that_fails(tiny_model, tmp_path):
    masks = [tmp_path / "a.tif", tmp_path / "b.tif", tmp_path / "bad.tif"]
    write_demo_mask(masks[0], 260, 200, seed=1)
    write_demo_mask(masks[1], 200, 260, seed=2)
    masks[2].write_text("no mask")
    out, settings = tmp_path / "out", {"model": str(tiny_model), "device": "cpu"}
    entries = wsigen.render_many(masks, out, seeds=[0, 7], **settings)
    assert [entry.status for entry in entries] == ["done"] * 4 + ["failed"] * 2
    listed = rows(out)
    assert [row["slide"] for row in listed] == [entry.slide for entry in entries]
    assert "bad.tif" in listed[4]["error"] and listed[0]["width"] == "260"
    alone = tmp_path / "alone.svs"
    wsigen.render(masks[1], alone, seed=7, **settings)
    assert np.array_equal(level_pixels(alone), level_pixels(out / "b_seed7_violet.svs"))
    assert not list(out.glob("*.canvas"))

    with pytest.raises(SettingsError, match="--resume"):
        wsigen.render_many(masks[:2], out, **settings)
    (out / "a_seed0_violet.svs").unlink()
    again = wsigen.render_many(masks[:2], out, seeds=[0, 7], resume=True, **settings)
    assert [entry.status for entry in again] == ["done", "skipped", "skipped", "skipped"]


def test_a_mask_and_a_model_that_change_meanwhile_count_for_the_slides_that_begin_later(tiny_model, tmp_path):
    mask, model, settings = tmp_path / "a.tif", tmp_path / "model", {"device": "cpu"}
    write_demo_mask(mask, 200, 150, seed=1)
    shutil.copytree(tiny_model, model)

    def change(entry, ended, total):
        if ended == 1:
            write_demo_mask(mask, 200, 150, seed=2, overwrite=True)
            torch.manual_seed(5)
            network = NasdmModel.from_pretrained(model)
            for parameter in network.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
            network.save_pretrained(model)

    entries = wsigen.render_many(
        [mask], tmp_path / "out", seeds=range(6), on_slide=change, model=str(model), **settings
    )
    assert [entry.status for entry in entries] == ["done"] * 6
    first, last = entries[0], entries[-1]
    assert first.mask_sha256 != last.mask_sha256 and first.model_sha256 != last.model_sha256
    wsigen.render(mask, tmp_path / "last.svs", seed=5, model=str(model), **settings)
    assert np.array_equal(level_pixels(tmp_path / "last.svs"), level_pixels(tmp_path / "out" / last.slide))


def test_names_follow_from_mask_seed_and_style_and_must_differ():
    config = ModelConfig.preset("tiny")
    entries = list_slides(["x/a.tif", "b.tif"], [3], ["all"], config)
    assert [entry.slide for entry in entries] == ["a_seed3_violet.svs", "b_seed3_violet.svs"]
    with pytest.raises(SettingsError, match="twice"):
        list_slides(["x/a.tif", "y/a.tif"], [3], [], config)
