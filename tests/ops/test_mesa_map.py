"""The map of mesa attention: its weights times the values are the output, with all gates and regularizers."""

import pytest
import torch
from torch import Tensor

from mesascope.ops import mesa_attention, mesa_attention_map

from .mesa_cases import GATES, REGULARIZERS, SHAPES, Case, draw, relative


def mixed(weights: Tensor, v: Tensor) -> Tensor:
    return (weights @ v.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("ridge", ["head", "diagonal"])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_map_times_values_is_the_output(shape: tuple[int, ...], regularizer: str, gates: str, ridge: str) -> None:
    operands = draw(Case(shape, regularizer, gates, ridge)).with_gradients()
    options = {name: value for name, value in operands.options().items() if name != "state"}
    weights = mesa_attention_map(operands.q, operands.k, operands.ridge, **options)
    assert torch.equal(weights, weights.tril())
    output = mesa_attention(operands.q, operands.k, operands.v, operands.ridge, **options, backend="reference")
    assert relative(mixed(weights, operands.v), output) <= 1e-10
    inputs = list(operands.tensors().values())
    found, expected = (
        torch.autograd.grad(operands.loss({"o": o}), inputs) for o in (mixed(weights, operands.v), output)
    )
    for gradient, truth in zip(found, expected, strict=True):
        assert relative(gradient, truth) <= 1e-9


def test_a_token_that_is_not_written_has_no_weight() -> None:
    operands = draw(Case((1, 6, 1, 3, 2), gates="write"))
    write = operands.write.clone()
    write[:, 2] = 0
    weights = mesa_attention_map(operands.q, operands.k, operands.ridge, write=write)
    assert not weights[..., 2].any()
    assert weights[..., 1].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    operands = draw(Case((2, 9, 2, 3, 2))).to(dtype)
    weights = mesa_attention_map(operands.q, operands.k, operands.ridge)
    exact = mesa_attention_map(*(tensor.double() for tensor in (operands.q, operands.k, operands.ridge)))
    assert weights.dtype == dtype
    assert relative(weights, exact) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(0, 5, 2), (2, 0, 2), (2, 5, 0)], ids=str)
def test_empty(shape: tuple[int, int, int]) -> None:
    batch, time, heads = shape
    q = torch.ones(batch, time, heads, 3, requires_grad=True)
    weights = mesa_attention_map(q, q, torch.ones(()))
    assert weights.shape == (batch, heads, time, time)
    weights.sum().backward()
    assert q.grad is not None
