"""A model's configuration: read back equal, refused by name, and older files are read."""

import json
from dataclasses import replace

import pytest

from wsigen.errors import ModelError
from wsigen.models.config import PRESETS, ModelConfig, UNetConfig
from wsigen.models.registry import load_config, shipped_models
from wsigen.models.stain import StainStyle, StyleRange
from wsigen.models.stain_response import StainResponse

TINY = ModelConfig.preset("tiny")


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_reads_back_equal(name):
    config = replace(
        ModelConfig.preset(name),
        style_range=StyleRange(mean=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), clamp=2.0),
        styles=(StainStyle("pale", glass_rgb=(250, 249, 248)), StainStyle("dark", description="ÜÖ")),
        default_style="pale",
    )
    assert ModelConfig.from_json(config.to_json()) == config


def test_a_stain_response_reads_back_equal_and_a_model_without_one_has_none():
    rows = tuple((0.1, *(0.5 if column == row else 0.0 for column in range(6))) for row in range(6))
    config = replace(TINY, stain_response=StainResponse(rows))
    assert ModelConfig.from_json(config.to_json()) == config
    data = json.loads(TINY.to_json())
    assert data.pop("stain_response") is None
    assert ModelConfig.from_json(json.dumps(data)) == TINY


@pytest.mark.parametrize("rows", [[], [[1.0] * 7] * 5, [[1.0] * 8] * 6, [[1.0] * 7] * 5 + [[1.0] * 28], "rows"])
def test_a_stain_response_of_another_shape_is_refused_by_name(rows):
    text = json.dumps({**json.loads(TINY.to_json()), "stain_response": {"rows": rows}})
    with pytest.raises(ModelError, match=r"somewhere\.json is not a model configuration"):
        ModelConfig.from_json(text, "somewhere.json")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", json.dumps({**json.loads(TINY.to_json()), "colour_of_the_bikeshed": 1})]
)
def test_what_is_no_configuration_is_refused_by_name(text):
    with pytest.raises(ModelError, match=r"somewhere\.json is not a model configuration"):
        ModelConfig.from_json(text, "somewhere.json")


def test_a_configuration_of_before_final_steps_samples_evenly():
    data = json.loads(TINY.to_json())
    del data["final_step"]
    assert ModelConfig.from_json(json.dumps(data)) == TINY


@pytest.mark.parametrize("final_step", [0, -1, 1.5, "half"])
def test_a_final_step_out_of_range_is_refused_by_name(final_step):
    text = json.dumps({**json.loads(TINY.to_json()), "final_step": final_step})
    with pytest.raises(ModelError, match=r"somewhere\.json.*final_step|somewhere\.json.*'str'"):
        ModelConfig.from_json(text, "somewhere.json")


@pytest.mark.parametrize("response", [[1.0], [1.0, -1.0, 1.0, 1.0, 1.0, 1.0], [0, 1, 1, 1, 1, 1]])
def test_a_response_that_fits_no_class_table_is_refused_by_name(response):
    text = json.dumps({**json.loads(TINY.to_json()), "response": response})
    with pytest.raises(ModelError, match="response"):
        ModelConfig.from_json(text)


def test_an_unknown_preset_or_style_names_those_there_are():
    with pytest.raises(ModelError, match="nasdm-paper"):
        ModelConfig.preset("nasdm-papers")
    with pytest.raises(ModelError, match=r"'green'.*violet"):
        TINY.style("green")
    assert TINY.style().name == "violet"


@pytest.mark.parametrize("scales", [(1.5,), (2.0, 1.0), (0.0, 1.0), (1.0, float("inf")), (1.0, 1.5, 2.0)])
def test_learned_scales_are_a_range(scales):
    with pytest.raises(ValueError, match="guided_scales"):
        replace(TINY, guided_scales=scales)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"channels": (64, 100)}, "channels 100: must be a multiple of norm_groups"),
        ({"channels": (64, 96), "head_channels": 64, "attention_levels": (1,)}, "channels 96: must be a multiple"),
    ],
)
def test_widths_that_do_not_divide_are_named(shape, words):
    with pytest.raises(ModelError, match=words):
        UNetConfig(**shape)


# --- conditions and architectures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_models_name_conditions_whether_or_not_their_files_do(name):
    config = load_config(name)
    slide, mask = ("stain", "mask", "tissue", "context"), ("density", "context")
    assert (config.architecture, config.conditions) == ("nasdm-unet", mask if config.paints == "mask" else slide)
    assert ModelConfig.from_json(config.to_json()) == config


def older(config, **unet):
    """The text of a configuration of before conditions had names."""
    data = json.loads(config.to_json())
    for key in ("architecture", "network", "conditions"):
        del data[key]
    return json.dumps({**data, "unet": {**data["unet"], **unet}})


@pytest.mark.parametrize(
    ("preset", "unet", "conditions"),
    [
        ("tiny", {"context": True, "style_dim": 6}, ("stain", "mask", "tissue", "context")),
        ("tiny", {}, ("stain", "mask", "tissue", "context")),
        ("tiny-mask", {"context": True, "style_dim": 0}, ("density", "context")),
        ("nasdm-paper", {"context": False, "style_dim": 0}, ("mask", "tissue")),
    ],
)
def test_an_older_configuration_takes_what_its_network_says(preset, unet, conditions):
    config = ModelConfig.preset(preset)
    assert ModelConfig.from_json(older(config, **unet)) == replace(config, conditions=conditions)


def test_conditions_and_options_of_another_architecture_read_back_equal():
    options = (("depth", 4), ("widths", (64, 128)), ("norm", "layer"))
    config = replace(TINY, architecture="other", network=options, conditions=("mask", "organ", "context"))
    again = ModelConfig.from_json(config.to_json())
    assert again == config and again.conditions == ("mask", "organ", "context") and hash(again.network)
    assert config.shape != replace(config, conditions=("mask", "context")).shape
    assert config.shape != replace(config, network=(("depth", 5),)).shape
    assert json.loads(json.dumps(config.shape)) == json.loads(json.dumps(again.shape))


@pytest.mark.parametrize("conditions", [3, None, {"mask": 1}, "mask", ["mask", 1]])
def test_conditions_that_are_no_list_are_refused_by_name(conditions):
    text = json.dumps({**json.loads(TINY.to_json()), "conditions": conditions})
    with pytest.raises(ModelError, match=r"somewhere\.json is not a model configuration"):
        ModelConfig.from_json(text, "somewhere.json")


def test_a_recipe_changes_what_differs_from_an_architecture():
    tiny = ModelConfig.preset("tiny")
    changed = tiny.changed({"conditions": ["mask", "tissue"], "unet": {"spade_hidden": 8}, "window": 32})
    assert (changed.conditions, changed.unet.spade_hidden, changed.window) == (("mask", "tissue"), 8, 32)
    assert changed.unet.channels == tiny.unet.channels and tiny.changed({}) == tiny


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"colour": 1}, "model.colour: unknown"),
        ({"unet": {"width": 3}}, "width"),
        ({"conditions": "mask"}, "conditions"),
    ],
)
def test_a_change_that_is_none_is_refused_in_one_line(changes, said):
    with pytest.raises(ModelError, match=said) as refused:
        ModelConfig.preset("tiny").changed(changes)
    assert "\n" not in str(refused.value)
