"""What mesa attention refuses, and what it says then."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from mesascope.errors import InputError
from mesascope.ops import MesaState, linear_attention, mesa_attention, mesa_attention_map, softmax_attention
from mesascope.ops.mesa.approximate import (
    mesa_attention_chebyshev,
    mesa_attention_conjugate_gradients,
    mesa_attention_neumann,
)

from .mesa_cases import BACKENDS

pytestmark = pytest.mark.usefixtures("unchecked_shapes")

X = torch.ones(2, 4, 3, 5)
RIDGE = torch.ones(3)
GATE = torch.zeros(2, 4, 3)


def step(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor, **gates: Any) -> Tensor:
    state = MesaState("constant", torch.zeros(2, 3, 5, 5), torch.zeros(2, 3, 5, 5))
    gates = {name: gate[:, 0] for name, gate in gates.items()}
    return state.step(q[:, 0], k[:, 0], v[:, 0], ridge, **gates)[0]


ENTRANCES = {
    **{name: lambda *x, name=name, **gates: mesa_attention(*x, backend=name, **gates) for name in BACKENDS},
    "map": lambda q, k, v, ridge, **gates: mesa_attention_map(q, k, ridge, **gates),
    "step": step,
    "neumann": lambda *x, **gates: mesa_attention_neumann(*x, steps=2, **gates),
    "chebyshev": lambda *x, **gates: mesa_attention_chebyshev(*x, steps=2, **gates),
    "conjugate gradients": mesa_attention_conjugate_gradients,
}
entrances = pytest.mark.parametrize("attend", ENTRANCES.values(), ids=ENTRANCES)


@entrances
@pytest.mark.parametrize("value", [0.0, -0.5, math.nan])
def test_ridge_must_be_positive(value: float, attend: Any) -> None:
    with pytest.raises(InputError, match=rf"ridge: got a smallest value of {value:.3g}, .* greater than 0"):
        attend(X, X, X, torch.tensor([1.0, value, 2.0]))


@pytest.mark.parametrize("regularizer", ["initial", "constant"])
def test_ridge_must_be_positive_beside_a_state_too(regularizer: Any) -> None:
    sizes = {"batch": X.shape[0], "heads": X.shape[2], "key_dim": X.shape[3], "value_dim": X.shape[3]}
    state = MesaState.initial(RIDGE, **sizes, regularizer=regularizer)
    with pytest.raises(InputError, match=r"ridge: got a smallest value of 0, .* greater than 0"):
        mesa_attention(X, X, X, 0 * RIDGE, state=state, regularizer=regularizer)


@entrances
def test_gates_must_be_on_their_side_of_zero(attend: Any) -> None:
    with pytest.raises(InputError, match=r"write: got a smallest value of -0.1, but it must be at least 0"):
        attend(X, X, X, RIDGE, write=GATE - 0.1)
    with pytest.raises(InputError, match=r"write: got a smallest value of nan"):
        attend(X, X, X, RIDGE, write=GATE * math.nan)
    with pytest.raises(InputError, match=r"log_forget: got a largest value of 0.1, but it must be at most 0"):
        attend(X, X, X, RIDGE, log_forget=GATE + 0.1)
    with pytest.raises(InputError, match=r"log_forget: got a largest value of nan"):
        attend(X, X, X, RIDGE, log_forget=GATE * math.nan)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", range(3), ids=["q", "k", "v"])
def test_operands_must_be_finite(position: int, bad: float) -> None:
    operands = [X.clone(), X.clone(), X.clone()]
    operands[position][1, 2, 0, 0] = bad
    with pytest.raises(InputError, match=rf"{'qkv'[position]}: got values from .*, but all of them must be finite"):
        mesa_attention(*operands, RIDGE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["q", "k"])
def test_operands_must_be_finite_where_nothing_comes_out(name: str, backend: Any) -> None:
    operands = {"q": X, "k": X, "v": X[..., :0], name: X * math.nan}
    with pytest.raises(InputError, match=f"{name}: got values from nan to nan"):
        mesa_attention(**operands, ridge=RIDGE, backend=backend)


def test_gates_and_ridge_must_be_finite() -> None:
    with pytest.raises(InputError, match=r"log_forget: got values from -inf to -inf, but all of them must be finite"):
        mesa_attention(X, X, X, RIDGE, log_forget=GATE - math.inf)
    with pytest.raises(InputError, match=r"write: got values from inf to inf"):
        mesa_attention(X, X, X, RIDGE, write=GATE + math.inf)
    with pytest.raises(InputError, match=r"ridge: got values from inf to inf"):
        mesa_attention(X, X, X, RIDGE * math.inf)


def test_a_sum_that_overflows_is_not_taken_for_an_infinity() -> None:
    v = torch.full((1, 4, 1, 2), 3e38)
    output = mesa_attention(1e-3 * v / 3e38, v / 3e38, v, torch.ones(1))
    assert bool(output.isfinite().all())


@pytest.mark.parametrize("shape", [(2,), (4,), (2, 2), (5, 2, 3), (1, 2, 3), (3, 1), (1, 1, 1, 1)], ids=str)
def test_shape_of_the_ridge(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"ridge: got shape \(.*\[B, H\] = \[2, 3\], .* \[B, H, D\] = \[2, 3, 5\]"):
        mesa_attention(X, X, X, torch.ones(shape))


def test_ridge_does_not_broadcast_the_batch() -> None:
    with pytest.raises(InputError, match=r"ridge: got shape \(2, 3\).* \[1, 3\]"):
        mesa_attention(X[:1], X[:1], X[:1], torch.ones(2, 3))


@pytest.mark.parametrize(("batch", "heads", "d", "shape"), [(3, 3, 3, (3, 3)), (2, 2, 1, (2, 1)), (2, 2, 2, (2, 2))])
def test_a_ridge_that_reads_both_ways_is_refused(batch: int, heads: int, d: int, shape: tuple[int, int]) -> None:
    x, ridge = torch.ones(batch, 4, heads, d), torch.rand(shape) + 0.1
    with pytest.raises(InputError, match=r"can be read as \[B, H\] and as \[H, D\]; write it with three dimensions"):
        mesa_attention(x, x, x, ridge)
    assert mesa_attention(x, x, x, ridge[None]).shape == x.shape
    assert mesa_attention(x, x, x, ridge[..., None]).shape == x.shape


def test_a_ridge_that_reads_both_ways_and_means_the_same_is_fine() -> None:
    x = torch.ones(1, 4, 1, 1)
    assert mesa_attention(x, x, x, torch.ones(1, 1)).shape == x.shape


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
    with pytest.raises(InputError, match=r"log_forget: got \(2, 4, 1\), .* \[B, T, H\] = \(2, 4, 3\)"):
        mesa_attention(X, X, X, RIDGE, log_forget=GATE[..., :1])
    with pytest.raises(InputError, match=r"write: got \(2, 3, 3\), .* \[B, T, H\] = \(2, 4, 3\)"):
        mesa_attention(X, X, X, RIDGE, write=GATE[:, 1:])


@pytest.mark.parametrize("attend", [linear_attention, softmax_attention], ids=["linear", "softmax"])
def test_linear_and_softmax_attention_read_nothing_beyond_their_operands(attend: Any) -> None:
    with pytest.raises(InputError, match=r"q: got \(4, 3, 5\), but it must be of shape \[B, T, H, D\]"):
        attend(X[0], X[0], X[0])
    with pytest.raises(InputError, match=r"q: got \(2, 4, 3, 0\), .* D > 0"):
        attend(X[..., :0], X[..., :0], X)
    for k in (X[..., :4], X[:, :3], X[:1], X[:, :, :2]):
        with pytest.raises(InputError, match=r"k: got \(.*\), .* the shape of q \(2, 4, 3, 5\)"):
            attend(X, k, X)
    for v in (X[:, :3], X[:1], X[:, :, :2], X[..., 0]):
        with pytest.raises(InputError, match=r"v: got \(.*\), .* \[2, 4, 3, Dv\]"):
            attend(X, X, v)
    for empty in (X[:0], X[:, :0], X[:, :, :0]):
        assert attend(empty, empty, empty[..., :2]).shape == (*empty.shape[:3], 2)


def test_types_and_devices_must_agree() -> None:
    with pytest.raises(InputError, match=r"k: got torch.float64, .* dtype of q \(torch.float32\)"):
        mesa_attention(X, X.double(), X, RIDGE)
    with pytest.raises(InputError, match=r"v: got torch.bfloat16, .* dtype of q \(torch.float32\)"):
        mesa_attention(X, X, X.bfloat16(), RIDGE)
    with pytest.raises(InputError, match=r"ridge: got torch.float64, .* dtype of q \(torch.float32\)"):
        mesa_attention(X, X, X, RIDGE.double())
    with pytest.raises(InputError, match=r"write: got torch.float64, .* dtype of q \(torch.bfloat16\)"):
        mesa_attention(X.bfloat16(), X.bfloat16(), X.bfloat16(), RIDGE, write=GATE.double())
    with pytest.raises(InputError, match=r"q: got torch.int64, but it must be a floating-point tensor"):
        mesa_attention(X.long(), X.long(), X.long(), RIDGE)
    with pytest.raises(InputError, match=r"k: got 'meta', but it must be on the device of q \(cpu\)"):
        mesa_attention(X, X.to("meta"), X, RIDGE)


@pytest.mark.parametrize("attend", [linear_attention, softmax_attention], ids=["linear", "softmax"])
def test_types_and_devices_of_linear_and_softmax_attention_must_agree(attend: Any) -> None:
    with pytest.raises(InputError, match=r"k: got 'meta', .* device of q \(cpu\)"):
        attend(X, X.to("meta"), X)
    with pytest.raises(InputError, match=r"k: got 'cpu', .* device of q \(meta\)"):
        attend(X.to("meta"), X, X)
    with pytest.raises(InputError, match=r"v: got torch.float64, .* dtype of q \(torch.float32\)"):
        attend(X, X, X.double())
    assert attend(*[X.to("meta")] * 3).shape == X.shape
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(X.bfloat16(), X, X).shape == X.shape
        with pytest.raises(InputError, match=r"k: got torch.float64, .* dtype of q \(torch.float32\)"):
            attend(X, X.double(), X)
    with pytest.raises(InputError, match=r"q: got torch.int64, .* floating-point"):
        attend(*[X.long()] * 3)


@pytest.mark.parametrize(
    "attend", [mesa_attention, linear_attention, softmax_attention], ids=["mesa", "linear", "softmax"]
)
@pytest.mark.parametrize("position", range(3), ids=["q", "k", "v"])
def test_operands_must_be_tensors(position: int, attend: Any) -> None:
    operands: list[Any] = [X, X, X]
    operands[position] = None
    ridge = [RIDGE] if attend is mesa_attention else []
    with pytest.raises(InputError, match=f"{'qkv'[position]}: got None, but it must be a tensor"):
        attend(*operands, *ridge)


def test_operands_of_a_step_must_be_tensors() -> None:
    state, x = MesaState.initial(RIDGE, batch=2, heads=3, key_dim=5, value_dim=5), X[:, 0]
    for name, bad in (("q", None), ("k", None), ("v", None), ("write", 0.5)):
        operands: dict[str, Any] = {"q": x, "k": x, "v": x, name: bad}
        with pytest.raises(InputError, match=f"{name}: got {bad}, but it must be a tensor"):
            state.step(**operands)
    with pytest.raises(InputError, match=r"ridge: got 1.0, but it must be a tensor"):
        MesaState.initial(1.0, batch=2, heads=3, key_dim=5, value_dim=5)  # type: ignore[arg-type]


def test_a_ridge_gates_and_ends_must_be_tensors() -> None:
    unknown: Any = None
    with pytest.raises(InputError, match="ridge: got None, but it must be a tensor"):
        mesa_attention(X, X, X, unknown)
    for name in ("log_forget", "write"):
        with pytest.raises(InputError, match=rf"{name}: got 0.5, but it must be a tensor"):
            mesa_attention(X, X, X, RIDGE, **{name: 0.5})
    ends: Any = [0, 4]
    with pytest.raises(InputError, match="cu_seqlens: got 'list', but it must be a tensor"):
        mesa_attention(X[:1], X[:1], X[:1], RIDGE, cu_seqlens=ends)


def test_misspelt_names_are_corrected() -> None:
    with pytest.raises(InputError, match=r"regularizer: got 'const', .* did you mean 'constant'\?"):
        mesa_attention(X, X, X, RIDGE, regularizer="const")
    with pytest.raises(InputError, match=r"backend: got 'chunk', .* did you mean 'chunked'\?"):
        mesa_attention(X, X, X, RIDGE, backend="chunk")


def test_a_state_must_fit() -> None:
    state = MesaState.initial(RIDGE, batch=2, heads=3, key_dim=5, value_dim=5)
    with pytest.raises(InputError, match=r"state: its regularizer is 'initial', but 'constant' was asked for"):
        mesa_attention(X, X, X, RIDGE, state=state, regularizer="constant")
    with pytest.raises(InputError, match=r"state.matrix: got \(2, 3, 5, 5\), but it must be of shape \(1, 3, 5, 5\)"):
        mesa_attention(X[:1], X[:1], X[:1], RIDGE, state=state)
    with pytest.raises(InputError, match=r"state.association: got \(2, 3, 5, 5\), but .* \(2, 3, 4, 5\)"):
        mesa_attention(X, X, X[..., :4], RIDGE, state=state)
    with pytest.raises(InputError, match=r"state.matrix: got torch.float64, but it must be torch.float32"):
        mesa_attention(X, X, X, RIDGE, state=state.to(torch.float64))
    with pytest.raises(InputError, match=r"state.matrix: got 'meta', but it must be on the device of k \(cpu\)"):
        mesa_attention(X, X, X, RIDGE, state=state.to("meta"))
    infinite = MesaState("initial", state.matrix * math.inf, state.association)
    with pytest.raises(InputError, match=r"state.matrix: got 'values that are NaN or infinite'"):
        mesa_attention(X, X, X, RIDGE, state=infinite)
    changed = MesaState("initial", -state.matrix, state.association)
    with pytest.raises(InputError, match=r"state: its inverse matrix is not positive definite in torch.float32"):
        mesa_attention(X, X, X, RIDGE, state=changed)


def test_an_initial_state_needs_a_ridge_and_sizes() -> None:
    sizes = {"batch": 2, "heads": 3, "key_dim": 4, "value_dim": 5}
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"ridge: got .* but (it|all of them) must be"):
            MesaState.initial(value * torch.ones(3), **sizes)
    with pytest.raises(InputError, match=r"ridge: got torch.int64, .* floating-point"):
        MesaState.initial(torch.ones(3, dtype=torch.int64), **sizes)
    for name, smallest in (("batch", 0), ("heads", 0), ("key_dim", 1), ("value_dim", 0)):
        with pytest.raises(InputError, match=rf"{name}: got {smallest - 1}, .* at least {smallest}"):
            MesaState.initial(torch.ones(()), **(sizes | {name: smallest - 1}))


def test_a_step_needs_one_token_and_what_its_state_lacks() -> None:
    state = MesaState.initial(RIDGE, batch=2, heads=3, key_dim=5, value_dim=5, regularizer="constant")
    with pytest.raises(InputError, match=r"q: got \(2, 4, 3, 5\), but it must be of shape \[B, H, D\]"):
        state.step(X, X, X, RIDGE)
    for name, bad in (("k", X[:, 0, :, :4]), ("v", X[:1, 0]), ("write", GATE[:, :2]), ("log_forget", GATE)):
        operands = {"q": X[:, 0], "k": X[:, 0], "v": X[:, 0], name: bad}
        shape = re.escape(str(tuple(bad.shape)))
        with pytest.raises(
            InputError, match=rf"{name}: got {shape}, .* of (the shape of q|shape \[2, 3, Dv\]|shape \[B, H\])"
        ):
            state.step(**operands, ridge=RIDGE)
    with pytest.raises(InputError, match=r'ridge: got None, but a state of regularizer "constant" needs it'):
        state.step(X[:, 0], X[:, 0], X[:, 0])


def test_sequence_ends_must_divide_the_tokens() -> None:
    x = X[:1]

    def attend(*ends: float, operand: Tensor = x) -> Tensor:
        return mesa_attention(operand, operand, operand, RIDGE, cu_seqlens=torch.tensor(ends))

    with pytest.raises(InputError, match=r"q: got \(2, 4, 3, 5\), but it must be of one row, B = 1"):
        attend(0, 4, operand=X)
    with pytest.raises(InputError, match=r"cu_seqlens: got torch.float32, but it must be integers"):
        attend(0.0, 4.0)
    with pytest.raises(InputError, match=r"cu_seqlens: got \(1,\), but it must be of shape \[N \+ 1\]"):
        attend(4)
    with pytest.raises(InputError, match=r"cu_seqlens: got '1 first', but it must be 0 first"):
        attend(1, 4)
    with pytest.raises(InputError, match=r"cu_seqlens: got '3 last', but it must be T = 4 last"):
        attend(0, 3)
    with pytest.raises(InputError, match=r"cu_seqlens: got \[0, 3, 2, 4\], but it must be increasing"):
        attend(0, 3, 2, 4)
