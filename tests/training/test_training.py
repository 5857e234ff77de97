"""What `wsigen train` promises, on three small pictures and the tiny network."""

import csv
import json
import math
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import pyvips
import torch

from wsigen.conditions.context import context_mask
from wsigen.conditions.registry import conditions_of
from wsigen.conditions.settings import AugmentSettings, ConditionSettings, ContextSettings
from wsigen.errors import DataError, SettingsError
from wsigen.models.config import PRESETS, ModelConfig
from wsigen.models.stain_response import StainResponse
from wsigen.networks.nasdm import NasdmModel
from wsigen.training.corrupt import slide_corruptor
from wsigen.training.data import manifest as folder_format
from wsigen.training.denoising import pixel_weights
from wsigen.training.loop import train
from wsigen.training.patches import PRESENT_PIXELS, PatchBank
from wsigen.training.prepare import prepare
from wsigen.training.settings import Phase, TrainSettings, load_settings

CPU = torch.device("cpu")
SIDE = 160
RARE = 1  # class of one nucleus in the upper left corner of every picture
SETTINGS = TrainSettings(
    architecture="tiny",
    seed=4,
    phases=(Phase((32, 48), (6, 3), 4),),
    learning_rate=1e-3,
    warmup_steps=2,
    decay_steps=2,
    log_every=2,
    evaluate_every=2,
    checkpoint_every=2,
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_picture(folder, name, seed):
    """Tissue above glass, nuclei of two classes, and a strip at the right whose pixels are not available."""
    random = np.random.default_rng(seed)
    rgb = random.integers(90, 180, (SIDE, SIDE, 3))
    rgb[120:] = random.integers(238, 246, (SIDE - 120, SIDE, 3))
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for y in range(20, 110, 25):
        for x in range(20, SIDE, 25):
            labels[y : y + 9, x : x + 9] = 2
    labels[4:14, 4:14] = RARE
    labels[:, 130:] = 255
    for part, array in (("images", rgb.astype(np.uint8)), ("labels", labels)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        pyvips.Image.new_from_array(array).write_to_file(str(folder / part / f"{name}.png"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared training folder: two pictures to learn from, one held out."""
    root = tmp_path_factory.mktemp("data")
    for seed, name in enumerate("abc"):
        write_picture(root / "own", name, seed)
    prepare({"folder": root / "own"}, root / "prepared", holdout=["c"])
    return root / "prepared"


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of four steps."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    torch.set_num_threads(1)
    result = train(SETTINGS, data, out, device="cpu", report=lambda _: None)
    assert (result.step, result.total_steps, result.images) == (4, 4, 6 + 3 + 6 + 3)
    return out


def bank_of(data, **changes):
    return PatchBank(data, folder_format.load(data), "train", replace(SETTINGS, **changes), CPU)


def checkpoint(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def same(first, second):
    """Whether two nested states hold the same bits."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


# --- runs -------------------------------------------------------------------------------------------------------------


def test_loss_weights_stress_the_border_of_known_pixels():
    known = torch.zeros(1, 1, 40, 40)
    known[..., :10] = 1
    weights = pixel_weights(known, known_weight=0.25, border_weight=2.0)[0, 0, 5]
    assert weights[:10].unique().tolist() == [0.25]
    assert weights[10:18].unique().tolist() == [3.0]
    assert weights[18:].unique().tolist() == [1.0]


def test_loss_weights_stress_the_rim_of_a_window():
    weights = pixel_weights(torch.zeros(1, 1, 64, 64), known_weight=0.25, border_weight=2.0, rim_weight=1.5)[0, 0]
    assert weights[32, :24].unique().tolist() == [2.5] and weights[40:, 32].unique().tolist() == [2.5]
    assert weights[24:40, 24:40].unique().tolist() == [1.0]
    assert pixel_weights(torch.zeros(1, 1, 32, 32), 0.25, 2.0, 1.5).unique().tolist() == [2.5], "all rim"


def test_fine_tuning_starts_from_a_model_and_keeps_its_configuration(data, finished, tmp_path):
    first = NasdmModel.from_pretrained(finished / "model")
    phases = (Phase((32,), (2,), 1),)
    settings = replace(SETTINGS, initial_model=str(finished / "model"), phases=phases, learning_rate=0.0)
    train(settings, data, tmp_path / "tuned", device="cpu", report=lambda _: None)
    tuned = NasdmModel.from_pretrained(tmp_path / "tuned" / "model")
    assert tuned.config == first.config
    for name, value in first.state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], value, rtol=0, atol=1e-6)


def test_a_stain_response_ends_with_the_weights_that_it_was_measured_of(data, finished, tmp_path):
    config = ModelConfig.load(finished / "model")
    rows = tuple(tuple(0.6 * (column == row + 1) for column in range(7)) for row in range(6))
    shutil.copytree(finished / "model", tmp_path / "mended")
    (tmp_path / "mended" / "config.json").write_text(replace(config, stain_response=StainResponse(rows)).to_json())
    settings = replace(SETTINGS, initial_model=str(tmp_path / "mended"), phases=(Phase((32,), (2,), 1),))
    train(settings, data, tmp_path / "tuned", device="cpu", report=lambda _: None)
    assert ModelConfig.load(tmp_path / "tuned" / "model") == config


def test_a_run_leaves_log_checkpoint_settings_and_a_model(finished):
    assert checkpoint(finished)["step"] == 4
    assert json.loads((finished / "settings.json").read_text())["phases"][0]["windows"] == [32, 48]
    model = NasdmModel.from_pretrained(finished / "model")
    assert model.config.mpp == 0.5
    averaged = checkpoint(finished)["average"]["module.unet.conv_in.weight"]
    assert torch.equal(model.unet.conv_in.weight, averaged.half().float())


def test_the_log_tells_losses_by_noise_level(finished):
    with (finished / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    levels = [f"loss_t{index}" for index in range(10)]
    assert set(levels) < set(rows[0])
    assert [(row["split"], row["step"]) for row in rows] == [("train", "2"), ("val", "2"), ("train", "4"), ("val", "4")]
    assert all(math.isfinite(float(row["loss"])) and float(row["loss"]) > 0 for row in rows)
    held_out = [row for row in rows if row["split"] == "val"]
    assert all(math.isfinite(float(row[level])) for row in held_out for level in levels)
    assert all(math.isfinite(float(row["grad_norm"])) for row in rows if row["split"] == "train")


def test_sample_sheets_show_mask_pixels_and_painting(finished):
    for step in (2, 4):
        sheet = pyvips.Image.new_from_file(str(finished / "samples" / f"step-{step:06d}.png"))
        window = SETTINGS.phases[0].windows[0]
        assert (sheet.width, sheet.height, sheet.bands) == (8 * window, 3 * window, 3)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(data, finished, tmp_path):
    out = tmp_path / "run"
    first = train(SETTINGS, data, out, device="cpu", minutes=0, report=lambda _: None)
    assert first.step == 2
    assert not same(checkpoint(out)["model"], checkpoint(finished)["model"])
    second = train(SETTINGS, data, out, device="cpu", resume=True, report=lambda _: None)
    assert (second.step, second.images) == (4, 18)
    whole, parts = checkpoint(finished), checkpoint(out)
    for part in ("model", "average", "optimiser"):
        assert same(whole[part], parts[part]), part


def test_an_interrupted_run_keeps_its_steps(data, tmp_path):
    def interrupt(line):
        if line.startswith("step 2"):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    result = train(SETTINGS, data, tmp_path / "run", device="cpu", report=interrupt)
    assert result.step == checkpoint(tmp_path / "run")["step"] == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_another_seed_is_another_run(data, finished, tmp_path):
    train(replace(SETTINGS, seed=5), data, tmp_path / "run", device="cpu", minutes=0, report=lambda _: None)
    assert not same(checkpoint(tmp_path / "run")["model"], checkpoint(finished)["model"])


def test_a_run_is_not_overwritten_without_resume(data, finished):
    before = (finished / "checkpoint.pt").read_bytes()
    with pytest.raises(SettingsError, match="holds a run already; continue it with --resume"):
        train(SETTINGS, data, finished, device="cpu", report=lambda _: None)
    assert (finished / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_refused_by_name(data, finished, tmp_path, content):
    whole = (finished / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DataError, match=r"checkpoint\.pt cannot be resumed") as caught:
        train(SETTINGS, data, tmp_path, device="cpu", resume=True, report=lambda _: None)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_network_is_refused(data, finished, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes())
    other = replace(SETTINGS, architecture="nasdm-colon-20x-small")
    with pytest.raises(DataError, match="cannot be resumed"):
        train(other, data, tmp_path, device="cpu", resume=True, report=lambda _: None)


def test_named_styles_are_measured_on_their_group(data, tmp_path):
    settings = replace(SETTINGS, styles={"ours": "a"}, phases=(Phase((32,), (2,), 1),))
    train(settings, data, tmp_path / "run", device="cpu", report=lambda _: None)
    config = NasdmModel.from_pretrained(tmp_path / "run" / "model").config
    assert config.default_style == "ours"
    assert all(238 <= value <= 246 for value in config.style().glass_rgb)
    with pytest.raises(SettingsError, match=r"no group 'z'.*a, b"):
        train(replace(settings, styles={"ours": "z"}), data, tmp_path / "other", device="cpu", report=lambda _: None)


def test_a_network_with_learned_variance_trains(data, tmp_path, monkeypatch):
    tiny = PRESETS["tiny"]
    monkeypatch.setitem(PRESETS, "learned", replace(tiny, schedule="linear", prediction="eps", learned_variance=True))
    settings = replace(SETTINGS, architecture="learned", phases=(Phase((32,), (4,), 2),))
    train(settings, data, tmp_path / "run", device="cpu", report=lambda _: None)
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        assert all(math.isfinite(float(row["loss"])) for row in csv.DictReader(file))
    model = NasdmModel.from_pretrained(tmp_path / "run" / "model")
    assert model.unet.conv_out.bias[:3].any() and model.unet.conv_out.bias.shape == (6 * 4,)


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        'architecture = "tiny"\nrare_class_weight = [6.0, 0.5]\n[context]\nnone = 0.5\n'
        "[[phases]]\nwindows = [64]\nbatches = [8]\nsteps = 40\n"
    )
    return path


def test_a_recipe_is_read_whole(recipe):
    settings = load_settings(recipe)
    assert settings.phases == (Phase((64,), (8,), 40),)
    assert settings.rare_class_weight == (6.0, 0.5)
    assert settings.context == ContextSettings(none=0.5)


def test_set_overrides_dotted_keys(recipe):
    given = ("seed=7", "phases.0.steps = 3", "context.tint=0.5", "augment.overall=0", 'default_style="pale"')
    settings = load_settings(recipe, given)
    assert (settings.seed, settings.total_steps, settings.default_style) == (7, 3, "pale")
    assert settings.context == ContextSettings(none=0.5, tint=0.5)
    assert settings.augment == AugmentSettings(overall=0.0)


@pytest.mark.parametrize("key", ["learning_rat", "context.nothing", "phases.0.window"])
def test_an_unknown_key_is_named(recipe, key):
    with pytest.raises(SettingsError, match=f"unknown key '{key.rpartition('.')[2]}'; known are "):
        load_settings(recipe, (f"{key}=1",))


@pytest.mark.parametrize("override", ["seed", "seed=", "seed=one", "phases.7.steps=1", "architecture.deeper=1"])
def test_an_override_that_makes_no_sense_is_quoted(recipe, override):
    with pytest.raises(SettingsError, match=rf"--set {override}: give key=value"):
        load_settings(recipe, (override,))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("context=3", "3 stands where a table"),
        ("seed=1.5", "seed = 1.5 is of the wrong type; a whole number belongs there"),
        ("seed.deeper=1", "seed = .* a whole number belongs there"),
        ("context.none='most'", "none = 'most' is of the wrong type; a number"),
        ("phases.0.windows=[64, 'large']", "a list belongs there"),
        ("phases.0.batches=[1, 2]", "as many batches as windows"),
        ("phases.0.steps=0", "at least one step"),
        ("phases=[]", "at least one step"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused(recipe, override, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(recipe, (override,))


def test_missing_and_broken_recipes_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="no such recipe"):
        load_settings(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("seed = = 1")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_settings(tmp_path / "broken.toml")


def test_learning_rate_warms_up_and_decays():
    settings = replace(SETTINGS, phases=(Phase((32,), (1,), 100),), warmup_steps=10, decay_steps=20, learning_rate=1.0)
    rates = [settings.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5) and rates[99] == pytest.approx(0.05)


def test_phases_follow_each_other_and_take_their_windows_in_turn():
    settings = replace(SETTINGS, phases=(Phase((32, 64), (4, 1), 3), Phase((128,), (2,), 2)))
    crops = [settings.phase_at(step).crops_at(step) for step in range(5)]
    assert crops == [(32, 4), (64, 1), (32, 4), (128, 2), (128, 2)]


# --- crops ------------------------------------------------------------------------------------------------------------


def test_crops_lie_inside_available_pixels(data):
    bank = bank_of(data)
    table = bank.table(32)
    labels = [folder_format.read_label(folder_format.label_path(data, entry.name)) for entry in bank.entries]
    for image, x, y in zip(table.image.tolist(), table.x.tolist(), table.y.tolist()):
        crop = labels[image][y : y + 32, x : x + 32]
        assert crop.shape == (32, 32) and not (crop == 255).any()
    assert table.x.max() + 32 > 130 - SETTINGS.crop_stride  # and reach up to the unavailable strip
    assert bank.sample(32, 64, seeded()).picture.amin() >= 90  # unavailable pixels are stored black


def test_a_window_that_fits_nowhere_is_refused(data):
    with pytest.raises(DataError, match="no image of the split holds 136 x 136 available pixels"):
        bank_of(data).table(136)


def test_turns_are_the_eight_symmetries_of_the_square(data):
    bank = bank_of(data)
    start = torch.zeros(8, dtype=torch.long)
    crops = bank.cut(start, start + 8, start + 4, 32, torch.arange(8)).planes
    plain = crops[0]
    rgb = folder_format.read_rgb(folder_format.image_path(data, bank.entries[0].name))[4:36, 8:40]
    assert np.array_equal(plain[:3].permute(1, 2, 0), rgb)
    wanted = [torch.rot90(side, quarter, (1, 2)) for side in (plain, plain.flip(2)) for quarter in range(4)]
    matches = [[torch.equal(crop, symmetry) for symmetry in wanted] for crop in crops]
    assert sorted(row.index(True) for row in matches) == list(range(8))
    assert all(sum(row) == 1 for row in matches)
    assert torch.equal(crops[1], plain.flip(2)) and torch.equal(crops[2], plain.flip(1))
    assert torch.equal(crops[4], plain.transpose(1, 2))


def test_crops_of_rare_classes_are_drawn_more_often(data):
    def share(bank):
        classes = bank.sample(32, 600, seeded(2))["classes"]
        return ((classes == RARE).sum(dim=(1, 2)) >= PRESENT_PIXELS).float().mean().item()

    plain, weighted = share(bank_of(data)), share(bank_of(data, rare_class_weight=(50.0,)))
    assert 0 < plain < 0.1
    assert weighted > 0.4


def test_machine_labels_weigh_less(data):
    manifest = folder_format.load(data)
    first, *others = manifest.images
    marked = replace(manifest, images=(replace(first, label_quality="machine"), *others))
    table = PatchBank(data, marked, "train", replace(SETTINGS, machine_label_weight=0.25), CPU).table(32)
    weights = torch.diff(table.cumulative, prepend=torch.zeros(1, dtype=torch.float64))
    of_first, of_second = (weights[table.image == index].sum().item() for index in (0, 1))
    assert of_first / of_second == pytest.approx(0.25)


def test_the_same_generator_draws_the_same_crops(data):
    bank = bank_of(data)
    first, again, other = (bank.sample(32, 8, seeded(seed)).planes for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


# --- contexts and conditions ------------------------------------------------------------------------------------------


def kinds(mask):
    """Name each context by the sides that it covers."""
    mask = mask[:, 0]
    middle = mask.shape[-1] // 2
    rows, columns = mask[:, :, middle].any(1), mask[:, middle].any(1)
    return {
        "none": (~rows & ~columns).float().mean().item(),
        "horizontal": (~rows & columns).float().mean().item(),
        "vertical": (rows & ~columns).float().mean().item(),
        "ring": (rows & columns).float().mean().item(),
    }


def test_contexts_come_in_their_shares():
    settings = ContextSettings(none=0.4, horizontal=0.3, vertical=0.2, ring=0.1, strips=0.0)
    mask = context_mask(6000, 32, settings, seeded())
    assert mask.shape == (6000, 1, 32, 32) and mask.dtype == torch.bool
    expected = {"none": 0.4, "horizontal": 0.3, "vertical": 0.2, "ring": 0.1}
    assert kinds(mask) == pytest.approx(expected, abs=0.025)


def test_strips_may_lie_on_any_sides():
    settings = ContextSettings(none=0, horizontal=0, vertical=0, ring=0, strips=1)
    mask = context_mask(4000, 64, settings, seeded())[:, 0]
    sides = torch.stack([mask[:, 32, 0], mask[:, 32, -1], mask[:, 0, 32], mask[:, -1, 32]], 1).long()
    assert len(sides.unique(dim=0)) == 16
    assert sides.float().mean(0).tolist() == pytest.approx([0.5] * 4, abs=0.05)


def test_every_second_context_has_the_usual_overlap():
    settings = ContextSettings(none=0, horizontal=1, vertical=0, ring=0, strips=0, usual_overlap=32)
    widths = context_mask(400, 256, settings, seeded())[:, 0, 0, :128].sum(1)
    assert not (widths % 8).any() and widths.min() >= 8 and widths.max() <= 96
    assert (widths == 32).float().mean().item() == pytest.approx(0.5 + 0.5 / 12, abs=0.08)


def batch_of(data, context=None, condition=None, augment=None):
    bank = bank_of(data)
    still = AugmentSettings(overall=0.0, channel=0.0, style_noise=0.0)
    settings = replace(
        SETTINGS,
        context=context or ContextSettings(),
        condition=condition or ConditionSettings(),
        augment=augment or still,
    )
    crops = bank.sample(32, 200, seeded(3))
    return crops, slide_corruptor(conditions_of(PRESETS["tiny"]), bank, settings)(crops, seeded(4))


def test_known_pixels_show_the_context_and_unknown_ones_the_picture(data):
    crops, batch = batch_of(data)
    assert torch.equal(batch.conditions.context, batch.x0 * batch.known)
    unknown = (batch.known == 0).expand_as(batch.x0)
    picture = crops.picture.float() / 127.5 - 1
    torch.testing.assert_close(batch.x0[unknown], picture[unknown], rtol=0, atol=1e-4)
    assert not torch.equal(batch.x0[~unknown], picture[~unknown])
    assert batch.x0.abs().max() <= 1


def test_pinned_glass_is_known_and_white(data):
    nothing = ContextSettings(none=1, horizontal=0, vertical=0, ring=0, strips=0)
    crops, batch = batch_of(data, nothing, ConditionSettings(pin_glass=1.0))
    glass = crops["glass"][:, None] > 0
    assert glass.any() and torch.equal(batch.known > 0, glass)
    pinned = (batch.x0[glass.expand_as(batch.x0)] + 1) * 127.5
    assert pinned.amin() >= 238 and pinned.amax() <= 246


def test_conditions_are_dropped_in_their_share(data):
    _, batch = batch_of(data, condition=ConditionSettings(drop=0.5, tissue_unknown=0.25, tissue_derived=0.0))
    present = batch.conditions["present"].amax(dim=(1, 2, 3))
    assert present.mean().item() == pytest.approx(0.5, abs=0.12)
    for name in ("mask", "tissue"):
        assert not batch.conditions[name][present == 0].any()
    assert batch.conditions["stain"].any(1).all(), "the style is told to all"
    kept = batch.conditions["tissue"][present == 1][:, 0]
    assert (kept == 0.5).all(dim=2).all(dim=1).float().mean().item() == pytest.approx(0.25, abs=0.15)


def test_stain_jitter_moves_pixels_and_style_together(data):
    plain = batch_of(data, condition=ConditionSettings(pin_glass=0))[1]
    darker = batch_of(
        data, condition=ConditionSettings(pin_glass=0), augment=AugmentSettings(overall=0.3, channel=0.0, style_noise=0)
    )[1]
    brightness = (darker.x0 - plain.x0).mean(dim=(1, 2, 3))
    density = (darker.conditions["stain"] - plain.conditions["stain"])[:, :3].mean(1)
    assert torch.corrcoef(torch.stack([brightness, density]))[0, 1] < -0.8
