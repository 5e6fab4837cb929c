"""Features of queries and keys against loops, and what they refuse."""

import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.nn import DPFP, LayerNorm, UnitNorm
from mesascope.nn.features import apply_features, feature_size

from .mesa_layers import dpfp, unit_norm


@pytest.mark.parametrize("d", [2, 3, 5])
@pytest.mark.parametrize("nu", [1, 2, 3])
def test_dpfp_against_a_loop(nu: int, d: int, generator: torch.Generator) -> None:
    x = torch.randn(2, 3, d, generator=generator, dtype=torch.float64)
    features = DPFP(nu)(x)
    assert features.shape == (2, 3, 2 * d * nu) == (2, 3, DPFP(nu).size(d))
    np.testing.assert_array_equal(features, np.apply_along_axis(dpfp(nu), -1, x.numpy()))


def test_dpfp_by_hand() -> None:
    """x = (2, -3): r = (2, 0, 0, 3); the only neighbours that are both positive are r_4 and r_1."""
    assert DPFP(1)(torch.tensor([2.0, -3.0])).tolist() == [0, 0, 0, 6]
    assert DPFP(2)(torch.tensor([2.0, 3.0])).tolist() == [6, 0, 0, 0, 0, 0, 0, 0]


def test_dpfp_pairs_of_the_authors_code(generator: torch.Generator) -> None:
    """It rolls the other way; inner products, of which linear and mesa attention are made, are the same."""
    q, k = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    rolled = []
    for x in (q, k):
        r = torch.cat([x.relu(), (-x).relu()])
        rolled.append(torch.cat([r * r.roll(j) for j in (1, 2, 3)]))
    assert float(DPFP(3)(q) @ DPFP(3)(k)) == pytest.approx(float(rolled[0] @ rolled[1]), rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_unit_norm(dtype: torch.dtype) -> None:
    x = torch.tensor([[3.0, -4.0], [0.0, 0.0], [300.0, 400.0]], dtype=dtype)
    result = UnitNorm()(x)
    assert result.dtype == dtype
    expected = np.apply_along_axis(unit_norm, -1, x.double().numpy())
    np.testing.assert_allclose(result.double(), expected, rtol=2 * torch.finfo(dtype).eps)


def test_unit_norm_of_a_long_half_vector_does_not_overflow() -> None:
    result = UnitNorm()(torch.full((4,), 60000.0, dtype=torch.float16))
    assert result.tolist() == [0.5] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_layer_norm(dtype: torch.dtype) -> None:
    x = torch.tensor([[3.0, -4.0, 2.0], [0.0, 0.0, 0.0], [300.0, 400.0, 200.0]], dtype=dtype)
    result = LayerNorm(1e-6)(x)
    assert result.dtype == dtype
    wide = x.double().numpy()
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(result.double(), expected, rtol=2 * torch.finfo(dtype).eps)
    with pytest.raises(InputError, match="epsilon: got 0, but it must be greater than 0"):
        LayerNorm(0)


def test_features_are_applied_in_order(generator: torch.Generator) -> None:
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    assert torch.equal(apply_features((), x), x)
    assert torch.equal(apply_features((DPFP(2), UnitNorm()), x), UnitNorm()(DPFP(2)(x)))
    assert not torch.allclose(apply_features((UnitNorm(), DPFP(2)), x), UnitNorm()(DPFP(2)(x)))
    assert feature_size((), 3) == 3
    assert feature_size((UnitNorm(), DPFP(1), DPFP(2)), 3) == 2 * 2 * 6


def test_gradients(generator: torch.Generator) -> None:
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: apply_features((DPFP(2), UnitNorm(), LayerNorm()), x), x)


def test_dpfp_needs_neighbours() -> None:
    with pytest.raises(InputError, match=r"^nu: got 0, but it must be at least 1"):
        DPFP(0)
    assert feature_size((DPFP(3),), 2) == 12
    with pytest.raises(InputError, match=r"^nu: got 3, but it must be at most 1 for keys of 1 coordinates"):
        feature_size((DPFP(3),), 1)
