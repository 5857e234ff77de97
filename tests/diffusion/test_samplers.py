"""Samplers take the steps that diffusers' take, recover a known distribution, and converge at their order."""

import math
import pickle
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from wsigen.diffusion.samplers import make_sampler, spaced_timesteps
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import SettingsError

SHAPE = (2, 3, 4, 4)
SCHEDULES = {"linear": NoiseSchedule.linear(), "cosine": NoiseSchedule.cosine()}
DIFFUSERS_KINDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
DIFFUSERS_NAMES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def network(x: torch.Tensor, t: float) -> torch.Tensor:
    """Any smooth function will do: the solvers must agree for every model."""
    return torch.tanh(0.7 * x + 0.2 * x.roll(1, -1)) + 0.1 * math.sin(t / 100)


def data_prediction(kind: str, output: torch.Tensor, x: torch.Tensor, t: float, schedule) -> torch.Tensor:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return {"eps": (x - sigma * output) / alpha, "v": alpha * x - sigma * output, "x0": output}[kind]


def noises(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


def oracle(kind: str, schedule: NoiseSchedule, cls: type, steps: int, **options):
    """A scheduler of diffusers on our float64 table, so that the comparison need not be loose."""
    beta_schedule = DIFFUSERS_NAMES[schedule.name]
    scheduler = cls(
        1000,
        beta_schedule=beta_schedule,
        prediction_type=DIFFUSERS_KINDS[kind],
        timestep_spacing="trailing",
        **options,
    )
    scheduler.alphas_cumprod = schedule.alpha_bar
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas"):
        bar = schedule.alpha_bar[scheduler.timesteps]
        scheduler.sigmas = torch.cat([((1 - bar) / bar).sqrt(), bar.new_zeros(1)])
    return scheduler


def our_samples(sampler, kind, schedule, x, fresh=None):
    """Every state that the sampler passes through."""
    state, states = sampler.init_state(), []
    for i, t in enumerate(sampler.timesteps):
        x0 = data_prediction(kind, network(x, t), x, t, schedule)
        x, state = sampler.step(i, x, x0, None if fresh is None else fresh[i], state)
        states.append(x)
    return states


def assert_same_path(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    """To 1e-6: the multistep schedulers of diffusers round their sample to float32."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        error = ((a - b).abs().max() / b.abs().max()).item()
        assert error < 1e-6, f"step {i}: relative difference {error:.1e}"


CASES = pytest.mark.parametrize(
    "schedule, kind, steps",
    [(s, k, n) for s in SCHEDULES.values() for k in ("eps", "v", "x0") for n in (1, 2, 3, 8, 25)],
    ids=lambda v: v.name if isinstance(v, NoiseSchedule) else str(v),
)


@CASES
def test_ddpm_takes_the_steps_of_diffusers(schedule, kind, steps):
    theirs = oracle(kind, schedule, DDPMScheduler, steps, clip_sample=False)
    theirs.set_timesteps(timesteps=theirs.timesteps.tolist())
    sampler = make_sampler("ddpm", schedule, steps)
    assert sampler.timesteps == tuple(theirs.timesteps.tolist())
    start, *fresh = noises(steps + 1)
    generator, x, path = torch.Generator().manual_seed(5), start, []
    torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    for t in theirs.timesteps:
        x = theirs.step(network(x, float(t)), t, x, generator=generator).prev_sample
        path.append(x)
    assert_same_path(our_samples(sampler, kind, schedule, start, fresh), path)


def test_ddpm_takes_learned_variances_as_diffusers_does():
    schedule, steps = SCHEDULES["linear"], 20
    theirs = oracle("eps", schedule, DDPMScheduler, steps, clip_sample=False, variance_type="learned_range")
    theirs.set_timesteps(timesteps=theirs.timesteps.tolist())
    sampler = make_sampler("ddpm", schedule, steps)
    start, *fresh = noises(steps + 1)
    generator = torch.Generator().manual_seed(5)
    torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    ours, x, state = start, start, sampler.init_state()
    for i, t in enumerate(theirs.timesteps[:-1]):
        raw = torch.cos(3 * ours)
        x0 = data_prediction("eps", network(ours, float(t)), ours, int(t), schedule)
        ours, state = sampler.step(i, ours, x0, fresh[i], state, log_variance=sampler.log_variance(i, raw))
        x = theirs.step(torch.cat([network(x, float(t)), torch.cos(3 * x)], 1), t, x, generator=generator).prev_sample
        torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)
    assert sampler.log_variance(steps - 1, raw) is None


@CASES
def test_ddim_takes_the_steps_of_diffusers(schedule, kind, steps):
    steps = 4 if steps == 3 else steps  # diffusers' DDIM is right only where the steps divide T
    theirs = oracle(kind, schedule, DDIMScheduler, steps, clip_sample=False)
    theirs.final_alpha_cumprod = theirs.final_alpha_cumprod.double()
    sampler = make_sampler("ddim", schedule, steps)
    (start,) = noises(1)
    x, path = start, []
    for t in theirs.timesteps:
        x = theirs.step(network(x, float(t)), t, x).prev_sample
        path.append(x)
    assert_same_path(our_samples(sampler, kind, schedule, start), path)


@CASES
@pytest.mark.parametrize("name", ["dpm++2m", "unipc"])
def test_multistep_solvers_take_the_steps_of_diffusers(schedule, kind, steps, name):
    if name == "unipc":
        theirs = oracle(kind, schedule, UniPCMultistepScheduler, steps)
    else:
        options = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
        theirs = oracle(kind, schedule, DPMSolverMultistepScheduler, steps, **options)
    sampler = make_sampler(name, schedule, steps)
    assert sampler.timesteps == tuple(theirs.timesteps.tolist())
    (start,) = noises(1)
    x, path = start, []
    for t in theirs.timesteps:
        x = theirs.step(network(x, float(t)), t, x).prev_sample
        path.append(x)
    assert_same_path(our_samples(sampler, kind, schedule, start), path)


MEAN, STD = 0.3, 0.4  # of the data in the closed form below


def exact_x0(x: torch.Tensor, t: float, schedule: NoiseSchedule) -> torch.Tensor:
    """E[x_0 | x_t] for data N(MEAN, STD²)."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)


@pytest.mark.parametrize("name, steps", [("ddpm", 1000), ("ddim", 250), ("dpm++2m", 40), ("unipc", 40)])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=lambda s: s.name)
def test_a_gaussian_is_recovered_from_its_exact_denoiser(schedule, name, steps):
    sampler = make_sampler(name, schedule, steps)
    generator = torch.Generator().manual_seed(3)
    count = 40_000
    x, state = torch.randn(count, generator=generator), sampler.init_state()
    for i, t in enumerate(sampler.timesteps):
        noise = torch.randn(count, generator=generator)
        x, state = sampler.step(i, x, exact_x0(x, t, schedule), noise, state)
    assert x.mean().item() == pytest.approx(MEAN, abs=4 * STD / math.sqrt(count) + 0.003)
    assert x.std().item() == pytest.approx(STD, rel=4 / math.sqrt(2 * count) + 0.012)


@pytest.mark.parametrize("name, order", [("ddim", 1.0), ("dpm++2m", 2.0), ("unipc", 2.0)])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=lambda s: s.name)
def test_deterministic_samplers_converge_at_their_order(schedule, name, order):
    """The exact flow keeps (x_t - alpha m) / sqrt(alpha² s² + sigma²); compare before the last step, at t = 0."""
    errors = []
    for steps in (64, 128):
        low, high = schedule.log_snr(999), schedule.log_snr(0)
        inner = [schedule.timestep(low + (high - low) * k / (steps - 1)) for k in range(1, steps - 1)]
        sampler = make_sampler(name, schedule, steps, timesteps=(999.0, *inner, 0.0))
        x, state = torch.tensor([-1.5, 0.2, 2.0], dtype=torch.float64), sampler.init_state()
        rank = (x - schedule.alpha(999) * MEAN) / math.hypot(schedule.alpha(999) * STD, schedule.sigma(999))
        for i, t in enumerate(sampler.timesteps[:-1]):
            x, state = sampler.step(i, x, exact_x0(x, t, schedule), None, state)
        exact = schedule.alpha(0) * MEAN + rank * math.hypot(schedule.alpha(0) * STD, schedule.sigma(0))
        errors.append((x - exact).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > order - 0.2


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++2m", "unipc"])
def test_the_last_step_returns_the_data_prediction_itself(name):
    sampler = make_sampler(name, SCHEDULES["cosine"], 1)
    x, x0 = torch.randn(SHAPE), torch.randn(SHAPE)
    assert sampler.step(0, x, x0, None, sampler.init_state())[0] is x0


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++2m", "unipc"])
def test_a_pixel_does_not_depend_on_its_batch(name):
    sampler = make_sampler(name, SCHEDULES["cosine"], 6)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 3, 7, 9, generator=generator)
    fresh = torch.randn(6, 5, 3, 7, 9, generator=generator)

    def run(part: slice) -> torch.Tensor:
        x, state = start[part], sampler.init_state()
        for i in range(6):
            x, state = sampler.step(i, x, (0.9 * x).clamp(-1, 1), fresh[i, part], state)
        return x

    assert torch.equal(run(slice(0, 5))[3:4], run(slice(3, 4)))


def test_missing_noise_is_an_error():
    sampler = make_sampler("ddpm", SCHEDULES["cosine"], 4)
    with pytest.raises(ValueError, match="needs noise"):
        sampler.step(0, torch.zeros(SHAPE), torch.zeros(SHAPE), None, sampler.init_state())


@pytest.mark.parametrize("steps", [1, 2, 7, 8, 50, 1000])
def test_timesteps_fall_within_the_schedule(steps):
    timesteps = spaced_timesteps(SCHEDULES["cosine"], steps)
    assert len(timesteps) == steps
    assert all(later < earlier for earlier, later in pairwise(timesteps))
    assert timesteps[-1] >= 0 and timesteps[0] <= 999
    assert timesteps[0] == 999


@pytest.mark.parametrize("steps", [2, 7, 8, 30])
def test_timesteps_are_the_trailing_ones_of_diffusers(steps):
    theirs = DDPMScheduler(1000, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    assert list(spaced_timesteps(SCHEDULES["linear"], steps)) == theirs.timesteps.tolist()


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50, 1000])
def test_a_shorter_final_step_leaves_the_others_even(steps):
    schedule = SCHEDULES["cosine"]
    timesteps = spaced_timesteps(schedule, steps, final_step=0.4)
    assert timesteps[0] == 999 and len(timesteps) == steps
    gaps = [earlier - later for earlier, later in pairwise((*timesteps, 0.0))]
    assert gaps[:-1] == pytest.approx([gaps[0]] * (steps - 1))
    assert steps == 1 or gaps[-1] == pytest.approx(0.4 * gaps[0])
    assert make_sampler("dpm++2m", schedule, steps, final_step=0.4).timesteps == timesteps


def test_a_final_step_as_long_as_the_others_is_the_trailing_spacing():
    schedule = SCHEDULES["cosine"]
    short = spaced_timesteps(schedule, 8, final_step=1 - 1e-9)
    assert short == pytest.approx(spaced_timesteps(schedule, 8), abs=1.5)  # which rounds and starts at T
    assert make_sampler("dpm++2m", schedule, 8, final_step=1.0) == make_sampler("dpm++2m", schedule, 8)


def test_own_timesteps_may_be_real_numbers_and_the_plan_pickles():
    sampler = make_sampler("unipc", SCHEDULES["cosine"], 3, timesteps=(999, 512.5, 20.25))
    assert sampler.timesteps == (999, 512.5, 20.25)
    assert pickle.loads(pickle.dumps(sampler)) == sampler


@pytest.mark.parametrize(
    "name, steps, options",
    [
        ("euler", 8, {}),
        ("ddim", 0, {}),
        ("ddim", 1001, {}),
        ("ddim", 8, {"final_step": 0.0}),
        ("ddim", 8, {"final_step": 1.1}),
        ("ddim", 8, {"final_step": float("nan")}),
        ("ddim", 2, {"timesteps": (10, 20)}),
        ("ddim", 2, {"timesteps": (1000, 20)}),
        ("ddim", 3, {"timesteps": (900, 20)}),
    ],
)
def test_settings_out_of_range_are_refused(name, steps, options):
    with pytest.raises(SettingsError):
        make_sampler(name, SCHEDULES["cosine"], steps, **options)
