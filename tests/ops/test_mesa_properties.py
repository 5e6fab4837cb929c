"""What must hold for any operands of mesa attention, with gates, for every backend."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mesascope.errors import InputError
from mesascope.ops import mesa_attention

from .mesa_cases import BACKENDS, GATES, REGULARIZERS, Case, Operands, draw, relative

sizes = st.integers(1, 4)
seeds = st.integers(0, 2**32 - 1)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), sizes, sizes, sizes)
cases = st.builds(Case, shapes, st.sampled_from(REGULARIZERS), st.sampled_from(GATES), st.just("row diagonal"))
backends = pytest.mark.parametrize("backend", BACKENDS)
HALF = (torch.bfloat16, torch.float16)


def attend(operands: Operands, backend: str) -> Tensor:
    options = operands.options()
    return mesa_attention(operands.q, operands.k, operands.v, operands.ridge, **options, backend=backend)


def changed(operands: Operands, **tensors: Tensor) -> Operands:
    return Operands(**{**vars(operands), **tensors})


@backends
@given(cases, seeds, st.data())
def test_the_past_does_not_know_the_future(backend: str, case: Case, seed: int, data: st.DataObject) -> None:
    time = case.shape[1]
    start = data.draw(st.integers(0, time - 1), label="first token that changes")
    first, second = draw(case, seed), draw(case, seed + 1)
    mixed = {
        name: torch.cat([tensor[:, :start], second.tensors()[name][:, start:]], 1)
        for name, tensor in first.tensors().items()
        if name in ("q", "k", "v", "log_forget", "write")
    }
    before, after = attend(first, backend), attend(changed(first, **mixed), backend)
    torch.testing.assert_close(after[:, :start], before[:, :start], rtol=1e-9, atol=1e-10)


@backends
@given(cases, seeds)
def test_rows_and_heads_can_be_permuted(backend: str, case: Case, seed: int) -> None:
    operands = draw(case, seed)
    generator = torch.Generator().manual_seed(seed)
    rows, heads = (torch.randperm(case.shape[dim], generator=generator) for dim in (0, 2))
    moved = {
        name: tensor[rows][:, heads] if name == "ridge" else tensor[rows][:, :, heads]
        for name, tensor in operands.tensors().items()
    }
    expected = attend(operands, backend)[rows][:, :, heads]
    torch.testing.assert_close(attend(changed(operands, **moved), backend), expected, rtol=1e-10, atol=1e-12)


@backends
@given(cases, seeds, st.floats(-3, 3))
def test_scaling_keys_and_queries_with_the_root_of_the_ridge_changes_nothing(
    backend: str, case: Case, seed: int, exponent: float
) -> None:
    operands, scale = draw(case, seed), 10**exponent
    scaled = changed(operands, q=scale * operands.q, k=scale * operands.k, ridge=scale**2 * operands.ridge)
    assert relative(attend(scaled, backend), attend(operands, backend)) <= 1e-9


@backends
@given(cases, seeds, st.sampled_from([0.25, 4.0]))
def test_a_write_strength_is_a_squared_scale_of_key_and_value(
    backend: str, case: Case, seed: int, strength: float
) -> None:
    operands = draw(case, seed)
    write = operands.q.new_ones(case.shape[:3]) if operands.write is None else operands.write
    stronger = changed(operands, write=strength * write)
    louder = changed(operands, write=write, k=strength**0.5 * operands.k, v=strength**0.5 * operands.v)
    assert relative(attend(stronger, backend), attend(louder, backend)) <= 1e-10


@backends
@given(cases, seeds)
def test_a_key_of_zero_only_forgets(backend: str, case: Case, seed: int) -> None:
    """Tokens with a zero key or strength drop out; what they forget is passed on to the next token."""
    operands = draw(case, seed)
    mute = changed(operands, k=torch.zeros_like(operands.k))
    assert not attend(mute, backend).any()
    silent = changed(operands, write=torch.zeros(case.shape[:3], dtype=torch.float64))
    assert not attend(silent, backend).any()


@backends
@given(cases, seeds, st.integers(2, 5))
def test_a_repeated_key_counts_as_a_stronger_one(backend: str, case: Case, seed: int, times: int) -> None:
    batch, _, heads, d, d_v = case.shape
    one = draw(Case((batch, 1, heads, d, d_v), case.regularizer, "plain", case.ridge), seed)
    many = changed(one, **{name: getattr(one, name).expand(-1, times, -1, -1) for name in ("q", "k", "v")})
    stronger = changed(one, write=torch.full((batch, 1, heads), float(times), dtype=torch.float64))
    torch.testing.assert_close(attend(many, backend)[:, -1:], attend(stronger, backend), rtol=1e-10, atol=1e-12)


@backends
@given(cases, seeds)
def test_one_token(backend: str, case: Case, seed: int) -> None:
    """o = beta v (k . H^-1 q) with H = gamma ridge + beta k k^T, by the formula of Sherman and Morrison."""
    batch, _, heads, d, d_v = case.shape
    operands = draw(Case((batch, 1, heads, d, d_v), case.regularizer, case.gates, case.ridge), seed)
    q, k, v = (operand[:, 0] for operand in (operands.q, operands.k, operands.v))
    strength = 1 if operands.write is None else operands.write[:, 0, :, None]
    keep = 1
    if operands.log_forget is not None and case.regularizer == "initial":
        keep = operands.log_forget[:, 0, :, None].exp()
    solved = k / (keep * operands.ridge)
    weight = strength * (solved * q).sum(-1, keepdim=True) / (1 + strength * (solved * k).sum(-1, keepdim=True))
    torch.testing.assert_close(attend(operands, backend)[:, 0], weight * v, rtol=1e-9, atol=1e-11)


@backends
@given(seeds, st.sampled_from(REGULARIZERS), st.floats(-6, 6), st.floats(0, 3))
def test_any_ridge_and_size_of_keys_in_float64(
    backend: str, seed: int, regularizer: str, ridge: float, keys: float
) -> None:
    """Ridge from 1e-6 to 1e6 and keys up to 1e3 times larger, against least squares, which squares no condition."""
    operands = draw(Case((1, 8, 1, 3, 2), regularizer), seed)
    operands = changed(operands, k=10**keys * operands.k, ridge=10**ridge * operands.ridge)
    penalty = operands.ridge.sqrt() * torch.eye(3, dtype=torch.float64)
    found, expected = attend(operands, backend)[0, :, 0], []
    for t in range(8):
        regressors = torch.cat([operands.k[0, : t + 1, 0], penalty])
        targets = torch.cat([operands.v[0, : t + 1, 0], torch.zeros(3, 2, dtype=torch.float64)])
        expected.append(operands.q[0, t, 0] @ torch.linalg.lstsq(regressors, targets).solution)
        tolerance = 1e-4 if t < 3 else 1e-8  # with fewer tokens than coordinates only the ridge makes it solvable
        assert relative(found[t], expected[t]) <= tolerance, f"{t + 1} tokens"


@backends
@given(seeds, st.sampled_from(REGULARIZERS), st.sampled_from(GATES), st.floats(-6, 6), st.floats(0, 3))
def test_float32_is_right_or_says_that_it_is_not(
    backend: str, seed: int, regularizer: str, gates: str, ridge: float, keys: float
) -> None:
    operands = draw(Case((2, 8, 2, 3, 2), regularizer, gates), seed)
    operands = changed(operands, k=10**keys * operands.k, ridge=10**ridge * operands.ridge)
    exact = attend(operands.to(torch.float32).to(torch.float64), "reference")
    try:
        found = attend(operands.to(torch.float32), backend)
    except InputError as error:
        assert str(error).startswith(("ridge: ", "log_forget: "))  # noqa: PT017 (either outcome is right)
    else:
        assert relative(found, exact) <= 2e-2


@backends
@pytest.mark.parametrize("dtype", HALF)
@given(cases, seeds)
def test_half_precision_is_computed_in_float32(backend: str, dtype: torch.dtype, case: Case, seed: int) -> None:
    operands = draw(case, seed).to(dtype)
    found = attend(operands, backend)
    assert found.dtype == dtype
    expected = attend(operands.to(torch.float32), backend)
    torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=0)
    kept = changed(operands, ridge=operands.ridge.float())
    torch.testing.assert_close(attend(kept, backend), found, rtol=0, atol=0)


@backends
@given(cases, seeds)
def test_operands_need_not_be_contiguous(backend: str, case: Case, seed: int) -> None:
    operands = draw(case, seed)
    strided = {name: torch.stack([tensor, tensor], -1)[..., 0] for name, tensor in operands.tensors().items()}
    flipped = {name: tensor.flip(1).flip(1).mT.contiguous().mT for name, tensor in operands.tensors().items()}
    for other in (strided, flipped):
        torch.testing.assert_close(
            attend(changed(operands, **other), backend), attend(operands, backend), rtol=1e-12, atol=1e-13
        )


@backends
@pytest.mark.parametrize("state", [False, True], ids=["no state", "state"])
@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("shape", [(0, 5, 2, 3, 4), (2, 0, 2, 3, 4), (2, 5, 0, 3, 4), (2, 5, 2, 3, 0)], ids=str)
def test_empty_operands(backend: str, shape: tuple[int, ...], regularizer: str, state: bool) -> None:
    batch, time, heads, d, d_v = shape
    operands = draw(Case(shape, regularizer, "forget and write", "head", state)).with_gradients()
    results = operands.run(backend)
    assert results["output"].shape == (batch, time, heads, d_v)
    assert results["matrix"].shape == (batch, heads, d, d)
    assert results["association"].shape == (batch, heads, d_v, d)
    if time == 0 and state:
        assert torch.equal(results["matrix"], operands.matrix)
    for name, gradient in operands.gradients(backend).items():
        assert gradient.shape == operands.tensors()[name].shape
    if not state:
        assert all(bool(tensor.isfinite().all()) for tensor in results.values())
