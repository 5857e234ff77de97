"""Scenes with a tiny network of random weights, and Chromium where there is one."""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
import torch

import wsigen
from wsigen.config import RenderSettings
from wsigen.masks.demo.mask import write_demo_mask
from wsigen.models.config import ModelConfig
from wsigen.networks.nasdm import NasdmModel
from wsigen.painting.canvas import Canvas

WIDTH, HEIGHT = 600, 500
SEED = 4


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    network = NasdmModel(ModelConfig.preset("tiny"))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def demo_mask(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("masks") / "mask.tif"
    write_demo_mask(path, WIDTH, HEIGHT, seed=3)
    return path


@pytest.fixture
def own_mask(demo_mask, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copy(demo_mask, tmp_path / "mask.tif"))


@pytest.fixture(scope="session")
def rendered(tiny_model, demo_mask, tmp_path_factory):
    """A finished slide, and its level 0 before JPEG."""
    out = tmp_path_factory.mktemp("rendered") / "s.svs"
    wsigen.render(demo_mask, out, model=str(tiny_model), device="cpu", seed=SEED, keep_canvas=True)
    return out, Canvas.open(out.with_name("s.svs.canvas")).read_region(0, 0, WIDTH, HEIGHT, require=True)[0]


@pytest.fixture(scope="session")
def painting(tiny_model) -> RenderSettings:
    return RenderSettings(model=str(tiny_model), device="cpu", seed=SEED)


def no_browser(reason: str) -> NoReturn:
    """Skip; fail where WSIGEN_TEST_BROWSER says that there is a browser."""
    if os.environ.get("WSIGEN_TEST_BROWSER"):
        pytest.fail(f"WSIGEN_TEST_BROWSER is set, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium, driven by its own driver."""
    if importlib.util.find_spec("selenium") is None:
        no_browser("selenium is not installed")
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException

    binary, driver = (
        next((path for name in names if (path := shutil.which(name))), None)
        for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver", "chromium-driver"))
    )
    if not binary or not driver:
        no_browser("no Chromium with its driver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    try:
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    except WebDriverException as error:
        no_browser(f"Chromium does not start here: {error.msg}")
    browser.set_window_size(1440, 1000)
    browser.set_script_timeout(30)
    yield browser
    browser.quit()
