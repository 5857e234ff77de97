"""A small slide: a mask with nuclei, tissue and glass on disk, and a tiny network with random weights."""

import numpy as np
import pytest
import torch

from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask
from wsigen.models.config import ModelConfig
from wsigen.networks.nasdm import NasdmModel
from wsigen.painting.spec import PaintSpec

WIDTH, HEIGHT = 330, 260


def small_mask() -> MaskWindow:
    """Round nuclei of all classes in tissue; glass on the right, and a hole of it."""
    rng = np.random.default_rng(3)
    classes, instances = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint32)
    tissue = np.ones((HEIGHT, WIDTH), np.uint8)
    tissue[:, 210:] = 0
    tissue[60:110, 40:100] = 0
    tissue[200:230, :60] = 255
    yy, xx = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(1, 120):
        x, y, radius = rng.integers(0, 205), rng.integers(0, HEIGHT), rng.integers(3, 7)
        nucleus = ((xx - x) ** 2 + (yy - y) ** 2 <= radius**2) & (tissue == 1)
        classes[nucleus], instances[nucleus] = number % 6 + 1, number
    return MaskWindow(classes, instances, tissue)


@pytest.fixture(scope="session")
def mask_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("mask") / "mask.tif"
    write_slide_mask(path, WIDTH, HEIGHT, 0.5, [small_mask()], instances=True, tissue=True)
    return path


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    torch.manual_seed(11)
    model = NasdmModel(ModelConfig.preset("tiny"))
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # layers that begin at zero would hide what depends on mask, context and style
                parameter.normal_(0, 0.1)
    path = tmp_path_factory.mktemp("model") / "tiny"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def spec(mask_path, model_path):
    style = ModelConfig.preset("tiny").style()
    sizes = {"window": 64, "overlap": 8, "blend": 3, "batch_size": 4, "num_inference_steps": 2}
    return PaintSpec(source=str(mask_path), model=str(model_path), style=style, mpp=0.5, seed=7, **sizes)
