"""What operators on single tokens return, whichever way they are computed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def as_tuple(results: Any) -> tuple[Tensor, ...]:
    """One result or several, as several."""
    return results if isinstance(results, tuple) else (results,)


def both_passes(function: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Results, then gradients of a sum that weighs every number of them differently."""
    inputs = [operand.detach().clone().requires_grad_() for operand in inputs]
    results = as_tuple(function(*inputs))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in results]
    return [*results, *torch.autograd.grad(results, inputs, weights)]
