"""How exact the forms of the mesa layer are in float32."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.benchmarks.methods import Method, Shape, draw_operands
from mesascope.ops import mesa_attention


def solve_per_step(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    v: Float[Tensor, "batch time heads d_v"],
    ridge: Float[Tensor, " heads"],
) -> Float[Tensor, "batch time heads d_v"]:
    """The mesa layer by its definition, one dense solve per step, in float64: `mesa_attention`, backend "reference"."""
    q, k, v, ridge = (operand.double() for operand in (q, k, v, ridge))
    return mesa_attention(q, k, v, ridge, backend="reference")


def relative_errors(methods: Iterable[Method], shape: Shape) -> dict[str, float]:
    """Relative root-mean-square errors of the mesa methods in float32 against `solve_per_step`, by their names."""
    operands = draw_operands(shape)
    inputs = (operands.q, operands.k, operands.v, operands.ridge)
    exact = solve_per_step(*inputs)
    errors = {}
    for method in methods:
        if method.problem == "mesa" and method.fits(shape, "forward"):
            with torch.no_grad():
                found = method.attend(*inputs)
            errors[method.name] = float((found.double() - exact).norm() / exact.norm())
    return errors
