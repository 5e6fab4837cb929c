import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesascope.constructions import proposition_1, proposition_1_tokens
from mesascope.errors import InputError
from mesascope.nn import LinearAttention

from .oracles import descend, predict, random_observations


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 9),
    n_s=st.integers(1, 6),
    step_size=st.floats(1e-3, 1.0),
)
def test_equals_one_explicit_gradient_step(seed, length, n_s, step_size):
    observations = random_observations(seed, 2, length, n_s)
    model = proposition_1(n_s, step_size, dtype=torch.float64)
    np.testing.assert_allclose(predict(model, observations), descend(observations, [step_size]), rtol=0, atol=1e-12)


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 9),
    n_s=st.integers(1, 6),
    step_size=st.floats(1e-3, 1.0),
)
def test_equals_one_explicit_gradient_step_from_any_start(seed, length, n_s, step_size):
    observations = random_observations(seed, 2, length, n_s)
    start = 0.5 * np.random.default_rng(seed + 1).normal(size=(n_s, n_s))
    model = proposition_1(n_s, step_size, torch.from_numpy(start), dtype=torch.float64)
    tokens = proposition_1_tokens(torch.from_numpy(observations), torch.from_numpy(start))
    expected = descend(observations, [step_size], initial_weights=start)
    np.testing.assert_allclose(predict(model, observations, tokens), expected, rtol=0, atol=1e-12)


def test_products_are_those_of_the_proposition():
    start = torch.tensor([[0.0, 2.0], [1.0, 0.0]], dtype=torch.float64)
    attention = proposition_1(2, 0.25, start, dtype=torch.float64).blocks[0].attn
    assert isinstance(attention, LinearAttention)
    eye, zero = torch.eye(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)

    def at(block):
        return torch.cat([torch.cat([block.get((i, j), zero) for j in range(4)], 1) for i in range(4)], 0)

    torch.testing.assert_close(attention.QK[0], at({(3, 2): eye}), rtol=0, atol=0)
    torch.testing.assert_close(attention.PV[0], at({(0, 2): 0.25 * eye, (0, 3): -0.25 * start}), rtol=0, atol=0)


def test_default_dtype_is_that_of_default_sequences():
    model = proposition_1(3, 0.1)
    assert model(torch.zeros(1, 4, 12)).dtype == torch.float32


@pytest.mark.usefixtures("unchecked_shapes")
def test_initial_weights_of_another_size_are_named():
    with pytest.raises(InputError, match=r"initial_weights: got \(2, 3\), but it must be of shape .* \(2, 2\)"):
        proposition_1(2, 0.1, torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"initial_weights: got \(3, 3\)"):
        proposition_1_tokens(torch.zeros(1, 4, 2), torch.zeros(3, 3))


def test_size_must_be_positive():
    with pytest.raises(InputError, match="n_s: got 0, but it must be at least 1"):
        proposition_1(0, 0.1)
