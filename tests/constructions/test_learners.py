"""Constructions against the learners of the package that they claim to equal, on sequences of the default task."""

import pytest
import torch

from mesascope.constructions import (
    chebyshev_step_sizes,
    gradient_descent,
    proposition_1,
    proposition_1_tokens,
    proposition_2,
    ridge_regression,
)
from mesascope.learners import ChebyshevRegression, FixedBounds, GradientDescent, RidgeRegression
from mesascope.predictor import Predictor
from mesascope.tasks import ConstructedTokens, fully_observed_linear

RIDGE = 0.5


@pytest.fixture
def sequences(generator):
    task = fully_observed_linear(n_s=4, length=20, tokens=ConstructedTokens())
    return task.sample(8, generator, dtype=torch.float64)


def assert_equal(model, learner, sequences):
    assert isinstance(model, Predictor)
    torch.testing.assert_close(model.predict(sequences), learner.predict(sequences), rtol=1e-10, atol=1e-10)


def test_proposition_1_is_one_gradient_step(sequences):
    assert_equal(proposition_1(4, 0.1, dtype=torch.float64), GradientDescent((0.1,)), sequences)


def test_proposition_1_starts_anywhere(sequences):
    start = 0.3 * torch.eye(4, dtype=torch.float64)
    model = proposition_1(4, 0.1, start, dtype=torch.float64)
    predictions = model(proposition_1_tokens(sequences.observations, start)).detach()
    expected = GradientDescent((0.1,), initial=0.3).predict(sequences)
    torch.testing.assert_close(predictions, expected, rtol=1e-12, atol=1e-12)


def test_layers_are_gradient_steps(sequences):
    step_sizes = (0.1, 0.05, 0.02)
    learner = GradientDescent(step_sizes, ridge=RIDGE)
    assert_equal(gradient_descent(4, step_sizes, ridge=RIDGE, dtype=torch.float64), learner, sequences)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_chebyshev_step_sizes_are_the_chebyshev_iteration(sequences, steps):
    high = 12.0 + RIDGE
    model = gradient_descent(4, chebyshev_step_sizes(RIDGE, high, steps), ridge=RIDGE, dtype=torch.float64)
    learner = ChebyshevRegression(steps - 1, RIDGE, FixedBounds(RIDGE, high))
    assert_equal(model, learner, sequences)


def test_preconditioning_without_momentum_is_gradient_descent_with_a_first_step_of_one(sequences):
    # K steps from x = b are K + 1 steps from x = 0, the first of size 1
    alphas = (0.1, 0.05, 0.02)
    model = proposition_2(4, alphas, (0.0, 0.0, 0.0), RIDGE, dtype=torch.float64)
    assert_equal(model, GradientDescent((1.0, *alphas), ridge=RIDGE), sequences)


def test_mesa_layer_is_ridge_regression(sequences):
    assert_equal(ridge_regression(4, RIDGE, dtype=torch.float64), RidgeRegression(RIDGE), sequences)


def test_single_precision_runs_on_default_sequences(generator):
    sequences = fully_observed_linear(n_s=4, length=20, tokens=ConstructedTokens()).sample(4, generator)
    difference = gradient_descent(4, [0.05] * 6).predict(sequences) - GradientDescent((0.05,) * 6).predict(sequences)
    assert float(difference.abs().max()) < 1e-5
