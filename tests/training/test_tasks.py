"""The other tasks of `wsigen train`: networks that measure, and painters of few steps."""

import csv
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import pyvips
import torch
from short_run import SHORT

from wsigen.conditions.guidance import null_batch, say_scale
from wsigen.diffusion.gaussian import q_sample, to_x0, training_target
from wsigen.diffusion.samplers import make_sampler
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import DataError, ModelError, SettingsError
from wsigen.networks.denoiser import Prediction
from wsigen.networks.measuring import FeatureNetwork, SegmentationNetwork
from wsigen.networks.nasdm import NasdmModel
from wsigen.training.appearance import gaussian_blur
from wsigen.training.data.manifest import TrainingImage
from wsigen.training.distillation import ConsistencyTrainer, GuidanceTrainer
from wsigen.training.fields import nucleus_depth
from wsigen.training.loop import Process, train
from wsigen.training.patches import without_fold
from wsigen.training.prepare import prepare
from wsigen.training.progressive import ProgressiveTrainer
from wsigen.training.segmenting import dice_loss
from wsigen.training.settings import DistillSettings, Phase

SIDE = 128


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures whose nuclei are dark disks: blue ones of class 3, green ones of class 2."""
    root = tmp_path_factory.mktemp("data")
    yy, xx = np.mgrid[:SIDE, :SIDE]
    for seed, name in enumerate("abcd"):
        random = np.random.default_rng(seed)
        rgb = np.full((SIDE, SIDE, 3), (220, 170, 200)) + random.integers(-8, 8, (SIDE, SIDE, 3))
        labels = np.zeros((SIDE, SIDE), np.uint8)
        for y in range(12, SIDE, 20):
            for x in range(12, SIDE, 20):
                kind = int(random.integers(2, 4))
                disk = (yy - y) ** 2 + (xx - x) ** 2 < 49
                labels[disk], rgb[disk] = kind, {2: (60, 130, 70), 3: (60, 60, 150)}[kind]
        for part, array in (("images", rgb.astype(np.uint8)), ("labels", labels)):
            (root / "own" / part).mkdir(parents=True, exist_ok=True)
            pyvips.Image.new_from_array(array).write_to_file(str(root / "own" / part / f"{name}.png"))
    prepare({"folder": root / "own"}, root / "prepared", holdout=["d"])
    return root / "prepared"


def quietly(settings, data, out):
    return train(settings, data, out, device="cpu", report=lambda _: None)


def test_the_segmenter_learns_to_find_nuclei(data, tmp_path):
    phases = (Phase((64,), (4,), 60),)
    settings = replace(
        SHORT, task="segment", architecture="segmenter-tiny", phases=phases, learning_rate=3e-3, ema_decay=0.9
    )
    quietly(settings, data, tmp_path)
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    assert float(rows[-1]["loss_class"]) < 0.6 * float(rows[0]["loss_class"])
    network = SegmentationNetwork.from_pretrained(tmp_path / "model")
    assert network.config.mpp == 0.5 and len(network.config.classes) == 6
    logits, depth = network(torch.zeros(2, 3, 32, 64))
    assert logits.shape == (2, 7, 32, 64) and depth.shape == (2, 32, 64)


def test_the_feature_network_learns_and_is_read_back(data, tmp_path):
    settings = replace(SHORT, task="features", architecture="features-tiny")
    quietly(settings, data, tmp_path)
    with (tmp_path / "log.csv").open(newline="") as file:
        assert all(math.isfinite(float(row["loss"])) for row in csv.DictReader(file))
    network = FeatureNetwork.from_pretrained(tmp_path / "model")
    assert network.config.groups == ("a", "b", "c")
    said = network(torch.rand(3, 3, 64, 64) * 2 - 1)
    assert said.features.shape == (3, 16) and said.scales.shape == (3, 2 * (8 + 16)) and said.source.shape == (3, 3)


def test_a_network_of_the_other_kind_is_refused(data, tmp_path):
    quietly(replace(SHORT, task="features", architecture="features-tiny"), data, tmp_path)
    with pytest.raises(ModelError, match="kind 'features' where one of kind 'segment' belongs"):
        SegmentationNetwork.from_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="train one with `wsigen train"):
        FeatureNetwork.from_pretrained("no-such-network")
    with pytest.raises(ModelError, match="'tiny': not one of features"):
        quietly(replace(SHORT, task="features"), data, tmp_path / "other")


def test_an_unknown_task_is_named(data, tmp_path):
    with pytest.raises(SettingsError, match="task 'paint': unknown; choose one of denoise, mask, distill"):
        quietly(replace(SHORT, task="paint"), data, tmp_path)


def test_a_fold_leaves_out_source_images():
    images = [TrainingImage(f"{group}{n}", "x", group, "train", 1, 1, "manual") for group in "abcde" for n in range(2)]
    kept = [{entry.group for entry in without_fold(images, 2, fold)} for fold in range(2)]
    assert kept == [{"b", "d"}, {"a", "c", "e"}]
    with pytest.raises(DataError, match=r"fold 2: must lie in 0\.\.1"):
        without_fold(images, 2, 2)


def test_depth_has_a_valley_between_touching_nuclei():
    instances = np.zeros((12, 30), np.int32)
    instances[2:11, 2:11], instances[2:11, 11:26] = 1, 2
    depth = nucleus_depth(instances)
    assert depth[6, 6] == 255 and depth[6, 18] == 255
    assert max(depth[6, 10], depth[6, 11]) < 70 and depth[0, 0] == 0
    assert not nucleus_depth(np.zeros((4, 4), np.uint8)).any()


def test_dice_loss_tells_right_from_wrong():
    classes = torch.zeros(1, 16, 16, dtype=torch.long)
    classes[:, 4:8, 4:8] = 2
    right = torch.nn.functional.one_hot(classes, 4).permute(0, 3, 1, 2).float() * 20
    assert dice_loss(right, classes) < 0.05 < 0.8 < dice_loss(-right, classes)
    assert dice_loss(right, torch.zeros_like(classes)) == 0


def test_blur_is_of_each_picture_its_own():
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    blurred = gaussian_blur(images, torch.tensor([0.0, 1.2]))
    torch.testing.assert_close(blurred[0], images[0], atol=1e-5, rtol=0)
    assert blurred[1].std() < 0.7 * images[1].std()
    torch.testing.assert_close(blurred[1].mean(), images[1].mean(), atol=0.02, rtol=0)


# --- few steps --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def painter(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("painter")
    quietly(SHORT, data, out)
    return str(out / "model")


@pytest.mark.parametrize(("teacher", "guidance"), [(True, 1.0), (True, 1.5), (False, 1.0)])
def test_tuning_writes_a_few_step_painter(data, painter, tmp_path, teacher, guidance):
    distill = DistillSettings(teacher=teacher, guidance_scale=guidance)
    quietly(replace(SHORT, task="distill", initial_model=painter, distill=distill), data, tmp_path)
    tuned = NasdmModel.from_pretrained(tmp_path / "model")
    assert (tuned.config.sampler, tuned.config.num_inference_steps) == ("consistency", 4)
    assert tuned.config.guidance_scale == 1  # what it has of the teacher's is in its weights
    assert tuned.config.styles == NasdmModel.from_pretrained(painter).config.styles
    with (tmp_path / "log.csv").open(newline="") as file:
        assert all(math.isfinite(float(row["loss"])) for row in csv.DictReader(file))
    assert list((tmp_path / "samples").glob("*.png"))


def seeded():
    return torch.Generator().manual_seed(0)


def guidance_trainer(data, painter, out, **distill):
    settings = replace(SHORT, task="guidance", initial_model=painter)
    settings = replace(settings, distill=DistillSettings(guidance_scale=1.5, **distill))
    return GuidanceTrainer(settings, data, out, Process(0, 1, torch.device("cpu")), False)


def test_a_painter_learns_to_guide_itself(data, painter, tmp_path):
    trainer = guidance_trainer(data, painter, tmp_path, guided_scales=(1.0, 3.0))
    with torch.no_grad():  # a network that has learned little hardly heeds the mask
        for network in (trainer.model, trainer.teacher):
            network.unet.conv_out.weight.copy_(torch.randn(network.unet.conv_out.weight.shape, generator=seeded()) / 8)
    trainer.settings = replace(trainer.settings, known_weight=0.0, phases=(Phase((32,), (8,), 60),))
    batch = trainer.draw(trainer.held_out, 32, 16, seeded())
    before = trainer.losses(trainer.model, batch)[0].mean().item()
    for _ in range(60):
        trainer.train_step()
    assert trainer.losses(trainer.model, batch)[0].mean().item() < 0.7 * before


@pytest.mark.parametrize("scales", [(1.5,), (2.0, 1.0)])
def test_scales_to_learn_that_are_no_range_are_refused(data, painter, tmp_path, scales):
    with pytest.raises(SettingsError, match=r"distill\.guided_scales .* must be the lowest and the highest scale"):
        guidance_trainer(data, painter, tmp_path, guided_scales=scales)


def test_a_painter_that_guides_itself_is_written(data, painter, tmp_path):
    distill = DistillSettings(guidance_scale=1.5, guided_scales=(1.0, 3.0))
    quietly(replace(SHORT, task="guidance", initial_model=painter, distill=distill), data, tmp_path)
    config, before = (NasdmModel.from_pretrained(folder).config for folder in (tmp_path / "model", painter))
    assert (config.guidance_scale, config.guided_scales) == (1.5, (1.0, 3.0)) and config.guidance().calls == 1
    assert config == replace(before, guidance_scale=1.5, guided_scales=(1.0, 3.0))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_is_learned_is_the_guided_teacher_or_the_pictures(data, painter, tmp_path, share):
    trainer = guidance_trainer(data, painter, tmp_path, data_share=share)
    batch = trainer.draw(trainer.bank, 32, 16, seeded())
    x = q_sample(trainer.schedule, batch.clean.x0, batch.t, batch.noise)
    unknown = (batch.clean.known == 0).expand_as(x)
    seen = training_target("v", trainer.schedule, batch.clean.x0, batch.t, batch.noise)
    nothing = null_batch(trainer.teacher.conditions, batch.clean.conditions)
    given, null = (trainer.teach(told, x, batch.t) for told in (batch.clean.conditions, nothing))
    guided = null + batch.scale[:, None, None, None] * (given - null)
    target = trainer.target(batch, x)
    torch.testing.assert_close(target[unknown], (guided + share * (seen - given))[unknown], atol=1e-4, rtol=0)
    assert torch.equal(target[~unknown], seen[~unknown])
    assert (batch.scale == 1.5).any() and batch.scale.unique().numel() > 2
    assert batch.scale.min() >= 1 and batch.scale.max() <= 2
    own = (batch.t[:, None] == trainer.own_timesteps).any(1)
    assert own.any() and not own.all()


def test_a_painter_that_guides_itself_teaches_what_it_paints(data, painter, tmp_path):
    """A student of few steps has a self-guided painter's own guidance in its weights, and says so."""
    quietly(guidance_trainer(data, painter, tmp_path / "first").settings, data, tmp_path / "guided")
    settings = replace(SHORT, task="distill", initial_model=str(tmp_path / "guided" / "model"))
    trainer = ConsistencyTrainer(settings, data, tmp_path / "second", Process(0, 1, torch.device("cpu")), False)
    batch = trainer.draw(trainer.bank, 32, 4, torch.Generator().manual_seed(0))
    x = q_sample(trainer.schedule, batch.clean.x0, batch.t, batch.noise)
    told = trainer.teach(say_scale(batch.clean.conditions, 1.5), x, batch.t)
    data_of = to_x0("v", told, x, batch.t, trainer.schedule).clamp(-1, 1)
    expected = torch.where(batch.clean.known > 0, batch.clean.x0, data_of)
    assert torch.equal(trainer.teacher_data(batch.clean, x, batch.t), expected)
    assert (trainer.config.guidance_scale, trainer.config.guided_scales) == (1.0, ())


def test_progressive_tuning_writes_a_few_step_painter(data, painter, tmp_path):
    distill = DistillSettings(steps=3, teacher_steps=2)
    quietly(replace(SHORT, task="progressive", initial_model=painter, distill=distill), data, tmp_path)
    config = NasdmModel.from_pretrained(tmp_path / "model").config
    before = NasdmModel.from_pretrained(painter).config
    assert (config.sampler, config.num_inference_steps) == ("ddim", 3) and config.final_step == before.final_step
    with (tmp_path / "log.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert all(math.isfinite(loss) for loss in losses) and max(losses) > 0


@pytest.mark.parametrize("teacher_steps", [1, 3])
def test_a_target_leads_where_the_teacher_leads(data, painter, tmp_path, teacher_steps, monkeypatch):
    distill = DistillSettings(steps=4, teacher_steps=teacher_steps)
    settings = replace(SHORT, task="progressive", initial_model=painter, distill=distill)
    trainer = ProgressiveTrainer(settings, data, tmp_path, Process(0, 1, torch.device("cpu")), False)
    batch = trainer.draw(trainer.bank, 32, 8, torch.Generator().manual_seed(0))
    assert sorted(set(batch.t.tolist())) == sorted(trainer.steps[:, 0].tolist())
    x = q_sample(trainer.schedule, batch.clean.x0, batch.t, batch.noise)
    with torch.no_grad():
        if teacher_steps == 1:  # both take the same step
            expected = trainer.teacher_data(batch.clean, x, batch.t)
            torch.testing.assert_close(trainer.target(batch, x), expected, atol=1e-3, rtol=0)
        # A teacher that sees one image everywhere goes straight to it.
        image = torch.rand_like(x)
        monkeypatch.setattr(trainer, "teacher_data", lambda clean, x, t: image)
        torch.testing.assert_close(trainer.target(batch, x), image, atol=1e-3, rtol=0)


def test_tuning_needs_a_painter(data, tmp_path):
    with pytest.raises(SettingsError, match="names no initial_model"):
        quietly(replace(SHORT, task="distill"), data, tmp_path)


@pytest.fixture
def trainer(data, painter, tmp_path):
    settings = replace(SHORT, task="distill", initial_model=painter)
    return ConsistencyTrainer(settings, data, tmp_path, Process(0, 1, torch.device("cpu")), False)


def test_levels_and_timesteps_are_inverse(trainer):
    t = torch.tensor([0.0, 3.5, 400.25, 999.0])
    level = -0.5 * trainer.schedule.log_snr(t)
    torch.testing.assert_close(trainer.timestep(level), t, atol=0.02, rtol=1e-4)
    assert trainer.timestep(torch.tensor([-50.0, 50.0])).tolist() == pytest.approx([0.0, 999.0])


def test_steps_shrink_in_stages(trainer):
    ratios = []
    for step in range(4):
        trainer.step = step
        ratios.append(trainer.ratio())
    assert ratios[0] == 4.0 and ratios == sorted(ratios) and ratios[-1] <= 256.0
    trainer.settings = replace(trainer.settings, phases=(Phase((32,), (1,), 700),))
    trainer.step = 699
    assert trainer.ratio() == pytest.approx(256.0)


def test_a_network_that_is_consistent_already_has_no_loss(trainer):
    """A teacher that knows the picture, and a student that says the same at every level: nothing is left to learn."""
    batch = trainer.draw(trainer.bank, 32, 8, trainer.generator(0, 0))
    schedule = trainer.schedule

    def knows(x, t, *_):
        alpha, sigma = (level[:, None, None, None] for level in (schedule.alpha(t), schedule.sigma(t)))
        return (alpha * x - batch.clean.x0) / sigma

    trainer.teacher = SimpleNamespace(
        prepare=lambda told: told,
        predict=lambda told, x, t: Prediction(knows(x, t)),
        conditions=trainer.teacher.conditions,
    )
    right, _ = trainer.losses(knows, batch)
    wrong, _ = trainer.losses(lambda x, t, *_: torch.zeros_like(x), batch)
    assert right.max() < 1e-2 < wrong.mean()


def test_the_consistency_sampler_adds_noise_anew():
    schedule = NoiseSchedule.cosine()
    sampler = make_sampler("consistency", schedule, 4)
    x0, noise = torch.full((1, 1, 2, 2), 0.5), torch.ones(1, 1, 2, 2)
    after, _ = sampler.step(0, torch.full_like(x0, 7.0), x0, noise, sampler.init_state())
    t = sampler.timesteps[1]
    torch.testing.assert_close(after, schedule.alpha(t) * x0 + schedule.sigma(t) * noise)
    assert sampler.step(3, x0 + 1, x0, None, sampler.init_state())[0] is x0
