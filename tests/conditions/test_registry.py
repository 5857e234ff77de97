"""Conditions and architectures by name: errors name those that there are, and installed packages bring others."""

import sys
from dataclasses import replace

import pytest

from wsigen.conditions.contract import Condition, TensorSpec
from wsigen.conditions.registry import CONDITIONS, conditions_of, source_of, specs_of
from wsigen.errors import ModelError
from wsigen.models.config import ModelConfig
from wsigen.networks.denoiser import ARCHITECTURES, Denoiser

TINY = ModelConfig.preset("tiny")
MODULE = '''
from torch import nn

from wsigen.conditions.contract import Condition, TensorSpec
from wsigen.networks.denoiser import Denoiser, Prediction


class Scanner(Condition):
    name = "test-scanner"

    @property
    def specs(self):
        return (TensorSpec("test-scanner", "vector", 2),)

    def draw(self, draft, settings, groups):
        draft.tensors["test-scanner"] = draft.randn(len(draft), 2)


class Plain(Denoiser):
    """A network of one convolution."""

    def __init__(self, config):
        super().__init__(config)
        self.conv = nn.Conv2d(3, 3, 1)

    size_multiple = 4

    def predict(self, prepared, x, t):
        return Prediction(self.conv(x) + 0 * prepared["test-scanner"].sum())
'''
ENTRY_POINTS = """[wsigen.conditions]
test-scanner = test_scanner_package:Scanner

[wsigen.denoisers]
test-plain = test_scanner_package:Plain
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that brings a condition and an architecture."""
    (tmp_path / "test_scanner_package.py").write_text(MODULE)
    info = tmp_path / "test_scanner_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: test-scanner-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield replace(TINY, architecture="test-plain", conditions=(*TINY.conditions, "test-scanner"))
    sys.modules.pop("test_scanner_package", None)


def one_line(function, *words):
    with pytest.raises(ModelError) as caught:
        function()
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said


def test_an_unknown_condition_is_refused_with_those_that_there_are():
    config = replace(TINY, conditions=("stain", "no-such-condition"))
    one_line(lambda: conditions_of(config), "'no-such-condition'", *CONDITIONS, "'wsigen.conditions'")
    one_line(lambda: Denoiser.from_config(config), "'no-such-condition'")


def test_an_unknown_architecture_is_refused_with_those_that_there_are(tmp_path):
    config = replace(TINY, architecture="no-such-network")
    one_line(lambda: Denoiser.from_config(config), "'no-such-network'", *ARCHITECTURES, "'wsigen.denoisers'")
    (tmp_path / "config.json").write_text(config.to_json())
    one_line(lambda: Denoiser.from_pretrained(tmp_path), "'no-such-network'")


def test_what_another_package_brings_is_among_those_that_there_are(installed):
    unknown = replace(installed, conditions=("no-such-condition",)), replace(installed, architecture="no-such-network")
    one_line(lambda: conditions_of(unknown[0]), *CONDITIONS, "test-scanner")
    one_line(lambda: Denoiser.from_config(unknown[1]), *ARCHITECTURES, "test-plain")


def test_a_package_that_is_installed_brings_a_condition_and_an_architecture(installed, tmp_path):
    assert "test_scanner_package" not in sys.modules
    assert [condition.name for condition in conditions_of(installed)] == [*TINY.conditions, "test-scanner"]
    assert "test-scanner" in [spec.name for spec in specs_of(installed)]
    model = Denoiser.from_config(installed)
    assert type(model).__module__ == "test_scanner_package"
    model.save_pretrained(tmp_path / "model")
    loaded = Denoiser.from_pretrained(tmp_path / "model")
    assert type(loaded) is type(model) and loaded.config == installed
    assert (loaded.conv.weight == model.conv.weight).all()


def test_a_model_of_another_class_is_refused(installed, tmp_path):
    from wsigen.networks.nasdm import NasdmModel

    Denoiser.from_config(installed).save_pretrained(tmp_path / "model")
    one_line(lambda: NasdmModel.from_pretrained(tmp_path / "model"), "'test-plain'", "NasdmModel")


def test_a_model_is_painted_from_one_source():
    assert source_of(TINY) == "mask" and source_of(ModelConfig.preset("tiny-mask")) == "density"
    one_line(lambda: source_of(replace(TINY, conditions=("mask", "density"))), "'tiny'", "['density', 'mask']")
    one_line(lambda: source_of(replace(TINY, conditions=("stain",))), "'tiny'", "nothing")


class Dotted(Condition):
    """A condition whose tensor has a name that no weight can have."""

    name = "dotted"

    @property
    def specs(self):
        return (TensorSpec("dotted.vector", "vector", 2),)

    def draw(self, draft, settings, groups):
        """It is never asked."""


@pytest.mark.parametrize("name", ["or.gan", "or=gan", "", "or gan"])
def test_a_name_that_no_weight_or_setting_can_have_is_refused(name):
    one_line(lambda: conditions_of(replace(TINY, conditions=("stain", name))), repr(name), "letters")


def test_a_tensor_that_no_weight_can_be_called_after_is_refused(monkeypatch):
    monkeypatch.setitem(CONDITIONS, "dotted", f"{__name__}:Dotted")
    one_line(lambda: specs_of(replace(TINY, conditions=("stain", "dotted"))), "'dotted.vector'", "letters")
