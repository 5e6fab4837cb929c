import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesascope.constructions import proposition_1, proposition_2
from mesascope.errors import InputError

from .oracles import largest_eigenvalue, predict, random_observations, second_order_richardson, solve_ridge

coefficients = st.lists(st.tuples(st.floats(0.01, 0.4), st.floats(-0.5, 0.9)), max_size=5)


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 8),
    n_s=st.integers(1, 5),
    schedule=coefficients,
    ridge=st.sampled_from([0.0, 0.01, 1.0]),
)
def test_equals_the_iteration(seed, length, n_s, schedule, ridge):
    observations = random_observations(seed, 2, length, n_s)
    alphas, betas = [alpha for alpha, _ in schedule], [beta for _, beta in schedule]
    model = proposition_2(n_s, alphas, betas, ridge, dtype=torch.float64)
    expected = second_order_richardson(observations, alphas, betas, ridge)
    np.testing.assert_allclose(predict(model, observations), expected, rtol=1e-10, atol=1e-10)


def test_momentum_approaches_ridge_regression():
    ridge = 0.2
    observations = random_observations(1, 4, 10, 3)
    low, high = ridge**0.5, largest_eigenvalue(observations, ridge) ** 0.5
    alpha, beta = 4 / (high + low) ** 2, ((high - low) / (high + low)) ** 2
    solution = solve_ridge(observations, ridge)
    errors = []
    for steps in (10, 30, 90):
        model = proposition_2(3, [alpha] * steps, [beta] * steps, ridge, dtype=torch.float64)
        errors.append(np.abs(predict(model, observations) - solution).max())
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-9


def test_scaled_neumann_series_approaches_ridge_regression():
    ridge = 0.5
    observations = random_observations(2, 4, 8, 3)
    bound = largest_eigenvalue(observations, ridge)
    # x <- (I - A/c) x + b/c is Richardson with step 1/c
    model = proposition_2(3, [1 / bound] * 200, [0.0] * 200, ridge, dtype=torch.float64)
    np.testing.assert_allclose(predict(model, observations), solve_ridge(observations, ridge), rtol=0, atol=1e-9)


def test_first_momentum_has_no_effect():
    observations = random_observations(4, 2, 6, 3)
    at_rest = proposition_2(3, [0.1, 0.2], [0.0, 0.5], 0.1, dtype=torch.float64)
    moving = proposition_2(3, [0.1, 0.2], [0.9, 0.5], 0.1, dtype=torch.float64)
    np.testing.assert_array_equal(predict(at_rest, observations), predict(moving, observations))


def test_without_preconditioning_it_is_one_gradient_step():
    observations = random_observations(5, 2, 6, 3)
    none = proposition_2(3, [], [], 0.1, dtype=torch.float64)
    step = proposition_1(3, 1.0, dtype=torch.float64)
    np.testing.assert_allclose(predict(none, observations), predict(step, observations), rtol=0, atol=1e-14)


def test_schedules_of_different_length_are_an_error():
    with pytest.raises(InputError, match=r"betas: .* of the length of alphas \(2\)"):
        proposition_2(3, [0.1, 0.1], [0.0], 0.1)


def test_negative_ridge_is_an_error():
    with pytest.raises(InputError, match=r"ridge: got -0\.1, but it must be at least 0"):
        proposition_2(3, [0.1], [0.0], -0.1)
