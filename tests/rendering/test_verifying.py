"""A slide that was painted from its record passes, any other fails."""

import json
import shutil

import pytest

import wsigen
from wsigen.errors import SettingsError, SlideError


@pytest.fixture(scope="module")
def slides(tiny_model, demo_mask_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    settings = {"model": str(tiny_model), "device": "cpu"}
    wsigen.render(demo_mask_path, folder / "a.svs", seed=1, **settings)
    wsigen.render(demo_mask_path, folder / "b.svs", seed=2, **settings)
    wsigen.render(demo_mask_path, folder / "c.ome.tiff", seed=3, **settings)
    wsigen.render(demo_mask_path, folder / "part.svs", seed=1, rect=(100, 60, 300, 280), **settings)
    return folder


@pytest.mark.parametrize("name", ["a.svs", "part.svs", "c.ome.tiff"])
def test_an_honest_slide_passes(slides, demo_mask_path, name):
    checks = wsigen.verify(slides / name, demo_mask_path, windows=6)
    assert len(checks) == 6 and all(check.equal for check in checks)
    assert max(check.difference for check in checks) < 0.5, "the same JPEG, but for the decoder's rounding"


def test_a_slide_whose_windows_were_not_blended_passes(demo_mask_path, tiny_model, tmp_path):
    wsigen.render(demo_mask_path, tmp_path / "s.svs", seed=1, blend=0, model=str(tiny_model), device="cpu")
    checks = wsigen.verify(tmp_path / "s.svs", demo_mask_path, windows=3)
    assert len(checks) == 3 and all(check.equal for check in checks)


def test_another_seed_fails(slides, demo_mask_path, tiny_model):
    checks = wsigen.verify(slides / "b.svs", demo_mask_path, record=slides / "a.json", windows=3, model=str(tiny_model))
    assert not any(check.equal for check in checks)


def test_what_cannot_be_verified_is_said(slides, demo_mask_path, tiny_model, tmp_path):
    shutil.copy(slides / "a.svs", tmp_path / "a.svs")
    with pytest.raises(SettingsError, match=r"a\.json: the record .* is missing"):
        wsigen.verify(tmp_path / "a.svs", demo_mask_path)
    record = json.loads((slides / "a.json").read_text())
    record["run"]["mask_sha256"] = "0" * 64
    (tmp_path / "a.json").write_text(json.dumps(record))
    with pytest.raises(SettingsError, match="mask_sha256"):
        wsigen.verify(tmp_path / "a.svs", demo_mask_path, model=str(tiny_model))
    with pytest.raises(SlideError, match="cannot be opened"):
        wsigen.verify(tmp_path / "none.svs", demo_mask_path, record=slides / "a.json", model=str(tiny_model))
