"""A plan says what a render will need and touches nothing; what does not fit is refused with the option that does."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from wsigen.cli.main import main
from wsigen.config import RenderSettings
from wsigen.errors import SettingsError
from wsigen.models.config import ModelConfig
from wsigen.models.stain import StainStyle
from wsigen.models.stain_response import StainResponse
from wsigen.painting.canvas import Canvas
from wsigen.painting.cost import COSTS, _Peak, batch_cost, trace_shipped
from wsigen.painting.estimate import refuse_what_does_not_fit
from wsigen.rendering.job import render
from wsigen.rendering.plan import plan_render

EXAMPLE = Path(__file__).parents[2] / "examples" / "slide_masks.tif"


@pytest.fixture(scope="module")
def plan(tiny_model, demo_mask_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("planned") / "s.svs"
    return plan_render(demo_mask_path, out, RenderSettings(model=str(tiny_model), device="cpu"))


def test_plan_prints_and_touches_nothing(tiny_model, demo_mask_path, tmp_path):
    command = ["render", str(demo_mask_path), "-o", str(tmp_path / "s.svs"), "--model", str(tiny_model), "--plan"]
    result = CliRunner().invoke(main, [*command, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    for word in ("windows: 99", "by parity", "are glass", "blocks:", "host memory", "disk:", "PFLOP", "time: about"):
        assert word in result.output
    assert list(tmp_path.iterdir()) == []


def test_the_plan_says_of_a_stain_out_of_reach_by_how_much(tiny_model, demo_mask_path, tmp_path):
    config, command = ModelConfig.load(tiny_model), ["render", str(demo_mask_path), "--plan", "--device", "cpu"]
    identity = tuple(tuple(float(column == row + 1) for column in range(7)) for row in range(6))
    tar = StainStyle("tar", (0.9, *config.styles[0].vector[1:]))
    for number, response in enumerate((None, StainResponse(identity))):
        folder = tmp_path / str(number)
        shutil.copytree(tiny_model, folder)
        mended = replace(config, stain_response=response, styles=(*config.styles, tar))
        (folder / "config.json").write_text(mended.to_json())
        plain = CliRunner().invoke(main, [*command, "--model", str(folder)])
        assert plain.exit_code == 0 and "out of this model's reach" not in plain.output, plain.output
        noted = CliRunner().invoke(main, [*command, "--model", str(folder), "--style", "tar"])
        assert "note: style tar is out of this model's reach" in noted.output
        assert "mean red of optical density about 0.395, not 0.900" in noted.output  # 2.5 deviations above the mean


def test_windows_are_blended_over_three_eighths_of_their_overlap_unless_said(tiny_model, demo_mask_path):
    for asked, overlap, blend in ((None, 8, 3), (None, 16, 6), (0, 16, 0)):
        settings = RenderSettings(model=str(tiny_model), device="cpu", overlap=overlap, blend=asked)
        plan = plan_render(demo_mask_path, None, settings)
        assert plan.grid.blend == plan.spec.blend == blend
    with pytest.raises(SettingsError, match="blend 9: must lie from 0 to 8 px for --overlap 16"):
        plan_render(demo_mask_path, None, replace(settings, blend=9))


def test_projected_windows_are_those_that_are_painted_and_little_more(plan, tiny_model, demo_mask_path):
    result = render(demo_mask_path, plan.out, model=str(tiny_model), device="cpu")
    assert result.painted <= plan.projection.painted <= 1.2 * result.painted + 4


@pytest.mark.parametrize(
    ("field", "option"),
    [("host_bytes", "--batch-size 2|a smaller --window"), ("canvas_bytes", "--canvas"), ("slide_bytes", "-o")],
)
def test_what_does_not_fit_is_refused_with_the_mend(plan, field, option):
    too_much = replace(plan.projection, **{field: 1 << 55})
    with pytest.raises(SettingsError, match=option) as caught:
        refuse_what_does_not_fit(too_much, plan.spec, plan.canvas, plan.out, workers=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match="--workers 4"):
        refuse_what_does_not_fit(
            replace(plan.projection, host_bytes=1 << 55), plan.spec, plan.canvas, plan.out, workers=8
        )


def test_costs_grow_with_what_they_depend_on():
    config = ModelConfig.preset("tiny")
    base = batch_cost(config, 64, 2, 4, 1, "float32")
    assert base.weight_bytes == sum(4 * n for n in [parameters(config)])
    double = batch_cost(config, 64, 4, 4, 1, "float32")
    assert double.operations == 2 * base.operations and 1.9 < double.work_bytes / base.work_bytes < 2.1
    guided = batch_cost(config, 64, 2, 4, 2, "float32")
    assert guided.operations == 2 * base.operations and guided.work_bytes > base.work_bytes
    assert batch_cost(config, 64, 2, 8, 1, "bfloat16").work_bytes < base.work_bytes


def test_working_out_a_cost_leaves_the_attention_of_a_slide_under_way_alone(monkeypatch):
    seen = []

    class Watched(_Peak):
        def __torch_dispatch__(self, *arguments, **keywords):
            seen.append((torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()))
            return super().__torch_dispatch__(*arguments, **keywords)

    monkeypatch.setattr("wsigen.painting.cost._Peak", Watched)
    config = ModelConfig.preset("tiny")
    assert batch_cost.__wrapped__(config, 64, 2, 4, 1, "float32") == batch_cost(config, 64, 2, 4, 1, "float32")
    assert set(seen) == {(True, True)}, "what one thread chooses there is chosen for all"


def test_guidance_that_was_learned_costs_nothing(tiny_model, demo_mask_path, tmp_path):
    learned = tmp_path / "learned"
    shutil.copytree(tiny_model, learned)
    config = replace(ModelConfig.load(learned), guided_scales=(1.0, 2.0))
    (learned / "config.json").write_text(config.to_json())
    operations = {}
    for model in (tiny_model, learned):
        for scale in (1.0, 1.5, 3.0):
            settings = RenderSettings(model=str(model), device="cpu", guidance_scale=scale)
            operations[model.name, scale] = plan_render(demo_mask_path, None, settings).projection.operations
    plain = operations[tiny_model.name, 1.0]
    assert operations[tiny_model.name, 1.5] == operations["learned", 3.0] == 2 * plain
    assert operations["learned", 1.0] == operations["learned", 1.5] == plain


def parameters(config):
    from wsigen.networks.nasdm import NasdmModel

    return NasdmModel(config).parameter_count


def test_a_rectangle_paints_only_what_it_depends_on(tiny_model, demo_mask_path, tmp_path):
    settings = {"model": str(tiny_model), "device": "cpu", "keep_canvas": True}
    whole = render(demo_mask_path, tmp_path / "whole.svs", **settings)
    part = render(demo_mask_path, tmp_path / "part.svs", rect=(210, 130, 90, 80), **settings)
    assert (part.width, part.height) == (90, 80)
    assert part.painted <= 16 < whole.painted
    everything = Canvas.open(tmp_path / "whole.svs.canvas").read_region(210, 130, 90, 80)[0]
    rgb, known = Canvas.open(tmp_path / "part.svs.canvas").read_region(210, 130, 90, 80)
    assert known.all() and np.array_equal(rgb, everything)
    for rect in ((0, 0, 601, 10), (-1, 0, 10, 10), (0, 0, 0, 5)):
        with pytest.raises(SettingsError, match="--rect"):
            plan_render(demo_mask_path, tmp_path / "x.svs", RenderSettings(model=str(tiny_model), rect=rect))


@pytest.mark.exhaustive
def test_four_workers_paint_the_same_pixels_into_a_canvas_elsewhere(tiny_model, demo_mask_path, tmp_path):
    settings = {"model": str(tiny_model), "device": "cpu", "keep_canvas": True}
    for workers in (1, 4):
        render(
            demo_mask_path, tmp_path / f"{workers}.svs", workers=workers, canvas=tmp_path / f"c{workers}", **settings
        )
    one, four = (Canvas.open(tmp_path / f"c{n}").read_region(0, 0, 600, 500, require=True)[0] for n in (1, 4))
    assert np.array_equal(one, four)


def test_listed_costs_are_those_that_are_traced():
    listed, traced = json.loads(COSTS.read_text()), trace_shipped()
    assert listed.keys() == traced.keys(), "write them anew: python -m wsigen.painting.cost"
    for name, cost in traced.items():
        assert (cost["maps"], cost["step"]) == (listed[name]["maps"], listed[name]["step"]), name
        assert cost["peak_bytes"] == pytest.approx(listed[name]["peak_bytes"], rel=0.05), name  # by torch's version


def test_planning_imports_neither_what_traces_networks_nor_clusters(tmp_path):
    """Each takes seconds of every start."""
    script = (
        "import sys; from wsigen.rendering.plan import plan_render; "
        f"plan_render({str(EXAMPLE)!r}, {str(tmp_path / 's.svs')!r}).projection; "
        "print([name for name in ('torch._dynamo', 'sympy', 'distributed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
