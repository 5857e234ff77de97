"""A tiny network with random weights, and a mask of demo tissue."""

from pathlib import Path

import pytest
import torch

from wsigen.masks.demo.mask import write_demo_mask
from wsigen.models.config import ModelConfig
from wsigen.networks.nasdm import NasdmModel


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    network = NasdmModel(ModelConfig.preset("tiny"))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def demo_mask_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("masks") / "mask.tif"
    write_demo_mask(path, 600, 500, seed=3)
    return path
