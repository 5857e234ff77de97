"""Model folders: configuration and weight shards, of whatever architecture."""

from dataclasses import replace

import pytest
import torch

from wsigen.errors import ModelError
from wsigen.models.config import ModelConfig
from wsigen.models.registry import weights_sha256
from wsigen.networks import denoiser
from wsigen.networks.nasdm import NasdmModel

TINY = ModelConfig.preset("tiny")


@pytest.fixture
def folder(tmp_path, lively, monkeypatch):
    """A tiny model in several shards."""
    monkeypatch.setattr(denoiser, "SHARD_BYTES", 100_000)
    lively(TINY).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def shards_of(folder):
    return sorted(folder.glob("*.safetensors"))


def test_a_saved_model_loads_bit_for_bit(folder, lively):
    saved, loaded = lively(TINY).state_dict(), NasdmModel.from_pretrained(folder)
    assert loaded.config == TINY
    assert len(shards_of(folder)) > 2
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert saved.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.state_dict().items())


def test_saving_again_leaves_no_shard_of_before(folder, lively, monkeypatch):
    before = weights_sha256(folder)
    monkeypatch.setattr(denoiser, "SHARD_BYTES", 10_000_000)
    lively(TINY).save_pretrained(folder, torch.float16)
    assert [path.name for path in shards_of(folder)] == ["weights-00001-of-00001.safetensors"]
    assert weights_sha256(folder) != before
    loaded = NasdmModel.from_pretrained(folder)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    first, want = next(loaded.parameters()), next(lively(TINY).parameters())
    assert torch.equal(first, want.half().float())


def test_a_missing_shard_is_counted(folder):
    shards = shards_of(folder)
    shards[1].unlink()
    with pytest.raises(ModelError, match=rf"holds {len(shards) - 1} of {len(shards)} weight shards"):
        NasdmModel.from_pretrained(folder)


def test_a_folder_without_weights_is_refused(folder):
    for shard in shards_of(folder):
        shard.unlink()
    with pytest.raises(ModelError, match="holds 0 of its weight shards"):
        NasdmModel.from_pretrained(folder)


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None])
def test_a_damaged_shard_is_named(folder, damage):
    shard = shards_of(folder)[1]
    shard.write_bytes(shard.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(ModelError, match=rf"{shard.name} is damaged") as caught:
        NasdmModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(folder):
    other = replace(TINY, unet=replace(TINY.unet, channels=(16, 48)))
    (folder / "config.json").write_text(other.to_json())
    with pytest.raises(ModelError, match="weights do not fit") as caught:
        NasdmModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match="no model 'nasdm-lung'"):
        NasdmModel.from_pretrained("nasdm-lung")
    with pytest.raises(ModelError, match=r"give a folder with config\.json"):
        NasdmModel.from_pretrained(tmp_path)


def test_another_final_step_is_another_model(folder):
    before = weights_sha256(folder)  # part of the record that a resumed run must agree with
    (folder / "config.json").write_text(replace(TINY, final_step=0.5).to_json())
    assert weights_sha256(folder) != before
