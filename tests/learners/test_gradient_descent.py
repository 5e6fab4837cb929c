from typing import Any

import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.learners import (
    CausalGram,
    GradientDescent,
    RichardsonRegression,
    RidgeRegression,
    Window,
    Zero,
    best_step_size,
    in_context_data,
    mean_loss,
)
from mesascope.predictor import loss_per_time_step
from mesascope.tasks import FewShotRegression, Sequences, fully_observed_linear, partially_observed_linear

from .conftest import draw


def descend(
    x: np.ndarray, s: np.ndarray, step_sizes: tuple[float, ...], initial: np.ndarray, ridge: float
) -> np.ndarray:
    """Gradient descent on L_t with its weight matrix written out, one sequence and one time step at a time."""
    predictions = np.zeros_like(s)
    for t in range(len(s)):
        weights = initial.copy()
        for step_size in step_sizes:
            gradient = ridge * weights
            for i in range(1, t + 1):
                gradient += np.outer(weights @ x[i - 1] - s[i], x[i - 1])
            weights = weights - step_size * gradient
        predictions[t] = weights @ x[t]
    return predictions


MATRIX = np.random.default_rng(0).standard_normal((5, 10))


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("step_sizes", [(0.03,), (0.05, 0.01), (0.02, -0.01, 0.04, 0.03)])
@pytest.mark.parametrize("initial", [0.0, -0.7, "matrix"])
def test_equals_the_explicit_loop(step_sizes: tuple[float, ...], initial: Any, ridge: float) -> None:
    square = initial != "matrix"
    sequences = draw(fully_observed_linear(10, 16) if square else partially_observed_linear(length=16), 3, 0)
    regressors = Window(1 if square else 2)
    weights = initial * np.eye(10) if square else MATRIX
    given = initial if square else tuple(map(tuple, MATRIX.tolist()))
    predictions = GradientDescent(step_sizes, given, ridge, regressors).predict(sequences)
    x = regressors(sequences).numpy()
    for b in range(3):
        expected = descend(x[b], sequences.observations[b].numpy(), step_sizes, weights, ridge)
        np.testing.assert_allclose(predictions[b], expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("initial", [0.0, 0.4])
def test_order_of_steps_does_not_matter(few: Sequences, initial: float) -> None:
    """Every step of time t multiplies the weights by a polynomial in the same A_t."""
    forward, backward = (GradientDescent(sizes, initial) for sizes in ((0.05, 0.01, 0.03), (0.03, 0.01, 0.05)))
    torch.testing.assert_close(forward.predict(few), backward.predict(few), rtol=1e-11, atol=1e-12)


def test_is_richardson_iteration_from_zero(few: Sequences) -> None:
    step_sizes = (0.05, 0.01, 0.02)
    expected = RichardsonRegression(step_sizes, ridge=0.1).predict(few)
    torch.testing.assert_close(GradientDescent(step_sizes, ridge=0.1).predict(few), expected, rtol=1e-11, atol=1e-12)


def test_many_small_steps_reach_ridge_regression(few: Sequences) -> None:
    """With the step size 2 / (m + M), all errors shrink by (M - m) / (M + m) = 0.96 per step."""
    _, high = CausalGram(in_context_data(few).keys, 1.0).extreme_eigenvalues()
    step_size = 2 / (1.0 + float(high.max()))
    many = GradientDescent((step_size,) * 800, ridge=1.0).predict(few)
    torch.testing.assert_close(many, RidgeRegression(1.0).predict(few), rtol=1e-9, atol=1e-10)


def test_initial_weights_are_kept_where_nothing_was_seen(few: Sequences) -> None:
    first = GradientDescent((0.03,), initial=0.4).predict(few)[:, 0]
    torch.testing.assert_close(first, 0.4 * few.observations[:, 0], rtol=1e-14, atol=0)


def test_best_step_size_is_the_minimum_of_the_loss(few: Sequences) -> None:
    best = best_step_size(few)
    losses = [mean_loss(GradientDescent((best * factor,)), few) for factor in (0.98, 1.0, 1.02)]
    # one step is linear in its size, so the loss is a parabola: its vertex through three points must be at the best
    curvature = losses[0] - 2 * losses[1] + losses[2]
    assert curvature > 0
    assert 0.02 * (losses[0] - losses[2]) / (2 * curvature) == pytest.approx(0, abs=1e-8)


def test_best_step_size_counts_scored_positions_only() -> None:
    sequences = draw(FewShotRegression(n=4, pairs=(12,)), 5, 0)
    assert sequences.scored is not None
    data = in_context_data(sequences)
    g, y = (z[:, sequences.scored] for z in (data.associate(data.queries), sequences.targets))
    assert best_step_size(sequences) == pytest.approx(float((g * y).sum() / (g * g).sum()), rel=1e-12)


def test_curve_of_the_stored_numpy_check(test_sequences: Sequences, official: dict[str, Any]) -> None:
    check = official["numpy_check"]
    learner = GradientDescent((check["gd_learning_rate"],))
    losses = loss_per_time_step(learner.predict(test_sequences), test_sequences.targets).numpy()
    expected = np.array(check["curves"]["gd_one_step"])
    error = np.sqrt(1.1) * np.array(check["curves_standard_error"]["gd_one_step"])
    np.testing.assert_array_less(np.abs(losses - expected), 4 * error)
    assert losses.mean() == pytest.approx(expected.mean(), rel=0.01)
    # too large a step late in the sequence: the curve is U-shaped with its minimum at t of 35 to 40
    assert 35 <= losses.argmin() + 1 <= 40


def test_a_multiple_of_the_identity_as_initial_weights_gains_nothing(tuning_sequences: Sequences) -> None:
    step_size = best_step_size(tuning_sequences)
    losses = [mean_loss(GradientDescent((step_size,), c), tuning_sequences) for c in (-0.02, 0.0, 0.02)]
    curvature = (losses[0] - 2 * losses[1] + losses[2]) / 0.02**2
    slope = (losses[2] - losses[0]) / 0.04
    assert 0 <= slope**2 / (2 * curvature) < 1e-4


def test_messages_name_the_argument() -> None:
    partially = draw(partially_observed_linear(), 1, 0)
    with pytest.raises(InputError, match=r"step_sizes: got .*at least one"):
        GradientDescent(())
    with pytest.raises(InputError, match=r"initial: got the number 0.5 .*10 regressors to 5 values"):
        GradientDescent((0.1,), 0.5, regressors=Window(2)).predict(partially)
    with pytest.raises(InputError, match=r"initial: got \(1, 2\).*\(5, 10\)"):
        GradientDescent((0.1,), ((1.0, 2.0),), regressors=Window(2)).predict(partially)
    with pytest.raises(InputError, match=r"initial: .*rows of one length"):
        GradientDescent((0.1,), ((1.0, 2.0), (1.0,)))
    with pytest.raises(InputError, match=r"ridge: got -1.0"):
        GradientDescent((0.1,), ridge=-1.0)
    silent = draw(fully_observed_linear(), 1, 0)
    silent.observations.zero_()
    with pytest.raises(InputError, match="sequences: got 'no gradient'"):
        best_step_size(silent)


def test_zero_step_size_is_the_zero_predictor(few: Sequences) -> None:
    torch.testing.assert_close(GradientDescent((0.0,)).predict(few), Zero().predict(few), rtol=0, atol=0)
