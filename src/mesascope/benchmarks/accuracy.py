"""How exact the forms of the mesa layer are in float32."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.benchmarks.methods import Method, Shape, draw_operands


def solve_per_step(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    v: Float[Tensor, "batch time heads d_v"],
    ridge: Float[Tensor, " heads"],
) -> Float[Tensor, "batch time heads d_v"]:
    """o_t = G_t (sum_{t' <= t} k_t' k_t'^T + ridge I)^-1 q_t in float64: one dense solve per step, by definition.

    Source: arXiv 2309.05858, eqs. 4-8. O(T D^3) time and O(T D^2) memory per head; shares nothing with the methods
    that are compared with it.
    """
    q, k, v, ridge = (operand.double() for operand in (q, k, v, ridge))
    penalty = ridge[:, None, None] * torch.eye(k.shape[-1], dtype=torch.float64)
    gram = torch.einsum("bthd,bthe->bthde", k, k).cumsum(1) + penalty
    association = torch.einsum("bthd,bthe->bthde", v, k).cumsum(1)
    return torch.einsum("bthde,bthe->bthd", association, torch.linalg.solve(gram, q))


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
