"""Dynamical tasks: every draw obeys its own equations, recomputed step by step from the latents it returns."""

import math

import numpy as np
import pytest
import torch

from mesascope import tasks
from mesascope.errors import InputError
from mesascope.tasks import ClipSequence, ClipStates, Dynamics, GaussianEmission, MLPFeatures, Sequences
from mesascope.tasks.dynamics import _linear_states
from oracles import dynamics as oracle

TASKS = {
    "full": tasks.fully_observed_linear(n_s=4, length=12),
    "partial": tasks.partially_observed_linear(n_s=2, n_h=5, length=12),
    "nonlinear": tasks.nonlinear(n_s=4, length=12),
    "contracting": tasks.contracting_linear(n_s=4, length=12),
    "contracting Gaussian": Dynamics(n_s=4, n_h=4, length=12, transition=tasks.ContractingGaussian()),
    "fixed teacher": tasks.fixed_teacher(n_s=4, length=12),
    "clipped sequence": Dynamics(n_s=4, n_h=4, length=12, transition=tasks.ContractingReal(), clip=ClipSequence(2.0)),
    "normal start": Dynamics(n_s=4, n_h=4, length=12, initial="normal"),
    "no clip": Dynamics(n_s=4, n_h=4, length=12, clip=None),
    "observation noise": Dynamics(n_s=2, n_h=3, length=12, emission=GaussianEmission(), observation_noise_std=0.1),
    "windows": tasks.partially_observed_linear(n_s=2, n_h=5, length=12, tokens=tasks.WindowTokens(3)),
}


def draw(task: Dynamics, batch_size: int, seed: int = 0) -> Sequences:
    return task.sample(batch_size, torch.Generator().manual_seed(seed), dtype=torch.float64)


def state_noise(sequences: Sequences) -> np.ndarray:
    """h_{t+1} - W g(h_t) from the latents, `[B, T, n_h]`."""
    latents = sequences.latents
    assert latents.states is not None
    states, transition = latents.states.numpy(), latents.transition.numpy()
    moved = states[:, :-1] if latents.features is None else latents.features.numpy()
    return states[:, 1:] - np.einsum("bij,btj->bti", transition, moved)


@pytest.mark.parametrize("name", TASKS)
def test_shapes_and_shift(name: str) -> None:
    task, sequences = TASKS[name], draw(TASKS[name], 3)
    assert sequences.tokens.shape == (3, 12, task.token_dim)
    assert sequences.targets.shape == sequences.observations.shape == (3, 12, task.n_s)
    assert (sequences.batch_size, sequences.length, sequences.scored) == (3, 12, None)
    assert sequences.latents.transition.shape == (3, task.n_h, task.n_h)
    # the targets are the next observations, noise included
    assert torch.equal(sequences.targets[:, :-1], sequences.observations[:, 1:])
    assert torch.equal(task.tokens(sequences.observations), sequences.tokens)


@pytest.mark.parametrize("name", TASKS)
def test_without_noise_every_step_is_the_transition(name: str) -> None:
    task = TASKS[name]
    quiet = Dynamics(**{**vars(task), "noise_std": 0.0, "observation_noise_std": 0.0})
    sequences = draw(quiet, 8)
    latents = sequences.latents
    assert latents.states is not None
    features = None if task.features is None else feature_map(task.features, task.n_h)
    bound = task.clip.bound if isinstance(task.clip, ClipStates) else np.inf
    for b in range(8):
        driven = np.zeros((13, task.n_h))
        driven[0] = latents.states[b, 0]
        if isinstance(task.clip, ClipSequence):
            driven[0] = unclipped_start(quiet, b)
        states = oracle.states(latents.transition[b].numpy(), driven, features, bound)
        if isinstance(task.clip, ClipSequence):
            states = np.clip(states, -task.clip.bound, task.clip.bound)
        np.testing.assert_allclose(latents.states[b], states, rtol=0, atol=1e-12)
        observed = states if latents.emission is None else states @ latents.emission[b].numpy().T
        np.testing.assert_allclose(sequences.observations[b], observed[:-1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(sequences.targets[b], observed[1:], rtol=0, atol=1e-12)


def feature_map(features: MLPFeatures, n: int):  # type: ignore[no-untyped-def]
    """g in NumPy; A and B are drawn again from the seed that names them."""
    generator = torch.Generator().manual_seed(features.seed)
    inner = features.weight_std * torch.randn(features.hidden, n, generator=generator, dtype=torch.float64).numpy()
    outer = features.weight_std * torch.randn(n, features.hidden, generator=generator, dtype=torch.float64).numpy()
    activation = oracle.gelu if features.gelu == "exact" else oracle.gelu_tanh

    def g(h: np.ndarray) -> np.ndarray:
        value = outer @ activation(inner @ h)
        return value / np.linalg.norm(value) if features.normalise else value

    return g


def unclipped_start(task: Dynamics, row: int) -> np.ndarray:
    """h_1 of the same draw before the finished sequence was clipped."""
    states = draw(Dynamics(**{**vars(task), "clip": None}), 8).latents.states
    assert states is not None
    return states[row, 0].numpy()


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("contracting", "clipped sequence")])
def test_state_noise_has_standard_deviation_0_01_and_is_white(name: str) -> None:
    noise = state_noise(draw(TASKS[name], 400))
    count = noise.size
    assert abs(noise.std() / 0.01 - 1) < 5 / math.sqrt(2 * count)
    assert abs(noise.mean() / 0.01) < 5 / math.sqrt(count)
    neighbours = (noise[:, 1:] * noise[:, :-1]).mean() / 1e-4
    assert abs(neighbours) < 5 / math.sqrt(count)
    coordinates = (noise[..., 1:] * noise[..., :-1]).mean() / 1e-4
    assert abs(coordinates) < 5 / math.sqrt(count / 2)


@pytest.mark.parametrize(("initial", "variance", "largest"), [("uniform", 1 / 3, 1.0), ("normal", 1.0, 6.0)])
def test_law_of_the_first_state(initial: str, variance: float, largest: float) -> None:
    states = draw(Dynamics(initial=initial, length=2), 2000).latents.states  # type: ignore[arg-type]
    assert states is not None
    first = states[:, 0].numpy()
    kurtosis = {"uniform": 9 / 5, "normal": 3.0}[initial]
    assert abs(first.mean()) < 5 * math.sqrt(variance / first.size)
    assert abs(first.var() / variance - 1) < 5 * math.sqrt((kurtosis - 1) / first.size)
    assert abs((first**4).mean() / variance**2 - kurtosis) < 0.25
    assert largest / 2 < np.abs(first).max() < largest


def test_emission_and_observation_noise() -> None:
    task = Dynamics(n_s=5, n_h=15, emission=GaussianEmission(0.5), observation_noise_std=0.1)
    sequences = draw(task, 200)
    emission, states = sequences.latents.emission, sequences.latents.states
    assert emission is not None
    assert states is not None
    assert emission.shape == (200, 5, 15)
    assert float(emission.std()) == pytest.approx(0.5, rel=5 / math.sqrt(2 * emission.numel()))
    assert not torch.allclose(emission[0], emission[1])
    observed = torch.cat([sequences.observations, sequences.targets[:, -1:]], dim=1)
    noise = observed - torch.einsum("bij,btj->bti", emission, states)
    assert float(noise.std()) == pytest.approx(0.1, rel=5 / math.sqrt(2 * noise.numel()))
    assert abs(float(noise.mean())) < 5 * 0.1 / math.sqrt(noise.numel())


def test_a_clip_acts_inside_the_recursion_or_on_the_finished_sequence() -> None:
    wild = {"n_s": 6, "n_h": 6, "length": 20, "transition": tasks.ContractingReal()}
    free = draw(Dynamics(**wild, clip=None), 50)
    inside = draw(Dynamics(**wild, clip=ClipStates(2.0)), 50)
    after = draw(Dynamics(**wild, clip=ClipSequence(2.0)), 50)
    assert free.latents.states is not None
    assert inside.latents.states is not None
    assert after.latents.states is not None
    exceeded = free.latents.states.abs().amax((1, 2)) > 2
    assert 0 < int(exceeded.sum()) < 50
    assert torch.equal(after.latents.states, free.latents.states.clamp(-2, 2))
    assert float(inside.latents.states.abs().max()) == 2
    torch.testing.assert_close(inside.latents.states[~exceeded], free.latents.states[~exceeded], rtol=0, atol=1e-12)
    # after a clip the true state is the clipped one, so the two differ from there on
    assert not torch.allclose(inside.latents.states[exceeded], after.latents.states[exceeded])


def test_a_transition_whose_powers_overflow_still_gives_clipped_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eigenvectors that are nearly parallel, as a Gaussian M has them once in some ten thousand draws."""
    wild = torch.tensor([[1e25, -1e25], [1e25, -1e25]])
    monkeypatch.setattr(tasks.ContractingReal, "sample", lambda self, batch, n, *_: wild.expand(batch, n, n))
    sequences = tasks.contracting_linear(n_s=2, length=12).sample(3, torch.Generator().manual_seed(0))
    assert sequences.tokens.isfinite().all()
    assert float(sequences.targets.abs().max()) == 2.0


def test_clipping_states_leaves_the_first_state() -> None:
    states = draw(Dynamics(n_s=8, n_h=8, initial="normal", clip=ClipStates(1.0)), 50).latents.states
    assert states is not None
    assert float(states[:, 0].abs().max()) > 2
    assert float(states[:, 1:].abs().max()) == 1


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9, 33, 51])
def test_fast_recursion_equals_one_step_at_a_time(count: int, generator: torch.Generator) -> None:
    for transition in (tasks.Orthogonal(), tasks.ContractingReal()):
        w = transition.sample(2, 5, generator, torch.float64)
        driven = torch.randn(2, count, 5, generator=generator, dtype=torch.float64)
        fast = _linear_states(w, driven.clone())
        for b in range(2):
            np.testing.assert_allclose(fast[b], oracle.states(w[b].numpy(), driven[b].numpy()), rtol=0, atol=1e-9)


def test_fast_recursion_in_float32() -> None:
    single = tasks.fully_observed_linear().sample(20, torch.Generator().manual_seed(0))
    states, w = single.latents.states, single.latents.transition
    assert states is not None
    residual = states[:, 1:] - torch.einsum("bij,btj->bti", w, states[:, :-1])
    assert float(residual.std()) == pytest.approx(0.01, rel=0.05)
    assert float(residual.abs().max()) < 0.06


def test_features_are_normalised_and_the_same_at_every_call(generator: torch.Generator) -> None:
    states = torch.randn(3, 7, 4, generator=generator, dtype=torch.float64)
    for features in (MLPFeatures(), MLPFeatures(hidden=5, normalise=False, gelu="tanh"), MLPFeatures(seed=3)):
        g = feature_map(features, 4)
        expected = np.array([[g(state) for state in row] for row in states.numpy()])
        np.testing.assert_allclose(features(states), expected, rtol=1e-11, atol=1e-12)
        assert torch.equal(features(states), features(states))
    torch.testing.assert_close(MLPFeatures()(states).norm(dim=-1), torch.ones(3, 7, dtype=torch.float64))
    assert not torch.allclose(MLPFeatures(seed=1)(states), MLPFeatures()(states))


def test_nonlinear_latents_hold_the_features() -> None:
    sequences = draw(tasks.nonlinear(n_s=4, length=6), 2)
    assert sequences.latents.features is not None
    assert torch.equal(sequences.latents.features, MLPFeatures()(sequences.observations))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        # n / 6 for the start and n 1e-4 (T + 1) / 4 for the accumulated noise
        (tasks.fully_observed_linear(), 10 / 6 + 0.01275),
        # the same with n_h for n, times n_s 0.25: arXiv 2309.05858, Fig. 24C starts at about 3.16
        (tasks.partially_observed_linear(), 5 * 0.25 * 15 * (1 / 6 + 1e-4 * 51 / 4)),
        # every state has norm one but for its latest noise; Fig. 25C starts at 0.50
        (tasks.nonlinear(), (1 + 10 * 1e-4) / 2),
        (tasks.fixed_teacher(), 10 / 6 + 0.01275),
    ],
    ids=["full", "partial", "nonlinear", "fixed teacher"],
)
def test_loss_of_the_zero_predictor(task: Dynamics, expected: float) -> None:
    targets = task.sample(8000, torch.Generator().manual_seed(1)).targets
    losses = 0.5 * targets.double().square().sum(-1).mean(-1)
    five_errors = 5 * float(losses.std()) / math.sqrt(8000)
    assert float(losses.mean()) == pytest.approx(expected, abs=five_errors)
    assert five_errors < 0.03 * expected


def test_loss_of_the_zero_predictor_on_contracting_dynamics() -> None:
    """No closed form and heavy tails, so against an independent simulation; 2.21 over 200,000 of its sequences."""
    simulated = oracle.contracting_zero_losses(2500, 10, 50, 2.0, np.random.default_rng(0))
    targets = tasks.contracting_linear().sample(8000, torch.Generator().manual_seed(1)).targets
    losses = 0.5 * targets.double().square().sum(-1).mean(-1).numpy()
    error = math.sqrt(losses.var() / 8000 + simulated.var() / 2500)
    assert abs(losses.mean() - simulated.mean()) < 5 * error
    assert abs(losses.mean() - 2.21) < 5 * losses.std() / math.sqrt(8000)
    # the tails as well: how many sequences reach the clip
    assert abs((losses > 5).mean() - (simulated > 5).mean()) < 0.03


@pytest.mark.parametrize("name", TASKS)
def test_same_seed_same_bits(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        first, second, other = (
            TASKS[name].sample(5, torch.Generator().manual_seed(seed), dtype=dtype) for seed in (0, 0, 1)
        )
        assert first.tokens.dtype == first.targets.dtype == dtype
        assert torch.equal(first.tokens, second.tokens)
        assert torch.equal(first.targets, second.targets)
        assert torch.equal(first.latents.transition, second.latents.transition)
        assert not torch.equal(first.tokens, other.tokens)


def test_nothing_but_the_generator_is_random() -> None:
    before = torch.get_rng_state()
    for task in TASKS.values():
        draw(task, 2)
    assert torch.equal(torch.get_rng_state(), before)


BAD = {
    "n_h: got 0, but it must be at least 1": {"n_s": 0, "n_h": 0},
    "n_s: got 11, but it must be between 1 and n_h (10)": {"n_s": 11},
    "n_s: got 0": {"n_s": 0},
    "length: got 1, but it must be at least 2": {"length": 1},
    "noise_std: got -0.1, but it must be at least 0": {"noise_std": -0.1},
    "noise_std: got nan": {"noise_std": float("nan")},
    "observation_noise_std: got -1.0, but it must be at least 0": {"observation_noise_std": -1.0},
    "emission: got None with n_s = 5 and n_h = 10": {"n_s": 5},
}


@pytest.mark.parametrize("message", BAD)
def test_settings_that_are_not_allowed(message: str) -> None:
    with pytest.raises(InputError) as error:
        Dynamics(**BAD[message])
    assert str(error.value).startswith(message)


def test_the_emission_error_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"needs n_s = n_h, and GaussianEmission\(\) observes it partially"):
        Dynamics(n_s=2, n_h=4)


def test_parts_refuse_values_out_of_range() -> None:
    for build, message in (
        (lambda: MLPFeatures(hidden=0), "hidden: got 0, but it must be at least 1"),
        (lambda: MLPFeatures(weight_std=0.0), "weight_std: got 0.0, but it must be greater than 0"),
        (lambda: GaussianEmission(-1.0), "std: got -1.0, but it must be greater than 0"),
        (lambda: ClipStates(0.0), "bound: got 0.0, but it must be greater than 0"),
        (lambda: ClipSequence(-2.0), "bound: got -2.0, but it must be greater than 0"),
        (lambda: Dynamics().sample(0, torch.Generator()), "batch_size: got 0, but it must be at least 1"),
    ):
        with pytest.raises(InputError) as error:
            build()
        assert str(error.value) == message
