"""Best polynomials against least squares on explicit columns, their own sampled loss and reference values."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.learners import (
    GradientDescent,
    Observations,
    Regressors,
    Scale,
    TunedChebyshevRegression,
    Window,
    best_step_size,
    fit_polynomial,
    mean_loss,
    polynomial_moments,
)
from mesascope.tasks import FewShotRegression, Sequences, fully_observed_linear, partially_observed_linear

from .conftest import draw

GLOBAL = (0.654, 0.517, 0.429, 0.370, 0.329, 0.300)
FROBENIUS = (0.597, 0.375, 0.286, 0.245, 0.224, 0.212, 0.205)


def explicit_columns(x: np.ndarray, s: np.ndarray, degree: int, scale: Scale, ridge: float) -> np.ndarray:
    """C_t A_t^j x_t, `[T, n_s, degree + 1]`, from matrices formed one pair at a time for one sequence."""
    d = x.shape[1]
    moments, association = ridge * np.eye(d), np.zeros((s.shape[1], d))
    columns = np.zeros((*s.shape, degree + 1))
    for t in range(len(s)):
        if t:
            moments += np.outer(x[t - 1], x[t - 1])
            association += np.outer(s[t], x[t - 1])
        divisor = np.sqrt((moments**2).sum()) if scale == "frobenius" else 1.0
        for j in range(degree + 1):
            columns[t, :, j] = association @ np.linalg.matrix_power(moments / divisor, j) @ x[t] / divisor
    return columns


@pytest.mark.parametrize("scale", ["none", "frobenius"])
@pytest.mark.parametrize(
    ("task", "regressors"),
    [
        (fully_observed_linear(6, 20), Observations()),
        (partially_observed_linear(length=20), Window(2)),
        (FewShotRegression(n=4, pairs=(12,)), Observations()),
    ],
    ids=["observations", "windows", "scored positions only"],
)
def test_fit_equals_least_squares_on_explicit_columns(task: Any, regressors: Regressors, scale: Scale) -> None:
    sequences = draw(task, 12, 0)
    x, s = regressors(sequences).numpy(), sequences.observations.numpy()
    columns = np.stack([explicit_columns(x[b], s[b], 3, scale, 0.2) for b in range(12)])
    scored = slice(None) if sequences.scored is None else sequences.scored.numpy()
    targets = sequences.targets.numpy()[:, scored]
    matrix = columns[:, scored].reshape(-1, 4)
    lengths = np.linalg.norm(matrix, axis=0)
    normalised, *_ = np.linalg.lstsq(matrix / lengths, targets.reshape(-1), rcond=None)
    expected = columns @ (normalised / lengths)
    learner = fit_polynomial(3, scale, sequences, 0.2, regressors)
    np.testing.assert_allclose(learner.coefficients, normalised / lengths, rtol=1e-7)
    np.testing.assert_allclose(learner.predict(sequences), expected, rtol=1e-8, atol=1e-9)
    loss = 0.5 * np.square(expected[:, scored] - targets).sum(-1).mean()
    assert polynomial_moments(sequences, 3, scale, 0.2, regressors).optimum(3) == pytest.approx(loss, rel=1e-11)


@pytest.mark.parametrize("scale", ["none", "frobenius"])
def test_loss_of_the_moments_is_the_sampled_loss(few: Sequences, scale: Scale) -> None:
    moments = polynomial_moments(few, 4, scale)
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 4, 5):
        coefficients = torch.randn(size, generator=generator, dtype=torch.float64)
        sampled = mean_loss(moments.regression(coefficients), few)
        assert float(moments.loss(coefficients)) == pytest.approx(sampled, rel=1e-10)
    for degree in range(5):
        assert mean_loss(moments.fit(degree), few) == pytest.approx(moments.optimum(degree), rel=1e-9)


def test_loss_of_the_moments_does_not_depend_on_chunks() -> None:
    sequences = draw(fully_observed_linear(3, 600), 9, 0)
    whole = polynomial_moments(sequences, 2, "frobenius")
    parts = [polynomial_moments(sequences.select(slice(b, b + 1)), 2, "frobenius") for b in range(9)]
    torch.testing.assert_close(whole.inner, torch.stack([part.inner for part in parts]).mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(whole.cross, torch.stack([part.cross for part in parts]).mean(0), rtol=1e-12, atol=1e-15)


def test_degree_zero_is_the_best_gradient_step(few: Sequences) -> None:
    step_size = best_step_size(few)
    learner = fit_polynomial(0, "none", few)
    assert learner.coefficients[0] == pytest.approx(step_size, rel=1e-12)
    expected = GradientDescent((step_size,)).predict(few)
    torch.testing.assert_close(learner.predict(few), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("scale", ["none", "frobenius"])
def test_no_schedule_is_below_the_optimum(few: Sequences, scale: Scale) -> None:
    moments = polynomial_moments(few, 2, scale)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        alphas, betas = torch.rand(2, 3, generator=generator, dtype=torch.float64).tolist()
        schedule = TunedChebyshevRegression(tuple(alpha / moments.unit for alpha in alphas), tuple(betas), scale)
        assert mean_loss(schedule, few) > moments.optimum(2)


def test_optimum_falls_with_the_degree(few: Sequences) -> None:
    moments = polynomial_moments(few, 6)
    optima = [moments.optimum(degree) for degree in range(7)]
    assert all(lower < higher for higher, lower in pairwise(optima))


def test_frobenius_form_has_the_reference_losses(tuning_sequences: Sequences) -> None:
    moments = polynomial_moments(tuning_sequences, 6, "frobenius")
    np.testing.assert_allclose([moments.optimum(degree) for degree in range(7)], FROBENIUS, rtol=0.01)


def test_global_form_has_the_reference_losses() -> None:
    """The mean loss of 50 fits, each to 2,000 sequences and measured on the same ones.

    The loss depends on the size of a fit, because a larger sample holds more of the rare sequences with a large
    ||A_t||_F: at degree 6 it is 1 % below the reference for fits to 1,000 sequences, 2.4 % above it for 4,000 and 5 %
    for 20,000. The reference does not state its size; 2,000 is that of the numpy check stored with the authors' curves.
    One such fit has a standard deviation of 4 %, the mean of 50 one of 0.6 %.
    """
    task, generator = fully_observed_linear(), torch.Generator().manual_seed(0)
    optima = np.zeros((50, 6))
    for row in optima:
        moments = polynomial_moments(task.sample(2000, generator, dtype=torch.float64), 6, "none")
        row[:] = [moments.optimum(degree) for degree in range(1, 7)]
    np.testing.assert_allclose(optima.mean(0), GLOBAL, rtol=0.01)


def test_global_form_is_worse_on_sequences_it_was_not_fitted_to() -> None:
    task = fully_observed_linear()
    fitted = polynomial_moments(draw(task, 500, 0), 6, "none")
    assert mean_loss(fitted.fit(6), draw(task, 2000, 1)) > 1.01 * fitted.optimum(6)


@pytest.mark.usefixtures("unchecked_shapes")
def test_messages_name_the_argument(few: Sequences) -> None:
    with pytest.raises(InputError, match="degree: got -1, but it must be at least 0"):
        polynomial_moments(few, -1)
    with pytest.raises(InputError, match="degree: got 3, but it must be between 0 and 2"):
        polynomial_moments(few, 2).fit(3)
    with pytest.raises(InputError, match="scale: got 'trace'"):
        polynomial_moments(few, 2, "trace")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"ridge: got -1.0"):
        polynomial_moments(few, 2, ridge=-1.0)
    silent = draw(fully_observed_linear(), 1, 0)
    silent.observations.zero_()
    with pytest.raises(InputError, match="sequences: got 'zero columns'"):
        fit_polynomial(1, "frobenius", silent)
    with pytest.raises(InputError, match="sequences: got 'all zero'"):
        fit_polynomial(1, "none", silent, ridge=0.0)
