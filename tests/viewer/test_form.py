"""What a page asks for follows from the model's conditions, and what it sends is checked before anything is painted."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from served import eventually, serving

from wsigen.conditions import registry
from wsigen.conditions.contract import Condition, Field, TensorSpec
from wsigen.config import RenderSettings
from wsigen.errors import SettingsError
from wsigen.models.config import ModelConfig
from wsigen.networks.nasdm import NasdmModel
from wsigen.viewer.form import Form
from wsigen.viewer.scene import SceneSettings

ORGANS = ("colon", "lung")
TINY = ModelConfig.preset("tiny")
CONFIG = replace(TINY, name="organs", conditions=("stain", "organ", "age", "mask", "tissue", "context"))


class Organ(Condition):
    name = "organ"

    @property
    def specs(self):
        return (TensorSpec("organ", "vector", len(ORGANS)),)

    def resolve(self, setting):
        if setting not in (None, *ORGANS):
            raise SettingsError(f"organ {setting!r}: choose one of {', '.join(ORGANS)}")
        return setting

    def draw(self, draft, settings, groups):
        """It is never trained here."""

    def form(self):
        return Field("organ", "choice", ORGANS)

    def of_slide(self, value, device, dtype):
        return {"organ": torch.tensor([[organ == value for organ in ORGANS]], device=device, dtype=dtype)}


class Age(Condition):
    name = "age"

    @property
    def specs(self):
        return (TensorSpec("age", "vector", 1),)

    def draw(self, draft, settings, groups):
        """It is never trained here."""

    def form(self):
        return Field("age", "number", default="50", least=0, most=120)

    def of_slide(self, value, device, dtype):
        return {"age": torch.tensor([[float(value or 50) / 100]], device=device, dtype=dtype)}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    registry._class_of.cache_clear()
    monkeypatch.setitem(registry.CONDITIONS, "organ", f"{__name__}:Organ")
    monkeypatch.setitem(registry.CONDITIONS, "age", f"{__name__}:Age")
    yield
    registry._class_of.cache_clear()


@pytest.fixture
def served(demo_mask, tmp_path):
    """A model that takes an organ and an age, behind the server."""
    torch.manual_seed(0)
    network = NasdmModel(CONFIG)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(tmp_path / "organs")
    mask = shutil.copy(demo_mask, tmp_path / "mask.tif")
    settings = RenderSettings(model=str(tmp_path / "organs"), device="cpu", conditions={"organ": "colon"}, seed=4)
    with serving(SceneSettings(tmp_path / mask, render=settings, lossless=True)) as served:
        yield served


def form():
    return Form(CONFIG, TINY.style())


def test_the_form_has_a_field_for_each_condition_that_asks():
    described = json.loads(json.dumps(form().describe()))
    assert list(described["conditions"]) == ["stain", "organ", "age"]
    assert (
        described["conditions"]["stain"]["choices"] == ["violet"] == list(described["conditions"]["stain"]["colours"])
    )
    assert described["conditions"]["organ"]["choices"] == [*ORGANS]
    assert described["steps"]["default"] == "2" and described["steps"]["most"] == 1000
    plain = Form(replace(TINY, conditions=("mask", "tissue")), TINY.style())
    assert plain.describe()["conditions"] == {}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 0.5}, "seed: must be a whole number from 0 to"),
        ({"steps": 0}, "steps: must be a whole number from 1 to 1000"),
        ({"conditions": {"organ": "liver"}}, "organ: must be one of colon, lung"),
        ({"conditions": {"organ": 1}}, "organ: must be one of"),
        ({"conditions": {"age": 121}}, "age: must be a number from 0 to 120"),
        ({"conditions": {"age": float("nan")}}, "age: must be a number"),
        ({"conditions": {"age": 10**400}}, "age: must be a number"),
        ({"conditions": {"age": "old"}}, "age: must be a number"),
        ({"conditions": {"mask": ""}}, "conditions: must be an object with stain, organ, age"),
    ],
)
def test_answers_that_no_field_allows_are_refused(changed, said):
    with pytest.raises(SettingsError, match=said) as caught:
        form().read({"seed": 1, "steps": 2, "conditions": {}, **changed})
    assert "\n" not in str(caught.value)


def test_answers_become_settings():
    first = RenderSettings(model="m", conditions={"organ": "colon", "other": "kept"})
    answers = form().read({"seed": 1, "steps": 3, "conditions": {"stain": "violet", "organ": "", "age": 30.5}})
    settings = form().settings(first, answers)
    assert settings == replace(first, seed=1, steps=3, style=TINY.style(), conditions={"other": "kept", "age": 30.5})
    assert form().shown(settings, TINY.style()) == {"stain": "violet", "organ": "", "age": 30.5}


def test_what_is_not_sent_stays():
    before = RenderSettings(model="m", seed=7, steps=3, style="violet", conditions={"organ": "colon"})
    assert form().settings(before, form().read({"seed": 8})) == replace(before, seed=8)
    told = form().settings(before, form().read({"conditions": {"age": 20}}))
    assert told == replace(before, conditions={"organ": "colon", "age": 20})


def test_a_measured_stain_can_be_kept(demo_mask, tiny_model, tmp_path):
    """A page sends the name of the stain that it shows."""
    Image.new("RGB", (128, 128), (150, 90, 160)).save(tmp_path / "stain.png")
    mask = shutil.copy(demo_mask, tmp_path / "mask.tif")
    settings = RenderSettings(model=str(tiny_model), device="cpu", style=str(tmp_path / "stain.png"))
    with serving(SceneSettings(tmp_path / mask, render=settings)) as served:
        vector = served.scene.live.view.plan.spec.style.vector
        with served.events() as events:
            told = {"stain": events.next("status")["conditions"]["stain"]}
            assert served.post("/api/settings", {"seed": 5, "conditions": told})[0] == 200
            while events.next("status")["seed"] != 5:
                pass
        assert served.scene.live.view.plan.spec.style.vector == vector


def test_another_organ_is_painted_and_saved(served, tmp_path):
    live = served.scene.live
    with served.events() as events:
        status = events.next("status")
        assert status["conditions"] == {"stain": "violet", "organ": "colon", "age": 50}
        look = {"session": events.session, "x": 200, "y": 150, "width": 50, "height": 50}
        served.post("/api/look", look)
        eventually(lambda: live.view.slide and live.idle() and live.view.slide.painter.painted)
        colon = live.tile(0, 0, 0)[0][150:200, 200:250]
        chosen = {"seed": 4, "steps": 2, "conditions": {"stain": "violet", "organ": "lung", "age": 70}}
        assert served.post("/api/settings", chosen)[0] == 200
        while events.next("status")["conditions"]["organ"] != "lung":
            pass
        eventually(lambda: live.view.slide and live.idle() and live.view.slide.painter.painted)
        assert not np.array_equal(live.tile(0, 0, 0)[0][150:200, 200:250], colon)
        assert served.post("/api/settings", {**chosen, "conditions": {"organ": "liver"}})[0] == 400
        assert served.post("/api/save", {})[0] == 200
        eventually(lambda: not served.scene.saving.running)
    assert served.scene.saving.status["state"] == "done", served.scene.saving.status
    record = json.loads((tmp_path / "mask-violet-lung-70-seed4.json").read_text())
    assert "lung" in json.dumps(record) and "colon" not in json.dumps(record)


def test_the_page_asks_for_them(served, chromium):
    from selenium.webdriver.support.ui import Select

    chromium.get(served.address)
    eventually(lambda: chromium.find_elements("id", "condition-organ"), what="the form is there")
    organ, age = (chromium.find_element("id", f"condition-{name}") for name in ("organ", "age"))
    eventually(lambda: organ.get_property("value") == "colon" and age.get_property("value") == "50")
    assert [option.text for option in Select(organ).options] == ["not told", "colon", "lung"]
    assert [one.text for one in chromium.find_elements("css selector", "#condition-stain button.on")] == ["violet"]
    live = served.scene.live
    Select(organ).select_by_visible_text("lung")
    eventually(lambda: dict(live.view.plan.spec.conditions) == {"organ": "lung"})
    chromium.execute_script("const age = arguments[0]; age.value = 33; age.dispatchEvent(new Event('change'))", age)
    eventually(lambda: dict(live.view.plan.spec.conditions) == {"organ": "lung", "age": 33})
    Select(organ).select_by_visible_text("not told")
    eventually(lambda: dict(live.view.plan.spec.conditions) == {"age": 33})
    eventually(lambda: organ.get_property("value") == "" and age.get_property("value") == "33")
    assert live.view.plan.spec.style.name == "violet"
    errors = [entry for entry in chromium.get_log("browser") if entry["level"] != "INFO"]
    chromium.get("about:blank")
    assert not errors
