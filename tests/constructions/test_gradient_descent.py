import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesascope.constructions import chebyshev_step_sizes, gradient_descent
from mesascope.errors import InputError

from .oracles import descend, largest_eigenvalue, predict, random_observations, solve_ridge


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 8),
    n_s=st.integers(1, 5),
    step_sizes=st.lists(st.floats(0.01, 0.4), min_size=1, max_size=5),
    ridge=st.sampled_from([0.0, 0.01, 0.3, 2.0]),
)
def test_equals_explicit_gradient_steps(seed, length, n_s, step_sizes, ridge):
    observations = random_observations(seed, 2, length, n_s)
    model = gradient_descent(n_s, step_sizes, ridge=ridge, dtype=torch.float64)
    expected = descend(observations, step_sizes, ridge)
    np.testing.assert_allclose(predict(model, observations), expected, rtol=1e-12, atol=1e-12)


def test_one_layer_per_step_and_two_heads():
    config = gradient_descent(3, [0.1, 0.2, 0.3]).config
    assert (config.num_layers, config.num_heads, config.mlp_dim) == (3, 2, None)


def test_single_step_needs_a_single_head():
    assert gradient_descent(3, [0.1]).config.num_heads == 1


@pytest.mark.parametrize("steps", [4, 8, 16, 32])
def test_chebyshev_steps_approach_ridge_regression_at_the_known_rate(steps):
    ridge = 0.5
    observations = random_observations(steps, 8, 12, 4)
    high = largest_eigenvalue(observations, ridge)
    model = gradient_descent(4, chebyshev_step_sizes(ridge, high, steps), ridge=ridge, dtype=torch.float64)
    solution = solve_ridge(observations, ridge)
    error = np.linalg.norm(predict(model, observations) - solution, axis=-1)
    ratio = (math.sqrt(high / ridge) - 1) / (math.sqrt(high / ridge) + 1)
    # prediction minus solution = -Phi_ridge p(A) s with |p| at most 2 ratio^K / (1 + ratio^(2K)) on the spectrum
    largest_weights = _largest_ridge_weights(observations, ridge)
    bound = 2 * ratio**steps / (1 + ratio ** (2 * steps)) * largest_weights * np.linalg.norm(observations, axis=-1)
    assert (error <= bound + 1e-12).all()


def test_constant_steps_approach_ridge_regression():
    ridge = 0.5
    observations = random_observations(3, 4, 10, 3)
    step_size = 1 / largest_eigenvalue(observations, ridge)
    solution = solve_ridge(observations, ridge)
    errors = []
    for steps in (5, 20, 80):
        model = gradient_descent(3, [step_size] * steps, ridge=ridge, dtype=torch.float64)
        errors.append(np.abs(predict(model, observations) - solution).max())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@given(low=st.floats(1e-3, 1.0), spread=st.floats(1.0, 1e3), steps=st.integers(1, 12))
def test_chebyshev_steps_give_the_chebyshev_polynomial(low, spread, steps):
    high = low * spread
    eigenvalues = np.linspace(low, high, 40)
    step_sizes = np.array(chebyshev_step_sizes(low, high, steps))
    residual = np.prod(1 - step_sizes[:, None] * eigenvalues, axis=0)
    centre, radius = (high + low) / 2, (high - low) / 2
    if radius < 1e-6 * centre:
        np.testing.assert_allclose(residual, 0, atol=1e-6)
        return
    polynomial = np.polynomial.chebyshev.Chebyshev.basis(steps)
    expected = polynomial((centre - eigenvalues) / radius) / polynomial(centre / radius)
    np.testing.assert_allclose(residual, expected, rtol=0, atol=1e-9)


def test_chebyshev_steps_stay_stable_when_there_are_many():
    ridge, steps = 0.1, 150
    observations = random_observations(0, 4, 10, 3)
    step_sizes = chebyshev_step_sizes(ridge, largest_eigenvalue(observations, ridge), steps)
    model = gradient_descent(3, step_sizes, ridge=ridge, dtype=torch.float64)
    np.testing.assert_allclose(predict(model, observations), solve_ridge(observations, ridge), rtol=0, atol=1e-8)


def test_no_steps_is_an_error():
    with pytest.raises(InputError, match="step_sizes: got \\[\\], but it must be at least one step"):
        gradient_descent(3, [])


def test_negative_ridge_is_an_error():
    with pytest.raises(InputError, match="ridge: got -1"):
        gradient_descent(3, [0.1], ridge=-1.0)


def test_step_that_removes_the_query_is_an_error_unless_it_is_first():
    with pytest.raises(InputError, match=r"step_sizes\[1\]: got 0.5, but it must differ from 1 / ridge"):
        gradient_descent(3, [0.1, 0.5], ridge=2.0)
    observations = random_observations(0, 2, 6, 3)
    model = gradient_descent(3, [0.5, 0.1], ridge=2.0, dtype=torch.float64)
    expected = descend(observations, [0.5, 0.1], 2.0)
    np.testing.assert_allclose(predict(model, observations), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0, 3), "low: got 0.0, but it must be greater than 0"),
        ((2.0, 1.0, 3), "high: got 1.0, but it must be at least low"),
        ((1.0, 2.0, 0), "steps: got 0, but it must be at least 1"),
    ],
)
def test_chebyshev_arguments_are_checked(arguments, message):
    with pytest.raises(InputError, match=message):
        chebyshev_step_sizes(*arguments)


def _largest_ridge_weights(observations, ridge):
    norms = np.zeros(observations.shape[:2])
    for row, sequence in enumerate(observations):
        for t in range(len(sequence)):
            past, targets = sequence[:t], sequence[1 : t + 1]
            weights = targets.T @ past @ np.linalg.inv(past.T @ past + ridge * np.eye(sequence.shape[1]))
            norms[row, t] = np.linalg.norm(weights, 2)
    return norms
