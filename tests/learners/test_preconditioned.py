"""Learners that replace the inverse by solver steps, against the same recurrences on dense matrices."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.learners import (
    CausalGram,
    ChebyshevRegression,
    ConjugateGradientRegression,
    ExactBounds,
    FixedBounds,
    NeumannRegression,
    PolynomialRegression,
    RichardsonRegression,
    RidgeRegression,
    TraceBounds,
    TunedChebyshevRegression,
    Window,
    chebyshev,
    conjugate_gradients,
    in_context_data,
)
from mesascope.predictor import Predictor
from mesascope.tasks import Sequences, fully_observed_linear, partially_observed_linear

from .conftest import draw

RIDGE = 0.3


def dense_prediction(sequences: Sequences, inverse: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """C_t inverse(A_t - RIDGE I, A_t) x_t from matrices formed one pair at a time."""
    s = sequences.observations.numpy()
    predictions = np.zeros_like(s)
    for b in range(s.shape[0]):
        moments, association = np.zeros((s.shape[2],) * 2), np.zeros((s.shape[2],) * 2)
        for t in range(s.shape[1]):
            if t:
                moments += np.outer(s[b, t - 1], s[b, t - 1])
                association += np.outer(s[b, t], s[b, t - 1])
            full = moments + RIDGE * np.eye(s.shape[2])
            predictions[b, t] = association @ inverse(moments, full) @ s[b, t]
    return predictions


def neumann_inverse(moments: np.ndarray, full: np.ndarray) -> np.ndarray:
    c = np.trace(moments) + RIDGE
    step = np.eye(len(full)) - full / c
    return sum(np.linalg.matrix_power(step, j) for j in range(5)) / c


def momentum_inverse(full: np.ndarray, alphas: tuple[float, ...], betas: tuple[float, ...]) -> np.ndarray:
    old, inverse = np.zeros_like(full), np.zeros_like(full)
    for alpha, beta in zip(alphas, betas, strict=True):
        update = alpha * (np.eye(len(full)) - full @ inverse) + beta * (inverse - old)
        old, inverse = inverse, inverse + update
    return inverse


def chebyshev_inverse(full: np.ndarray, low: float, high: float, steps: int) -> np.ndarray:
    """(I - T_K(..A..) / T_K(..0..)) A^-1 from the definition of the Chebyshev polynomial."""
    values, vectors = np.linalg.eigh(full)
    polynomial = np.polynomial.chebyshev.Chebyshev.basis(steps)
    residual = polynomial((high + low - 2 * values) / (high - low)) / polynomial((high + low) / (high - low))
    return vectors * ((1 - residual) / values) @ vectors.T


ALPHAS, BETAS = (0.3, 0.11, 0.25, -0.04), (0.0, 0.2, -0.1, 0.3)


@pytest.mark.parametrize(
    ("learner", "inverse"),
    [
        (NeumannRegression(4, RIDGE), neumann_inverse),
        (
            RichardsonRegression((0.05, 0.02, 0.01), RIDGE),
            lambda _, a: momentum_inverse(a, (0.05, 0.02, 0.01), (0.0,) * 3),
        ),
        (
            ChebyshevRegression(3, RIDGE, FixedBounds(0.2, 60.0)),
            lambda _, a: chebyshev_inverse(a, 0.2, 60.0, 4),
        ),
        (
            ChebyshevRegression(3, RIDGE, TraceBounds()),
            lambda m, a: chebyshev_inverse(a, RIDGE, np.trace(m) + RIDGE, 4) if m.any() else a,
        ),
        (
            ChebyshevRegression(3, RIDGE, ExactBounds()),
            lambda m, a: chebyshev_inverse(a, *np.linalg.eigvalsh(a)[[0, -1]], 4) if m.any() else a,
        ),
        (
            TunedChebyshevRegression((0.05, 0.02, 0.03, -0.01), BETAS, "none", RIDGE),
            lambda _, a: momentum_inverse(a, (0.05, 0.02, 0.03, -0.01), BETAS),
        ),
        (
            TunedChebyshevRegression(ALPHAS, BETAS, "frobenius", RIDGE),
            lambda _, a: momentum_inverse(a / np.linalg.norm(a), ALPHAS, BETAS) / np.linalg.norm(a),
        ),
        (
            PolynomialRegression((0.1, -0.02, 0.003), "none", RIDGE),
            lambda _, a: 0.1 * np.eye(10) - 0.02 * a + 0.003 * a @ a,
        ),
        (
            PolynomialRegression((2.0, -5.0, 3.0), "frobenius", RIDGE),
            lambda _, a: (2 * np.eye(10) - 5 * a / (f := np.linalg.norm(a)) + 3 * a @ a / f**2) / f,
        ),
        (ConjugateGradientRegression(60, ridge=RIDGE), lambda _, a: np.linalg.inv(a)),
    ],
    ids=lambda part: part.name if isinstance(part, Predictor) else "",
)
def test_equals_the_same_recurrence_on_dense_matrices(
    few: Sequences, learner: Predictor, inverse: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    np.testing.assert_allclose(learner.predict(few), dense_prediction(few, inverse), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    "learner",
    [
        NeumannRegression(6000, 1.0),
        NeumannRegression(1500, 1.0, ExactBounds()),
        ChebyshevRegression(250, 1.0),
        ChebyshevRegression(120, 1.0, ExactBounds()),
        RichardsonRegression((0.039,) * 800, 1.0),
        ConjugateGradientRegression(12, ridge=1.0),
    ],
    ids=lambda learner: learner.name,
)
def test_enough_steps_reach_ridge_regression(few: Sequences, learner: Predictor) -> None:
    few = few.select(slice(0, 3))
    torch.testing.assert_close(learner.predict(few), RidgeRegression(1.0).predict(few), rtol=0, atol=1e-9)


def test_conjugate_gradients_are_exact_after_d_steps_and_not_before() -> None:
    sequences = draw(fully_observed_linear(4, 30), 7, 3)
    exact = RidgeRegression(1.0).predict(sequences)
    errors = [(ConjugateGradientRegression(k, ridge=1.0).predict(sequences) - exact).abs().max() for k in (2, 3, 4)]
    assert errors[0] > errors[1] > 1e-2
    assert errors[2] < 1e-13


def test_rounding_costs_conjugate_gradients_two_steps_at_d_of_ten(few: Sequences) -> None:
    """In 30 digits ten steps are exact to 1e-20; float64 loses the orthogonality of its directions a little earlier."""
    exact = RidgeRegression(1.0).predict(few)
    errors = [(ConjugateGradientRegression(k, ridge=1.0).predict(few) - exact).abs().max() for k in (9, 12)]
    assert errors[0] > 1e-3
    assert errors[1] < 1e-13


def test_conjugate_gradients_at_time_t_need_t_minus_one_steps(few: Sequences) -> None:
    """A_t has at most t different eigenvalues, one of them the ridge, on which C_t is blind."""
    exact = RidgeRegression(1e-3).predict(few)
    for steps in (2, 3, 5):
        difference = (ConjugateGradientRegression(steps).predict(few) - exact).abs().amax((0, 2))
        assert difference[:steps].max() < 1e-6
        assert difference[steps + 3] > 1e-3


def test_conjugate_gradients_beat_every_fixed_schedule_in_energy(few: Sequences) -> None:
    """Of all polynomials of a degree they minimise v^T A v, v = x~ - A^-1 x; the error of the prediction may be larger.

    Predictions do not show v itself, so the solvers are run on the matrices of the sequences.
    """
    keys, queries = in_context_data(few).keys, few.observations
    dense = torch.einsum("btd,bte->btde", keys, keys).cumsum(1) + RIDGE * torch.eye(10, dtype=torch.float64)
    exact = torch.linalg.solve(dense, queries)
    gram = CausalGram(keys, RIDGE)

    def energy(solved: torch.Tensor) -> torch.Tensor:
        error = solved - exact
        return torch.einsum("btd,btde,bte->bt", error, dense, error)

    for steps in (1, 2, 4, 6):
        adaptive = energy(conjugate_gradients(gram.apply, queries, steps))
        for bounds in (TraceBounds(), ExactBounds()):
            fixed = energy(chebyshev(gram.apply, queries, steps, *bounds(gram)))
            # both are exact at the first time steps, where only rounding is compared
            assert bool((adaptive <= fixed * (1 + 1e-9) + 1e-14).all())
            assert adaptive.mean() < 0.9 * fixed.mean()


def test_sequences_of_zeros_give_zeros_not_nan(few: Sequences) -> None:
    silent = replace(few, observations=torch.zeros_like(few.observations))
    for learner in (
        NeumannRegression(3),
        ChebyshevRegression(3),
        ChebyshevRegression(3, bounds=ExactBounds()),
        TunedChebyshevRegression((1.0, 1.0), (0.0, 0.1), "frobenius"),
        PolynomialRegression((1.0, 1.0), "frobenius"),
        ConjugateGradientRegression(5),
    ):
        assert not learner.predict(silent).any(), learner.name


def test_windows_of_partial_observation() -> None:
    """35 regressors of a condition number in the hundreds: rounding costs about ten steps more than 35."""
    sequences = draw(partially_observed_linear(), 20, 0)
    exact = RidgeRegression(1.0, Window(7)).predict(sequences)
    early, late = (ConjugateGradientRegression(k, 0.0, 1.0, Window(7)).predict(sequences) for k in (8, 45))
    torch.testing.assert_close(late, exact, rtol=0, atol=1e-9)
    assert (early - exact).abs().max() > 0.1


@pytest.mark.usefixtures("unchecked_shapes")
def test_messages_name_the_argument() -> None:
    with pytest.raises(InputError, match="degree: got -1"):
        NeumannRegression(-1)
    with pytest.raises(InputError, match=r"ridge: got 0.0, but it must be greater than 0"):
        ChebyshevRegression(2, ridge=0.0)
    with pytest.raises(InputError, match=r"low: got 0.0"):
        FixedBounds(0.0, 1.0)
    with pytest.raises(InputError, match=r"high: got 1.0, but it must be at least low"):
        FixedBounds(2.0, 1.0)
    with pytest.raises(InputError, match=r"momenta: .*as many as step_sizes"):
        TunedChebyshevRegression((1.0,), (0.0, 0.0))
    with pytest.raises(InputError, match="scale: got 'trace'"):
        PolynomialRegression((1.0,), "trace")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"ridge: got 0.0, but it must be greater than 0 when scale is 'frobenius'"):
        PolynomialRegression((1.0,), "frobenius", 0.0)
    with pytest.raises(InputError, match="coefficients: got"):
        PolynomialRegression(())
    with pytest.raises(InputError, match="step_sizes: got"):
        RichardsonRegression(())
    with pytest.raises(InputError, match="steps: got 0"):
        ConjugateGradientRegression(0)
