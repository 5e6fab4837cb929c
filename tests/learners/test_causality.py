"""What holds for learners whatever they compute: no prediction depends on the future, and no axis is special."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesascope.learners import (
    ChebyshevRegression,
    ConjugateGradientRegression,
    ExactBounds,
    Features,
    FixedBounds,
    GradientDescent,
    NeumannRegression,
    PolynomialRegression,
    RichardsonRegression,
    RidgeRegression,
    SoftmaxKernelRegression,
    TunedChebyshevRegression,
    Window,
    Zero,
)
from mesascope.predictor import Predictor
from mesascope.tasks import Sequences, fully_observed_linear

from .conftest import draw

EQUIVARIANT: list[Predictor] = [
    RidgeRegression(0.1),
    RidgeRegression(0.1, lag=1),
    RidgeRegression(0.1, Window(3)),
    GradientDescent((0.05, 0.02)),
    GradientDescent((0.05,), initial=0.3, ridge=0.1),
    NeumannRegression(3, 0.1),
    RichardsonRegression((0.05, 0.02), 0.1),
    ChebyshevRegression(3, 0.1),
    ChebyshevRegression(3, 0.1, FixedBounds(0.1, 40.0)),
    ChebyshevRegression(3, 0.1, ExactBounds()),
    TunedChebyshevRegression((0.8, 0.4), (0.0, 0.2), "frobenius"),
    TunedChebyshevRegression((0.05, 0.02), (0.0, 0.2)),
    PolynomialRegression((2.0, -5.0, 3.0), "frobenius"),
    PolynomialRegression((0.1, -0.002), "none"),
    ConjugateGradientRegression(3, ridge=0.1),
    SoftmaxKernelRegression(1.5),
    SoftmaxKernelRegression(1.5, Window(3)),
]
"""Learners that know nothing of the axes of the observations."""

LEARNING = [*EQUIVARIANT, RidgeRegression(0.1, Features()), GradientDescent((0.05,), regressors=Features())]
LENGTH = 14
SEEDS = st.integers(0, 2**32)


def sample(seed: int) -> Sequences:
    return draw(fully_observed_linear(4, LENGTH), 3, seed)


def with_observations(sequences: Sequences, observations: torch.Tensor) -> Sequences:
    return replace(sequences, observations=observations)


def noise_like(sequences: Sequences, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(sequences.observations.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("learner", [Zero(), *LEARNING], ids=lambda learner: learner.name)
@given(seed=SEEDS, seen=st.integers(1, LENGTH - 1), size=st.sampled_from([1e-3, 1.0, 30.0]))
def test_the_future_changes_nothing(learner: Predictor, seed: int, seen: int, size: float) -> None:
    sequences = sample(seed)
    changed = sequences.observations.clone()
    changed[:, seen:] += size * noise_like(sequences, seed)[:, seen:]
    predictions = learner.predict(sequences)[:, :seen]
    altered = learner.predict(with_observations(sequences, changed))[:, :seen]
    torch.testing.assert_close(altered, predictions, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("learner", LEARNING, ids=lambda learner: learner.name)
def test_the_present_and_the_past_count(learner: Predictor) -> None:
    sequences = sample(0)
    before = learner.predict(sequences)
    for time in (8, 10):
        changed = sequences.observations.clone()
        changed[:, time] += noise_like(sequences, 0)[:, time]
        difference = (learner.predict(with_observations(sequences, changed)) - before).abs().amax((0, 2))
        assert not (difference[:time] > 1e-11).any()
        assert bool((difference[time:] > 1e-6).all())


@pytest.mark.parametrize("learner", EQUIVARIANT, ids=lambda learner: learner.name)
@given(seed=SEEDS)
def test_rotated_observations_give_rotated_predictions(learner: Predictor, seed: int) -> None:
    sequences = sample(seed)
    rotation, _ = torch.linalg.qr(noise_like(sequences, seed)[0, :4])
    rotated = learner.predict(with_observations(sequences, sequences.observations @ rotation.T))
    torch.testing.assert_close(rotated, learner.predict(sequences) @ rotation.T, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("learner", LEARNING, ids=lambda learner: learner.name)
@given(seed=SEEDS)
def test_sequences_of_a_batch_do_not_touch(learner: Predictor, seed: int) -> None:
    sequences = sample(seed)
    alone = torch.cat([learner.predict(sequences.select(slice(b, b + 1))) for b in range(3)])
    torch.testing.assert_close(learner.predict(sequences), alone, rtol=1e-10, atol=1e-11)


def test_features_are_not_rotation_equivariant() -> None:
    """The property above is one of the learners, not of the check."""
    sequences = sample(0)
    rotation, _ = torch.linalg.qr(noise_like(sequences, 0)[0, :4])
    learner = RidgeRegression(0.1, Features())
    rotated = learner.predict(with_observations(sequences, sequences.observations @ rotation.T))
    assert (rotated - learner.predict(sequences) @ rotation.T).abs().max() > 1e-2
