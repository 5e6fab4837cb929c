"""Native linear and softmax attention against the same in torch, on operands anywhere in memory and of any size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mesascope.ops.kernels import native_kernels
from mesascope.ops.linear import linear_attention_product
from mesascope.ops.native import direct_linear_attention, direct_softmax_attention
from mesascope.ops.softmax import softmax_attention_product

from .fuzz_cases import KEYS, MEMORY, places
from .mesa_cases import Case, draw

pytestmark = pytest.mark.skipif(native_kernels() is None, reason="this run is without compiled kernels")

sizes = st.integers(1, 6)
shapes = st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 3, 4, 5, 16, 17, 40]), st.integers(1, 6), sizes, sizes)
keys = st.sampled_from(list(KEYS))
seeds = st.integers(0, 2**32 - 1)


def differentiate(attend, inputs: tuple[Tensor, ...], places: tuple[str, ...], seed: int) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    """The output and the gradients of `inputs`, laid out in memory as `places` say."""
    leaves = [operand.detach().clone().requires_grad_() for operand in inputs]
    output = attend(*(MEMORY[place](leaf) for leaf, place in zip(leaves, places, strict=True)))
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(torch.float32).to(output.dtype)
    gradients = torch.autograd.grad(output, leaves, cotangent)
    return {"output": output.detach(), **dict(zip("qkv", gradients, strict=True))}


def operands(shape: tuple[int, ...], kind: str, seed: int) -> tuple[Tensor, ...]:
    drawn = draw(Case(shape), seed).to(torch.float32).to(torch.float64)
    return drawn.q, KEYS[kind](drawn.k).float().double(), drawn.v


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(shapes, keys, st.tuples(places, places, places), seeds)
def test_linear(dtype: torch.dtype, shape: tuple[int, ...], kind: str, places: tuple[str, ...], seed: int) -> None:
    inputs = operands(shape, kind, seed)
    exact = differentiate(linear_attention_product, inputs, places, seed)
    found = differentiate(direct_linear_attention, tuple(x.to(dtype) for x in inputs), places, seed)
    for name, expected in exact.items():
        # sums of both signs may cancel: errors are relative to at least a thousandth of sizes multiplied
        assert bool(found[name].isfinite().all())
        parts = [1.0, *(float(x.norm()) for x, letter in zip(inputs, "qkv", strict=True) if letter != name)]
        size = max(float(expected.norm()), 1e-3 * torch.tensor(parts).prod().item())
        assert float((found[name].double() - expected).norm()) <= 50 * torch.finfo(dtype).eps * size, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(shapes, keys, st.tuples(places, places, places), seeds)
def test_softmax(dtype: torch.dtype, shape: tuple[int, ...], kind: str, places: tuple[str, ...], seed: int) -> None:
    inputs = operands(shape, kind, seed)
    exact = differentiate(softmax_attention_product, inputs, places, seed)
    found = differentiate(direct_softmax_attention, tuple(x.to(dtype) for x in inputs), places, seed)
    largest = float(inputs[0].norm(dim=-1).amax() * inputs[1].norm(dim=-1).amax())
    # a logit has an absolute error of its size times the rounding, a weight and all that follows the same relative one
    allowed = torch.finfo(dtype).eps * (20 + 5 * largest)
    sizes = {
        "output": float(exact["output"].norm()),
        "q": float(inputs[1].norm() * inputs[2].norm()),
        "k": float(inputs[0].norm() * inputs[2].norm()),
        "v": float(exact["v"].norm()),
    }
    for name, expected in exact.items():
        assert bool(found[name].isfinite().all())
        error = float((found[name].double() - expected).norm())
        assert error <= min(allowed, 2.0) * sizes[name], (
            f"{name}: {error / sizes[name]:.1e} for logits of {largest:.1e}"
        )
