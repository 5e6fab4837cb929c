"""What mesa layers refuse, and what they say then."""

from typing import Any

import pytest
import torch

from mesascope.errors import InputError
from mesascope.nn import DPFP, Mesa, MesaAttention, MesaLayerState
from mesascope.ops import MesaState

from .mesa_layers import HEADS, KEY, WIDTH, layer

pytestmark = pytest.mark.usefixtures("unchecked_shapes")

X = torch.ones(2, 4, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(2, 4, 5), (4, WIDTH), (2, 2, 4, WIDTH)], ids=str)
def test_inputs(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^x: got \(.*\), but it must be of shape \[B, T, 6\]"):
        layer("everything")(torch.ones(shape, dtype=torch.float64))
    with pytest.raises(InputError, match=r"^x: got \(2, 4, 6\), but it must be of shape \[B, 6\]"):
        layer("plain").step(X, layer("plain").initial_state(2))


def test_positions() -> None:
    with pytest.raises(InputError, match=r"^positions: got None, .* of shape \[T, position_dim\] = \(4, 2\)"):
        layer("plain", position_dim=2)(X)
    with pytest.raises(InputError, match=r"^positions: got \(3, 2\), .* = \(4, 2\)"):
        layer("plain", position_dim=2)(X, torch.ones(3, 2))
    with pytest.raises(InputError, match=r"^positions: got \(4, 2\), .* None, for position_dim is 0"):
        layer("plain")(X, torch.ones(4, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 1), "width: got 0"),
        ((1, 0, 1), "num_heads: got 0"),
        ((1, 1, -1), "key_dim: got -1"),
        ((4, 1, 1, Mesa(features=(DPFP(3),))), "nu: got 3, but it must be at most 1 for keys of 1"),
    ],
)
def test_sizes(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError) as error:
        MesaAttention(*arguments)
    assert str(error.value).startswith(message)


def test_states() -> None:
    plain, shifted = layer("plain"), layer("previous key")
    with pytest.raises(InputError, match=r"^state\.previous_key: got None, .* of shape \(2, 3, 4\)"):
        shifted(X, state=plain.initial_state(2))
    with pytest.raises(InputError, match=r"^state\.previous_key: got \(2, 3, 4\), but it must be None"):
        plain(X, state=shifted.initial_state(2))
    with pytest.raises(InputError, match=r"^state\.previous_key: got \(3, 3, 4\), .* of shape \(2, 3, 4\)"):
        shifted.step(X[:, 0], shifted.initial_state(3))
    with pytest.raises(InputError, match=r"^state\.matrix: got \(3, 3, 4, 4\)"):
        plain(X, state=plain.initial_state(3))
    with pytest.raises(InputError, match=r"^state: its regularizer is 'initial'"):
        layer("constant")(X, state=plain.initial_state(2))
    ridge = torch.ones(HEADS, dtype=torch.float64)
    other = MesaState.initial(ridge, batch=2, heads=HEADS, key_dim=KEY, value_dim=5)
    with pytest.raises(InputError, match=r"^state\.association: got \(2, 3, 5, 4\)"):
        plain.step(X[:, 0], MesaLayerState(other, None))
    with pytest.raises(InputError, match=r"^batch: got -1, but it must be at least 0"):
        plain.initial_state(-1)


def test_a_map_does_not_contain_a_state() -> None:
    plain = layer("plain")
    with pytest.raises(InputError, match=r"^record: got a function, but it must be None with a state"):
        plain(X, None, lambda name, value: None, state=plain.initial_state(2))


@pytest.mark.parametrize("name", ["forget", "write"])
def test_gates_are_not_forgotten(name: str) -> None:
    gated = layer(name)
    q, k, v = gated.project(X)
    with pytest.raises(InputError, match=r"^attend: got a layer with gates, .* use forward or attention_map"):
        gated.attend(q, k, v)
    with pytest.raises(InputError, match=r"^pattern: got a layer with gates"):
        gated.pattern(q, k)


def test_a_ridge_lost_in_rounding() -> None:
    attention = MesaAttention(WIDTH, HEADS, KEY, Mesa(1e-30))
    with pytest.raises(InputError, match=r"^ridge: the smallest is 1e-30, too small for keys of this size"):
        attention(X.float())
