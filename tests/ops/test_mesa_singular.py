"""Problems that a number type cannot solve: an error that says what to do, and never NaN or garbage."""

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mesascope.errors import InputError
from mesascope.ops import MesaState, mesa_attention, mesa_attention_map, native_available

from .mesa_cases import BACKENDS, FAST

X = torch.ones(2, 4, 3, 5)
RIDGE = torch.ones(3)
chunked = partial(mesa_attention, backend="chunked")


def map_of(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor, **gates: Any) -> Tensor:
    return mesa_attention_map(q, k, ridge, **gates)


def test_a_ridge_lost_in_rounding_is_an_error_with_advice() -> None:
    """Even in float64, in which operands in float32 are computed then."""
    keys = 1e3 * X
    for attend, dtype in itertools.product((chunked, map_of), (torch.float32, torch.float64)):
        operands = [operand.to(dtype) for operand in (keys, keys, X, 1e-10 * RIDGE)]
        with pytest.raises(
            InputError,
            match=r"ridge: the smallest is 1e-10, too small .* torch.float64 \(.*use a larger ridge, smaller keys$",
        ):
            attend(*operands)


@pytest.mark.parametrize("backend", FAST)
def test_float64_solves_what_float32_cannot(backend: str) -> None:
    keys = 1e3 * X
    found = mesa_attention(keys, keys, X, 1e-6 * RIDGE, backend=backend)
    torch.testing.assert_close(found, mesa_attention(keys, keys, X, 1e-6 * RIDGE, backend="reference"))


def test_a_step_whose_ridge_is_lost_in_rounding_is_an_error() -> None:
    initial = MesaState.initial(1e-6 * RIDGE, batch=2, heads=3, key_dim=5, value_dim=5)
    generator = torch.Generator().manual_seed(0)
    keys = 1e3 * torch.randn(2, 3, 5, generator=generator)
    with pytest.raises(InputError, match=r"state: rounding in torch.float32 has destroyed its inverse .* larger ridge"):
        initial.step(keys, keys, X[:, 0])
    constant = MesaState.initial(RIDGE, batch=2, heads=3, key_dim=5, value_dim=5, regularizer="constant")
    with pytest.raises(InputError, match=r"ridge: too small for keys of this size in torch.float32"):
        constant.step(torch.randn(2, 3, 5, generator=generator), keys, X[:, 0], 1e-6 * RIDGE)


def forgetting(dtype: torch.dtype, time: int = 600) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys in one direction of a plane; the other one is only forgotten."""
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(1, time, 1, 1, generator=generator).to(dtype) * torch.tensor(DIRECTION, dtype=dtype)
    q, v = torch.randn(1, time, 1, 2, generator=generator), torch.randn(1, time, 1, 2, generator=generator)
    return q.to(dtype), k, v.to(dtype), torch.full((1, time, 1), math.log(0.9), dtype=dtype)


DIRECTION = [0.6, 0.8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_winding_up_is_an_error_before_it_is_wrong(dtype: torch.dtype) -> None:
    q, k, v, log_forget = forgetting(dtype)
    ridge = torch.ones(1, dtype=dtype)
    message = r'log_forget: so much was forgotten, .* use regularizer="constant", forget less'
    for attend in (chunked, partial(mesa_attention, backend="reference"), map_of):
        with pytest.raises(InputError, match=message):
            attend(q, k, v, ridge, log_forget=log_forget)
    # only what is along the keys matters for the output: a problem with D = 1, which does not wind up
    direction = torch.tensor(DIRECTION, dtype=torch.float64)[:, None]
    along = [operand.double() @ direction for operand in (q, k)]
    exact = mesa_attention(*along, v.double(), ridge.double(), log_forget=log_forget.double())
    scale = float(exact.abs().max())
    outputs: list[Tensor] = []
    with pytest.raises(InputError, match=r'state: .*forgetting.* use regularizer="constant"'):
        decode(MesaState.initial(ridge, batch=1, heads=1, key_dim=2, value_dim=2), q, k, v, log_forget, outputs)
    found = torch.stack(outputs, 1)
    assert found.shape[1] > 60
    assert float((found - exact[:, : found.shape[1]]).abs().max()) <= 0.05 * scale


def decode(state: MesaState, q: Tensor, k: Tensor, v: Tensor, log_forget: Tensor, outputs: list[Tensor]) -> None:
    """Add one output after the other until the end or an error."""
    for t in range(q.shape[1]):
        output, state = state.step(q[:, t], k[:, t], v[:, t], log_forget=log_forget[:, t])
        outputs.append(output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", FAST)
def test_the_constant_regularizer_does_not_wind_up(backend: str, dtype: torch.dtype) -> None:
    q, k, v, log_forget = forgetting(dtype)
    gates = {"log_forget": log_forget, "regularizer": "constant"}
    output, state = mesa_attention(q, k, v, torch.ones(1, dtype=dtype), **gates, return_state=True, backend=backend)
    assert float(output.abs().max()) < 100
    assert bool(state.matrix.isfinite().all())


@pytest.mark.parametrize("backend", FAST)
def test_excited_directions_do_not_wind_up(backend: str) -> None:
    """Nothing is left of the ridge after 100,000 tokens, exp(-10,000), and nothing is lost."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 100_000, 1, 2, generator=generator) for _ in range(3))
    log_forget = torch.full((1, 100_000, 1), -0.1)
    output, state = mesa_attention(q, k, v, torch.ones(1), log_forget=log_forget, return_state=True, backend=backend)
    tail = [operand[:, -500:].double() for operand in (q, k, v)]
    expected = mesa_attention(*tail, torch.ones(1).double(), log_forget=log_forget[:, -500:].double())
    torch.testing.assert_close(output[:, -100:].double(), expected[:, -100:], rtol=1e-4, atol=1e-5)
    assert bool(state.matrix.isfinite().all())


@pytest.mark.parametrize("regularizer", ["initial", "constant"])
def test_a_gradient_that_is_not_finite_passes_through(regularizer: str) -> None:
    """Loss scaling lets gradients overflow on purpose: tokens whose gradient is finite keep it, and nothing raises."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 6, 1, 3, generator=generator).requires_grad_() for _ in range(3))
    output = chunked(q, k, v, torch.ones(1), log_forget=torch.full((1, 6, 1), -0.1), regularizer=regularizer)
    for bad in (math.inf, math.nan):
        cotangent = torch.ones_like(output)
        cotangent[:, 3] = bad
        dq, dk = torch.autograd.grad(output, (q, k), cotangent, retain_graph=True)
        good = torch.autograd.grad(output, q, torch.ones_like(output), retain_graph=True)[0]
        assert not bool(dq[:, 3].isfinite().any())
        assert torch.equal(dq[:, [0, 1, 2, 4, 5]], good[:, [0, 1, 2, 4, 5]])
        assert not bool(dk[:, :4].isfinite().any())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_final_state_that_overflows_is_an_error(backend: str) -> None:
    """Zero keys, so that H_T^-1 = exp(100) / ridge is exact: there is no such number in float32, but in float64."""
    q, v = torch.ones(1, 2, 1, 3), torch.ones(1, 2, 1, 2)
    given = {"log_forget": torch.full((1, 2, 1), -50.0), "return_state": True, "backend": backend}
    with pytest.raises(InputError, match=r'(state: it has overflowed in torch.float32|log_forget).*"constant"'):
        mesa_attention(q, torch.zeros_like(q), v, torch.ones(1), **given)
    given["log_forget"] = given["log_forget"].double()
    _, state = mesa_attention(q.double(), torch.zeros_like(q).double(), v.double(), torch.ones(1).double(), **given)
    torch.testing.assert_close(state.matrix[0, 0], math.exp(100) * torch.eye(3, dtype=torch.float64))


def test_a_state_that_overflows_is_an_error() -> None:
    """A coordinate that no key has: nothing is rounded, and its inverse grows to the end of the number range."""
    x = torch.tensor([1.0, 0.0]).expand(1, 900, 1, 2)
    state = MesaState.initial(torch.ones(1), batch=1, heads=1, key_dim=2, value_dim=2)
    outputs: list[Tensor] = []
    with pytest.raises(InputError, match=r"state.*(NaN or infinite|destroyed)"):
        decode(state, x, x, x, torch.full((1, 900, 1), math.log(0.9)), outputs)
    assert bool(torch.stack(outputs).isfinite().all())


@pytest.mark.skipif(not native_available(), reason="this run is without compiled kernels")
def test_native_computes_in_float64_what_overflows_on_the_way() -> None:
    """A sum of values beyond the number range of float32, and a ridge whose inverse is."""
    key, value = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(1, 100, 1, 4), torch.full((1, 100, 1, 4), 1e37)
    count = torch.arange(1.0, 101)[:, None, None]
    torch.testing.assert_close(mesa_attention(key, key, value, torch.ones(1)), count / (1 + count) * value)
    ones = torch.ones(1, 3, 1, 2)
    assert torch.equal(mesa_attention(ones, 0 * ones, ones, torch.tensor([1e-40])), 0 * ones)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("eigenvalue", [-0.1, -0.9])
def test_a_state_with_negative_eigenvalues_is_solved_while_h_is_positive(eigenvalue: float, backend: str) -> None:
    """No sum of k k^T has any, and the native kernels count on that."""
    x, none, one = torch.randn(1, 6, 1, 4).double(), torch.zeros(1, 1, 4, 4).double(), torch.ones(1).double()
    state = MesaState("constant", none + eigenvalue * torch.eye(4), none)
    given: Any = {"log_forget": -0.1 * torch.ones(1, 6, 1).double(), "regularizer": "constant", "state": state}
    found = mesa_attention(x, x, x, one, **given, backend=backend)
    torch.testing.assert_close(found, mesa_attention(x, x, x, one, **given, backend="reference"))


@pytest.mark.parametrize("forget", [False, True])
def test_a_state_that_no_keys_can_have_is_an_error(forget: bool) -> None:
    x, matrix = torch.randn(1, 6, 1, 4), -10 * torch.eye(4).expand(1, 1, 4, 4)
    gates = {"log_forget": torch.full((1, 6, 1), -0.1)} if forget else {}
    state = MesaState("constant", matrix, torch.zeros(1, 1, 4, 4))
    with pytest.raises(InputError, match=r"ridge: .* too small for keys of this size"):
        mesa_attention(x, x, x, torch.ones(1), regularizer="constant", state=state, **gates)
