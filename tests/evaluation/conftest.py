"""Small real things to measure: a training folder of drawn nuclei, and networks trained on it for seconds."""

from dataclasses import replace

import numpy as np
import pytest
import pyvips
import torch
from drawn import picture

from wsigen.training.loop import train
from wsigen.training.prepare import prepare
from wsigen.training.settings import Phase, TrainSettings

SHORT = TrainSettings(
    architecture="tiny",
    phases=(Phase((64,), (8,), 2),),
    warmup_steps=1,
    decay_steps=1,
    log_every=100,
    evaluate_every=1000,
    checkpoint_every=1000,
)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prepared(root, names, holdout):
    for seed, name in enumerate(names):
        for part, array in zip(("images", "labels", "instances"), picture(seed)):
            (root / "own" / part).mkdir(parents=True, exist_ok=True)
            image = pyvips.Image.new_from_array(array)
            if array.dtype == np.uint16:
                image = image.copy(interpretation="grey16")
            image.write_to_file(str(root / "own" / part / f"{name}.png"))
    prepare({"folder": root / "own"}, root / "prepared", holdout=holdout)
    return root / "prepared"


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("data"), "abcdefg", ["e", "f", "g"])


@pytest.fixture(scope="session")
def little_data(tmp_path_factory):
    """One picture to learn from, one held out."""
    return prepared(tmp_path_factory.mktemp("little"), "ab", ["b"])


def trained(data, out, **changes):
    train(replace(SHORT, **changes), data, out, device="cpu", report=lambda _: None)
    return out / "model"


@pytest.fixture(scope="session")
def painter(data, tmp_path_factory):
    return trained(data, tmp_path_factory.mktemp("painter"), styles={"ours": "a"})


@pytest.fixture(scope="session")
def features(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("features")
    return trained(data, out, task="features", architecture="features-tiny", phases=(Phase((64,), (8,), 10),))


@pytest.fixture(scope="session")
def segmenter(data, tmp_path_factory):
    """A network that does find these nuclei."""
    return trained(
        data,
        tmp_path_factory.mktemp("segmenter"),
        task="segment",
        architecture="segmenter-tiny",
        phases=(Phase((64,), (8,), 60),),
        learning_rate=5e-3,
        ema_decay=0.9,
        decay_steps=20,
    )
