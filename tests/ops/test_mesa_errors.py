"""What mesa attention refuses, and what it says then."""

import pytest
import torch

from mesascope.errors import InputError
from mesascope.ops import mesa_attention, mesa_attention_map

pytestmark = pytest.mark.usefixtures("unchecked_shapes")

X = torch.ones(2, 4, 3, 5)
RIDGE = torch.ones(3)


@pytest.mark.parametrize("value", [0.0, -0.5, float("nan")])
def test_ridge_must_be_positive(value: float) -> None:
    ridge = torch.tensor([1.0, value, 2.0])
    for attend in (lambda: mesa_attention(X, X, X, ridge), lambda: mesa_attention_map(X, X, ridge)):
        with pytest.raises(InputError, match=rf"ridge: got a smallest value of {value:.3g}, .* greater than 0"):
            attend()


@pytest.mark.parametrize("shape", [(2,), (4,), (2, 2), (5, 2, 3), (1, 2, 3), (3, 1)], ids=str)
def test_ridge_must_broadcast_to_batch_and_heads(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"ridge: got shape \(.*broadcastable to \[B, H\] = \[2, 3\]"):
        mesa_attention(X, X, X, torch.ones(shape))


def test_ridge_does_not_broadcast_the_batch() -> None:
    with pytest.raises(InputError, match=r"ridge: got shape \(2, 3\).* \[1, 3\]"):
        mesa_attention(X[:1], X[:1], X[:1], torch.ones(2, 3))


def test_shapes_must_fit() -> None:
    with pytest.raises(InputError, match=r"q: got \(4, 3, 5\), but it must be of shape \[B, T, H, D\]"):
        mesa_attention(X[0], X[0], X[0], RIDGE)
    with pytest.raises(InputError, match=r"q: got \(2, 4, 3, 0\), .* D > 0"):
        mesa_attention(X[..., :0], X[..., :0], X, RIDGE)
    with pytest.raises(InputError, match=r"k: got \(2, 4, 3, 4\), .* the shape of q \(2, 4, 3, 5\)"):
        mesa_attention(X, X[..., :4], X, RIDGE)
    with pytest.raises(InputError, match=r"v: got \(2, 3, 3, 5\), .* \[2, 4, 3, Dv\]"):
        mesa_attention(X, X, X[:, :3], RIDGE)
    with pytest.raises(InputError, match=r"v: got \(2, 4, 3\), .* \[2, 4, 3, Dv\]"):
        mesa_attention(X, X, X[..., 0], RIDGE)


def test_dtypes_must_agree() -> None:
    with pytest.raises(InputError, match=r"k: got torch.float64, .* dtype of q \(torch.float32\)"):
        mesa_attention(X, X.double(), X, RIDGE)
    with pytest.raises(InputError, match=r"v: got torch.float64, .* dtype of q \(torch.float32\)"):
        mesa_attention(X, X, X.double(), RIDGE)
    with pytest.raises(InputError, match=r"ridge: got torch.float64, .* dtype of q \(torch.float32\)"):
        mesa_attention(X, X, X, RIDGE.double())


def test_a_ridge_lost_in_rounding_is_an_error_with_advice() -> None:
    keys = 1e3 * X
    with pytest.raises(InputError, match=r"ridge: the smallest is 1e-06, too small .* use a larger ridge, .* float64"):
        mesa_attention(keys, keys, X, 1e-6 * RIDGE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_keys_that_are_not_finite_are_an_error(bad: float) -> None:
    keys = X.clone()
    keys[1, 2, 0, 0] = bad
    with pytest.raises(InputError, match=r"k: got values from .* to (nan|inf), but all of them must be finite"):
        mesa_attention(X, keys, X, RIDGE)
