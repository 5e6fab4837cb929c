"""What must hold for any operands: causality, symmetries, scaling laws and limits."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mesascope.ops import linear_attention, mesa_attention, softmax_attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

KINDS: dict[str, Attend] = {
    "linear": linear_attention,
    "softmax": softmax_attention,
    "mesa": lambda q, k, v: mesa_attention(q, k, v, torch.full((q.shape[2],), 0.5, dtype=q.dtype)),
    "mesa reference": lambda q, k, v: mesa_attention(
        q, k, v, torch.full((q.shape[2],), 0.5, dtype=q.dtype), backend="reference"
    ),
}
sizes = st.integers(1, 4)
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, batch: int, time: int, heads: int, d: int, d_v: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, time, heads, d, generator=generator, dtype=torch.float64) for _ in range(2))
    return q, k, torch.randn(batch, time, heads, d_v, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@given(seeds, st.integers(2, 9), sizes, sizes, sizes, st.data())
def test_causality(kind: str, seed: int, time: int, heads: int, d: int, d_v: int, data: st.DataObject) -> None:
    changed = data.draw(st.integers(1, time - 1), label="first time that changes")
    first, second = draw(seed, 2, time, heads, d, d_v), draw(seed + 1, 2, time, heads, d, d_v)
    mixed = [torch.cat([a[:, :changed], b[:, changed:]], dim=1) for a, b in zip(first, second, strict=True)]
    before, after = KINDS[kind](*first), KINDS[kind](*mixed)
    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=1e-12, atol=1e-13)
    assert not torch.allclose(after[:, changed:], before[:, changed:])


@pytest.mark.parametrize("kind", KINDS)
@given(seeds, st.integers(1, 8), st.integers(2, 4), sizes)
def test_heads_and_rows_are_independent(kind: str, seed: int, time: int, heads: int, d: int) -> None:
    operands = draw(seed, 3, time, heads, d, d)
    output = KINDS[kind](*operands)
    order = torch.randperm(heads, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(KINDS[kind](*(operand[:, :, order] for operand in operands)), output[:, :, order])
    torch.testing.assert_close(KINDS[kind](*(operand[1:2] for operand in operands)), output[1:2])


@pytest.mark.parametrize("kind", KINDS)
@given(seeds, st.floats(-3, 3))
def test_linear_in_the_values(kind: str, seed: int, factor: float) -> None:
    q, k, v = draw(seed, 1, 5, 2, 3, 2)
    other = draw(seed + 1, 1, 5, 2, 3, 2)[2]
    combined = KINDS[kind](q, k, v + factor * other)
    torch.testing.assert_close(combined, KINDS[kind](q, k, v) + factor * KINDS[kind](q, k, other))


@given(seeds, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_mesa_is_unchanged_when_keys_and_queries_scale_with_the_root_of_the_ridge(
    seed: int, scale: float, ridge: float
) -> None:
    q, k, v = draw(seed, 2, 6, 2, 3, 2)
    penalty = torch.tensor([ridge, 2 * ridge], dtype=torch.float64)
    scaled = mesa_attention(scale * q, scale * k, v, scale**2 * penalty)
    torch.testing.assert_close(scaled, mesa_attention(q, k, v, penalty), rtol=1e-6, atol=1e-9)


@given(seeds)
def test_mesa_is_invariant_under_a_common_rotation_of_keys_and_queries(seed: int) -> None:
    q, k, v = draw(seed, 1, 7, 2, 4, 3)
    rotation = torch.linalg.qr(draw(seed, 1, 4, 1, 4, 1)[0][0, :, 0])[0]
    penalty = torch.tensor([0.2, 3.0], dtype=torch.float64)
    torch.testing.assert_close(mesa_attention(q @ rotation, k @ rotation, v, penalty), mesa_attention(q, k, v, penalty))


def test_mesa_tends_to_linear_attention_as_the_ridge_grows() -> None:
    q, k, v = draw(0, 2, 10, 2, 4, 3)
    limit = linear_attention(q, k, v)
    errors = []
    for ridge in (1e4, 1e6, 1e8):
        output = ridge * mesa_attention(q, k, v, torch.tensor([ridge], dtype=torch.float64))
        errors.append(float((output - limit).norm() / limit.norm()))
    # the first neglected term is K K^T / ridge: a hundred times the ridge is a hundredth of the error
    assert errors[0] < 1e-2
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.05)
    assert errors[2] == pytest.approx(errors[1] / 100, rel=0.05)


def test_mesa_tends_to_least_squares_as_the_ridge_vanishes() -> None:
    q, k, v = draw(0, 1, 12, 1, 3, 2)
    output = mesa_attention(q, k, v, torch.tensor([1e-9], dtype=torch.float64))[0, :, 0]
    for t in range(4, 12):
        weights = torch.linalg.lstsq(k[0, : t + 1, 0], v[0, : t + 1, 0]).solution
        torch.testing.assert_close(output[t], q[0, t, 0] @ weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (1, 3), (2, 3)], ids=str)
def test_ridge_broadcasts_and_its_gradient_is_summed(shape: tuple[int, ...], generator: torch.Generator) -> None:
    q, k, v = draw(0, 2, 5, 3, 2, 2)
    ridge = (0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    full = ridge.detach().expand(2, 3).clone().requires_grad_()
    output, expected = mesa_attention(q, k, v, ridge), mesa_attention(q, k, v, full)
    assert torch.equal(output, expected)
    (gradient,) = torch.autograd.grad(output.square().sum(), ridge)
    (full_gradient,) = torch.autograd.grad(expected.square().sum(), full)
    torch.testing.assert_close(gradient, full_gradient.sum_to_size(shape))


def test_a_ridge_that_is_a_view_has_the_gradient_of_its_numbers() -> None:
    q, k, v = draw(0, 2, 5, 3, 2, 2)
    of_heads = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    views = (of_heads.expand(2, 3), of_heads.repeat(2, 1).T.contiguous().T, of_heads.repeat_interleave(2)[::2])
    for view in views:
        ridge, copy = view.requires_grad_(), view.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        found, expected = (torch.autograd.grad(mesa_attention(q, k, v, x).square().sum(), x)[0] for x in (ridge, copy))
        torch.testing.assert_close(found, expected)


def test_each_head_has_its_own_ridge() -> None:
    q, k, v = draw(0, 2, 5, 2, 3, 3)
    output = mesa_attention(q, k, v, torch.tensor([0.1, 10.0], dtype=torch.float64))
    for head, ridge in enumerate((0.1, 10.0)):
        alone = mesa_attention(
            *(operand[:, :, head : head + 1] for operand in (q, k, v)), torch.tensor([ridge]).double()
        )
        torch.testing.assert_close(output[:, :, head : head + 1], alone)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_in_float32_out(kind: str) -> None:
    operands = [operand.float() for operand in draw(0, 1, 4, 2, 3, 2)]
    assert KINDS[kind](*operands).dtype == torch.float32


@pytest.mark.parametrize("ridge", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("time", "d"), [(10, 4), (50, 20), (224, 20)])
def test_mesa_in_float32_is_within_1e_5_of_float64(time: int, d: int, ridge: float) -> None:
    """Unit-norm keys and queries; root-mean-square error relative to the float64 definition, forward and gradients."""
    q, k, v = (operand.float() for operand in draw(0, 2, time, 2, d, d))
    q, k = (operand / operand.norm(dim=-1, keepdim=True) for operand in (q, k))
    cotangent = draw(1, 2, time, 2, d, d)[2].float()
    penalty = torch.full((2,), ridge)

    def run(attend: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [operand.to(dtype).requires_grad_() for operand in (q, k, v, penalty)]
        output = attend(*inputs)
        return [output.detach(), *torch.autograd.grad((output * cotangent.to(dtype)).sum(), inputs)]

    fast, truth = run(mesa_attention, torch.float32), run(partial(mesa_attention, backend="reference"), torch.float64)
    for name, value, expected in zip(("output", "dq", "dk", "dv", "dridge"), fast, truth, strict=True):
        error = float((value.double() - expected).norm() / expected.norm())
        assert error <= 1e-5, f"{name}: relative error {error:.1e}"
