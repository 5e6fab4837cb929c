"""Least squares against an explicit loop, dense solves and the curves stored with the authors' demo."""

from typing import Any

import numpy as np
import pytest

from mesascope.errors import InputError
from mesascope.learners import Features, Regressors, RidgeRegression, Window, mean_loss
from mesascope.predictor import loss_per_time_step
from mesascope.tasks import Sequences, fully_observed_linear, nonlinear, partially_observed_linear

from .conftest import draw


def streaming_least_squares(x: np.ndarray, s: np.ndarray, ridge: float, lag: int = 0) -> np.ndarray:
    """The reference predictor for one sequence, one observation at a time; `x` regressors, `s` observations."""
    predictions = np.zeros_like(s)
    moments, association = ridge * np.eye(x.shape[1]), np.zeros((s.shape[1], x.shape[1]))
    for t in range(len(s)):
        if t - 1 - lag >= 0:
            moments += np.outer(x[t - 1 - lag], x[t - 1 - lag])
            association += np.outer(s[t - lag], x[t - 1 - lag])
        predictions[t] = association @ np.linalg.solve(moments, x[t])
    return predictions


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_equals_streaming_least_squares(few: Sequences, ridge: float, lag: int) -> None:
    predictions = RidgeRegression(ridge, lag=lag).predict(few)
    for b in range(7):
        s = few.observations[b].numpy()
        np.testing.assert_allclose(predictions[b], streaming_least_squares(s, s, ridge, lag), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("task", "regressors"),
    [
        (partially_observed_linear(), Window(16)),
        (partially_observed_linear(), Window(2)),
        (nonlinear(), Features()),
        (fully_observed_linear(60, 80), Window(1)),
    ],
    ids=["80 regressors", "10 regressors, 5 values", "features", "n_s 60"],
)
def test_equals_streaming_least_squares_on_other_regressors(task: Any, regressors: Regressors) -> None:
    sequences = draw(task, 3, 0)
    predictions, x = RidgeRegression(1e-3, regressors).predict(sequences), regressors(sequences).numpy()
    for b in range(3):
        expected = streaming_least_squares(x[b], sequences.observations[b].numpy(), 1e-3)
        np.testing.assert_allclose(predictions[b], expected, rtol=0, atol=1e-9)


def test_tiny_ridge_loses_digits_no_faster_than_documented() -> None:
    """Against least squares by singular values, which squares no condition number; the ridge is negligible at t > d."""
    sequences = draw(fully_observed_linear(), 4, 0)
    s = sequences.observations.numpy()
    for ridge, tolerance in ((1e-6, 1e-8), (1e-9, 1e-5)):
        predictions = RidgeRegression(ridge).predict(sequences).numpy()
        for b in range(4):
            for t in range(25, 50):
                past = np.vstack([s[b, :t], np.sqrt(ridge) * np.eye(10)])
                future = np.vstack([s[b, 1 : t + 1], np.zeros((10, 10))])
                weights, *_ = np.linalg.lstsq(past, future, rcond=None)
                np.testing.assert_allclose(predictions[b, t], s[b, t] @ weights, rtol=0, atol=tolerance)


def test_reproduces_the_stored_curve(test_sequences: Sequences, official: dict[str, Any]) -> None:
    check = official["numpy_check"]
    expected = np.array(check["curves"]["ridge_all_transitions"])
    losses = loss_per_time_step(RidgeRegression(1e-3).predict(test_sequences), test_sequences.targets).numpy()
    assert losses.mean() == pytest.approx(expected.mean(), rel=0.01)
    np.testing.assert_allclose(losses[14:], expected[14:], rtol=0.03)
    np.testing.assert_array_less(np.abs(losses - expected), 4 * standard_error(check, "ridge_all_transitions"))


def test_lag_one_reproduces_the_stored_curves(test_sequences: Sequences, official: dict[str, Any]) -> None:
    check, stored = official["numpy_check"], np.array(official["lsq"])
    predictions = RidgeRegression(1e-3, lag=1).predict(test_sequences)
    losses = loss_per_time_step(predictions, test_sequences.targets).numpy()
    expected = np.array(check["curves"]["ridge_lag_one"])
    error = standard_error(check, "ridge_lag_one")
    np.testing.assert_array_less(np.abs(losses - expected), 4 * error)
    np.testing.assert_allclose(losses[15:], expected[15:], rtol=0.03)
    # the authors' own array: 5 seeds of 256 sequences, so its sampling error is sqrt(2000 / 1280) times as large
    difference = np.abs(stored.mean(0) - losses)
    np.testing.assert_array_less(difference, 4 * error * np.sqrt(2000 / 1280))
    assert stored.mean() == pytest.approx(losses.mean(), rel=0.02)
    # all transitions up to t would not do: 20 times too small at the eleventh prediction
    newest = loss_per_time_step(RidgeRegression(1e-3).predict(test_sequences), test_sequences.targets).numpy()
    assert stored.mean(0)[10] > 10 * newest[10]


def standard_error(check: dict[str, Any], curve: str) -> np.ndarray:
    """Of the difference between the stored curve (2,000 sequences) and one of 20,000."""
    return np.sqrt(1.1) * np.array(check["curves_standard_error"][curve])


def test_predicts_zero_before_the_first_transition(few: Sequences) -> None:
    assert not RidgeRegression().predict(few)[:, 0].any()
    assert not RidgeRegression(lag=1).predict(few)[:, :2].any()
    assert RidgeRegression().predict(few)[:, 1].any()


def test_noise_free_dynamics_are_learned_exactly_after_n_transitions() -> None:
    from dataclasses import replace

    sequences = draw(replace(fully_observed_linear(4, 12), noise_std=0.0), 50, 0)
    losses = loss_per_time_step(RidgeRegression(1e-10).predict(sequences), sequences.targets)
    assert bool((losses[4:] < 1e-3 * losses[3]).all())
    assert mean_loss(RidgeRegression(1e-10), sequences) == pytest.approx(float(losses.mean()), rel=1e-12)


def test_messages_name_the_argument() -> None:
    with pytest.raises(InputError, match=r"ridge: got 0.0, but it must be greater than 0"):
        RidgeRegression(0.0)
    with pytest.raises(InputError, match=r"lag: got -1, but it must be at least 0"):
        RidgeRegression(lag=-1)
