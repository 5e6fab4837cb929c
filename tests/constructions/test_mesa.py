import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesascope.constructions import ridge_regression
from mesascope.errors import InputError

from .oracles import predict, random_observations, solve_ridge


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 9),
    n_s=st.integers(1, 5),
    ridge=st.floats(0.01, 100.0),
)
def test_equals_streaming_ridge_regression(seed, length, n_s, ridge):
    observations = random_observations(seed, 2, length, n_s)
    model = ridge_regression(n_s, ridge, dtype=torch.float64)
    np.testing.assert_allclose(predict(model, observations), solve_ridge(observations, ridge), rtol=0, atol=1e-10)


@pytest.mark.parametrize("ridge", [1e-6, 0.1, 19.999, 20.0, 20.000000003, 500.0])
def test_ridge_is_exact_in_float64(ridge):
    (attention,) = (block.attn for block in ridge_regression(2, ridge, dtype=torch.float64).blocks)
    np.testing.assert_allclose(attention.ridge.detach().numpy(), [ridge], rtol=1e-12)


def test_ridge_must_be_positive():
    with pytest.raises(InputError, match=r"ridge: got 0\.0, but it must be greater than 0"):
        ridge_regression(3, 0.0)
