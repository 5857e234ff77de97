"""A condition that this package does not have, a vector of the organ: it is trained, saved and painted with."""

from dataclasses import replace

import numpy as np
import pytest
import pyvips
import torch

from wsigen.conditions import registry
from wsigen.conditions.contract import Condition, ConditionBatch, Field, TensorSpec
from wsigen.errors import DataError, SettingsError
from wsigen.evaluation.asked_stain.painting import Bench
from wsigen.evaluation.asked_stain.styles import read_masks
from wsigen.evaluation.material import PaintOptions
from wsigen.models.config import PRESETS, ModelConfig
from wsigen.networks.denoiser import Denoiser
from wsigen.painting.painter import Painter
from wsigen.painting.slide_worker import fixed_threads
from wsigen.painting.spec import PaintSpec
from wsigen.system.devices import choose_device
from wsigen.training.data import manifest as manifests
from wsigen.training.data.manifest import TrainingImage
from wsigen.training.loop import train
from wsigen.training.patches import PatchBank
from wsigen.training.prepare import prepare
from wsigen.training.settings import Phase, TrainSettings

ORGANS = ("colon", "breast", "lung")
TINY = ModelConfig.preset("tiny")
CONFIG = replace(TINY, name="organs", conditions=("stain", "organ", "mask", "tissue", "context"))
SETTINGS = TrainSettings(architecture="organs", phases=(Phase((32,), (4,), 6),), warmup_steps=1, decay_steps=1)
SIDE = 160


class Organ(Condition):
    """One number for each organ: 1 for the slide's."""

    name = "organ"

    @property
    def specs(self):
        return (TensorSpec("organ", "vector", len(ORGANS)),)

    def resolve(self, setting):
        if setting not in (None, *ORGANS):
            raise SettingsError(f"organ {setting!r}: choose one of {', '.join(ORGANS)}")
        return setting or ORGANS[0]

    def form(self):
        return Field("organ", "choice", ORGANS, ORGANS[0])

    def of_slide(self, value, device, dtype):
        told = torch.zeros(1, len(ORGANS), device=device, dtype=dtype)
        told[0, ORGANS.index(value)] = 1
        return {"organ": told}

    def of_groups(self, groups):
        return torch.cat([self.of_slide(fact["organ"], groups.device, torch.float32)["organ"] for fact in groups.facts])

    def draw(self, draft, settings, groups):
        kept = draft.rand(len(draft))[:, None] >= settings.conditions.get("organ", {}).get("drop", 0.0)
        draft.tensors["organ"] = groups[draft.crops.group] * kept


@pytest.fixture(autouse=True)
def organ(monkeypatch):
    """The condition in the registry, and an architecture that takes it."""
    registry._class_of.cache_clear()
    monkeypatch.setattr(registry, "CONDITIONS", {**registry.CONDITIONS, "organ": f"{__name__}:Organ"})
    monkeypatch.setitem(PRESETS, "organs", CONFIG)
    yield
    registry._class_of.cache_clear()


def lively():
    """A model in which no parameter is zero."""
    torch.manual_seed(0)
    model = Denoiser.from_config(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A training folder whose manifest names the organ of each picture: two to learn from, one held out."""
    root = tmp_path_factory.mktemp("data")
    for seed, name in enumerate("abc"):
        rgb = np.random.default_rng(seed).integers(90, 180, (SIDE, SIDE, 3)).astype(np.uint8)
        labels = np.zeros((SIDE, SIDE), np.uint8)
        labels[20:40, 20:40] = labels[80:90, 100:110] = 2
        for part, array in (("images", rgb), ("labels", labels)):
            (root / "own" / part).mkdir(parents=True, exist_ok=True)
            pyvips.Image.new_from_array(array).write_to_file(str(root / "own" / part / f"{name}.png"))
    prepare({"folder": root / "own"}, root / "prepared", holdout=["c"])
    written = manifests.load(root / "prepared")
    organ_of = dict(zip("abc", ORGANS, strict=True))
    images = tuple(replace(image, facts={"organ": organ_of[image.group]}) for image in written.images)
    manifests.save(replace(written, images=images), root / "prepared")
    return root / "prepared"


def test_a_vector_of_the_slide_reaches_the_network():
    model = lively()
    assert [spec.name for spec in model.specs if spec.entry == "vector"] == ["stain", "organ"]
    assert list(model.unet.vector_mlps) == ["organ"] and model.unet.style_mlp is not None
    batch = model.prepare(told_of(model, "colon")), model.prepare(told_of(model, "lung"))
    x, t = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([400.0])
    colon, lung = (model.predict(prepared, x, t).mean for prepared in batch)
    assert (colon - lung).abs().max() > 1e-4
    in_groups = {id(parameter) for parameter in model.parameter_groups()["modulation"]}
    assert all(id(parameter) in in_groups for parameter in model.unet.vector_mlps.parameters())


def told_of(model, organ):
    told = {spec.name: torch.ones(1, spec.channels, 16, 16) for spec in model.specs if spec.entry != "vector"}
    (condition,) = [one for one in model.conditions if one.name == "organ"]
    return ConditionBatch({**told, "stain": torch.zeros(1, 6), **condition.of_slide(organ, "cpu", torch.float32)})


def test_a_fresh_network_paints_alike_whatever_the_vector():
    """What enters later may not disturb what was learned before."""
    model = Denoiser.from_config(CONFIG)
    emb = [model.unet.embedding(torch.tensor([3.0]), told_of(model, name), torch.float32).detach() for name in ORGANS]
    assert torch.equal(emb[0], emb[1]) and torch.equal(emb[0], emb[2])


def test_facts_of_the_manifest_are_read_by_group(data):
    manifest = manifests.load(data)
    assert {image.group: image.facts["organ"] for image in manifest.images} == dict(zip("abc", ORGANS, strict=True))
    bank = PatchBank(data, manifest, "train", SETTINGS, torch.device("cpu"))
    assert [dict(facts) for facts in bank.facts] == [{"organ": ORGANS["abc".index(group)]} for group in bank.groups]
    known = Organ(CONFIG).of_groups(bank)
    assert known.shape == (2, 3) and known.argmax(1).tolist() == ["abc".index(group) for group in bank.groups]


def test_it_is_trained_and_read_back_and_its_weights_move(data, tmp_path):
    changes = {"conditions": list(CONFIG.conditions)}
    rates = {"learning_rate": 1e-2, "modulation_rate": 1.0}
    settings = replace(SETTINGS, architecture="tiny", model=changes, conditions={"organ": {"drop": 0.25}}, **rates)
    result = train(settings, data, tmp_path, device="cpu", report=lambda _: None)
    assert result.step == 6
    model = Denoiser.from_pretrained(tmp_path / "model")
    assert model.config.conditions == CONFIG.conditions
    assert model.unet.vector_mlps["organ"][2].weight.any(), "zero before training"


def test_it_is_painted_with_through_values(data):
    model = lively().to(memory_format=torch.channels_last)

    def painted(**values):
        with fixed_threads():
            painter = Painter(model, CONFIG.style(), num_inference_steps=2, batch_size=2, values=values)
            return painter.paint([painter.any_window(64)])

    colon, lung = painted(organ="colon"), painted(organ="lung")
    assert np.array_equal(colon, painted(organ="colon")) and not np.array_equal(colon, lung)


def test_a_spec_keeps_values_of_the_slide():
    spec = PaintSpec("mask.tif", "organs", CONFIG.style(), 0.5, conditions=(("organ", "lung"),))
    assert PaintSpec.from_json(spec.to_json()) == spec


def test_a_setting_that_is_not_allowed_is_named():
    with pytest.raises(SettingsError, match="organ 'liver': choose one of colon, breast, lung"):
        Organ(CONFIG).resolve("liver")
    assert Organ(CONFIG).resolve(None) == "colon"


def test_the_stains_of_a_model_that_takes_it_are_measured(data):
    masks, _ = read_masks(data, 6, 32, torch.device("cpu"))
    drawn = [masks.groups.facts[group]["organ"] for group in masks.crops.group.tolist()]
    assert drawn == [ORGANS["abc".index(name)] for name in masks.sources] and set(drawn) == set(ORGANS)
    bench = Bench(lively(), masks, PaintOptions(), choose_device("cpu"), lambda *_: None)
    assert bench.paint(np.zeros(6), np.arange(3)).shape == (3, 32, 32, 3)


def test_facts_of_all_pictures_of_a_group_count():
    image = TrainingImage("p", "own", "g", "train", 8, 8, "manual")
    pictures = [replace(image, facts=facts) for facts in ({"organ": "lung"}, {}, {"scanner": "x", "organ": "lung"})]
    assert manifests.facts_of_groups("data", pictures) == {"g": {"organ": "lung", "scanner": "x"}}


def test_facts_of_a_group_that_contradict_each_other_are_refused(data):
    manifest = manifests.load(data)
    first, other = manifest.images[0], manifest.images[1]
    images = (first, replace(other, group=first.group, split=first.split))
    with pytest.raises(DataError, match=r"manifest.json: group 'a' has organ 'colon' and 'breast'") as caught:
        PatchBank(data, replace(manifest, images=images), "train", SETTINGS, torch.device("cpu"))
    assert "\n" not in str(caught.value)
