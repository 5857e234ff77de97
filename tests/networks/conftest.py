"""Networks whose every weight counts: a fresh one answers zero everywhere, and hides what its inputs do."""

from collections.abc import Callable, Iterator

import pytest
import torch

from wsigen.models.config import ModelConfig
from wsigen.networks.nasdm import NasdmModel


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lively() -> Callable[[ModelConfig], NasdmModel]:
    """Build a model in which no parameter is zero."""

    def build(config: ModelConfig) -> NasdmModel:
        torch.manual_seed(0)
        model = NasdmModel(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        return model

    return build
