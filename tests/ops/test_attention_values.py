"""Every attention against the loops of its definition: values and all gradients in float64, over a table of shapes."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from mesascope import ops
from mesascope.tasks import shift_right
from oracles import attention as oracle
from oracles import learners

SHAPES = {
    "B2-T7-H2-D3-Dv3": (2, 7, 2, 3, 3),
    "B1-T1-H1-D4-Dv4": (1, 1, 1, 4, 4),
    "B2-T6-H1-D1-Dv1": (2, 6, 1, 1, 1),
    "B1-T5-H3-D2-Dv4": (1, 5, 3, 2, 4),
    "B1-T9-H1-D6-Dv2": (1, 9, 1, 6, 2),
}
SPECIAL_KEYS = ("random", "zero", "zero first", "repeated")

FAST = {
    "linear": (ops.linear_attention, oracle.linear_attention),
    "softmax": (ops.softmax_attention, oracle.softmax_attention),
    "mesa": (ops.mesa_attention, oracle.mesa_attention),
    "mesa reference": (partial(ops.mesa_attention, backend="reference"), oracle.mesa_attention),
}


def operands(shape: tuple[int, ...], generator: torch.Generator, keys: str = "random", kind: str = "") -> list[Tensor]:
    batch, time, heads, d, d_v = shape
    q, k = (torch.randn(batch, time, heads, d, generator=generator, dtype=torch.float64) for _ in range(2))
    v = torch.randn(batch, time, heads, d_v, generator=generator, dtype=torch.float64)
    if keys == "zero":
        k = torch.zeros_like(k)
    elif keys == "zero first":
        k[:, 0] = 0
    elif keys == "repeated":
        k = k[:, :1].expand_as(k).clone()
    ridge = [0.3 + torch.rand(batch, heads, generator=generator, dtype=torch.float64)]
    return [q, k, v, *(ridge if kind.startswith("mesa") else [])]


@pytest.mark.parametrize("keys", SPECIAL_KEYS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", FAST)
def test_values(kind: str, shape: tuple[int, ...], keys: str, generator: torch.Generator) -> None:
    fast, by_definition = FAST[kind]
    arguments = operands(shape, generator, keys, kind)
    expected = by_definition(*(argument.numpy() for argument in arguments))
    np.testing.assert_allclose(fast(*arguments).numpy(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("keys", SPECIAL_KEYS)
@pytest.mark.parametrize("shape", [(2, 5, 2, 3, 2), (1, 1, 1, 2, 2), (1, 4, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("kind", FAST)
def test_gradients(kind: str, shape: tuple[int, ...], keys: str, generator: torch.Generator) -> None:
    fast, by_definition = FAST[kind]
    arguments = operands(shape, generator, keys, kind)
    output = fast(*(argument.requires_grad_() for argument in arguments))
    cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad((output * cotangent).sum(), arguments)
    expected = oracle.complex_step_gradients(
        by_definition, [argument.detach().numpy() for argument in arguments], cotangent.numpy()
    )
    for name, gradient, truth in zip(("q", "k", "v", "ridge"), gradients, expected, strict=False):
        np.testing.assert_allclose(gradient.numpy(), truth, rtol=1e-10, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("kind", FAST)
def test_gradcheck(kind: str, generator: torch.Generator) -> None:
    arguments = operands((2, 4, 2, 3, 2), generator, kind=kind)
    assert torch.autograd.gradcheck(FAST[kind][0], [argument.requires_grad_() for argument in arguments])


@pytest.mark.parametrize("kind", ["linear"])
def test_a_second_derivative_is_refused_rather_than_wrong(kind: str, generator: torch.Generator) -> None:
    arguments = [argument.requires_grad_() for argument in operands((1, 3, 1, 2, 2), generator, kind=kind)]
    (gradient,) = torch.autograd.grad(FAST[kind][0](*arguments).square().sum(), arguments[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|differentiable once"):
        gradient.sum().backward()


@pytest.mark.parametrize("kind", FAST)
def test_operands_need_not_be_contiguous(kind: str, generator: torch.Generator) -> None:
    arguments = operands((2, 6, 2, 3, 3), generator, kind=kind)
    strided = [torch.stack([argument, argument], dim=-1)[..., 0] for argument in arguments]
    assert not any(argument.is_contiguous() for argument in strided)
    torch.testing.assert_close(FAST[kind][0](*strided), FAST[kind][0](*arguments))


@pytest.mark.parametrize("kind", FAST)
def test_empty_batch(kind: str, generator: torch.Generator) -> None:
    assert FAST[kind][0](*operands((0, 5, 2, 3, 4), generator, kind=kind)).shape == (0, 5, 2, 4)


@pytest.mark.parametrize("kind", ["linear", "softmax", "mesa"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_map_times_values_is_the_output(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> None:
    q, k, v, *ridge = operands(shape, generator, kind=kind)
    maps = {
        "linear": ops.linear_attention_map,
        "softmax": ops.softmax_attention_map,
        "mesa": ops.mesa_attention_map,
    }
    weights = maps[kind](q, k, *ridge)
    assert torch.equal(weights, weights.tril())
    mixed = torch.einsum("bhij,bjhd->bihd", weights, v)
    torch.testing.assert_close(mixed, FAST[kind][0](q, k, v, *ridge), rtol=1e-11, atol=1e-12)
    if kind == "softmax":
        assert bool((weights >= 0).all())
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1], dtype=torch.float64))


def test_linear_attention_on_neighbouring_pairs_is_one_gradient_step(generator: torch.Generator) -> None:
    observations = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
    keys, values = (operand[:, :, None] for operand in (shift_right(observations), 0.1 * observations))
    predictions = ops.linear_attention(observations[:, :, None], keys, values)[:, :, 0]
    np.testing.assert_allclose(predictions, learners.one_step_gd(observations.numpy(), 0.1), rtol=1e-12, atol=1e-13)


def test_mesa_attention_on_neighbouring_pairs_is_streaming_ridge_regression(generator: torch.Generator) -> None:
    observations = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
    keys, values = (operand[:, :, None] for operand in (shift_right(observations), observations))
    ridge = torch.tensor([0.05], dtype=torch.float64)
    predictions = ops.mesa_attention(values, keys, values, ridge)[:, :, 0]
    np.testing.assert_allclose(
        predictions, learners.streaming_ridge(observations.numpy(), 0.05), rtol=1e-10, atol=1e-11
    )


def test_softmax_attention_of_long_sequences_continues_that_of_short_ones(generator: torch.Generator) -> None:
    """Beyond 128 tokens another kernel computes it; what a prefix gives must not depend on the kernel."""
    q, k, v = (torch.randn(2, 140, 2, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    long = ops.softmax_attention(q, k, v)
    short = ops.softmax_attention(q[:, :128], k[:, :128], v[:, :128])
    torch.testing.assert_close(long[:, :128], short, rtol=1e-12, atol=1e-12)
    exact = ops.softmax_attention_map(q, k) @ v.transpose(1, 2)
    torch.testing.assert_close(long, exact.transpose(1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "softmax", "mesa"])
def test_views_that_are_negated_when_read(name: str) -> None:
    """The imaginary part of a conjugate says so in a bit: what lies in memory has the other sign."""
    attention = FAST[name][0]
    generator = torch.Generator().manual_seed(0)
    plain = [torch.randn(2, 9, 4, 6, generator=generator, dtype=torch.float64) for _ in range(4)]
    negated = [torch.complex(x, -x).conj().imag for x in plain]
    ridge = [torch.full((4,), 0.7, dtype=torch.float64)] if name == "mesa" else []
    results = []
    for *operands, cotangent in (plain, negated):
        leaves = [x.requires_grad_() for x in operands] if operands[0].is_leaf else operands
        assert leaves[0].is_neg() == (leaves[0] is negated[0])
        output = attention(*leaves, *ridge)
        results.append([output, *torch.autograd.grad(output, leaves, cotangent)])
    for found, expected in zip(results[1], results[0], strict=True):
        assert torch.equal(found, expected)
