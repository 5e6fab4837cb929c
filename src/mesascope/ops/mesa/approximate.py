"""Mesa attention with its solve replaced by a few steps of an iterative solver: what a stack of layers could do.

Each step multiplies with all H_t at once, which is one causal linear attention with the keys as values. For study:
where the exact solution is wanted, `mesa_attention` is more accurate and faster. Arguments and errors as there.

Source: arXiv 2309.05858, appendix C.3 (Neumann) and Proposition 2 (Chebyshev); arXiv 2506.05233 (conjugate gradients).

Differences from the papers: (1) the Neumann series is that of H_t / c_t with c_t >= ||H_t||; as printed it converges
only if the eigenvalues of H_t are below 2. (2) Conjugate gradients adds no constant to its denominators, which would
stop it at a relative error of 1e-3 to 1e-1, and each query stops by its own residual.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from mesascope.errors import require
from mesascope.ops.mesa.checks import Operands, check_regularizer, prepare
from mesascope.ops.mesa.gated import gated_sum, remaining
from mesascope.ops.mesa.problem import Problem, Regularizer
from mesascope.ops.solvers import chebyshev, counted_conjugate_gradients, neumann


class IterativeMesaAttention(NamedTuple):
    """What conjugate gradients returns.

    Attributes:
        output: o, `[B, T, H, Dv]`.
        iterations: number of steps until the query was solved to the tolerance, `[B, T, H]`.
    """

    output: Float[Tensor, "batch time heads d_v"]
    iterations: Integer[Tensor, "batch time heads"]


def mesa_attention_neumann(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    v: Float[Tensor, "batch time heads d_v"],
    ridge: Float[Tensor, "..."],
    *,
    steps: int,
    log_forget: Float[Tensor, "batch time heads"] | None = None,
    write: Float[Tensor, "batch time heads"] | None = None,
    regularizer: Regularizer = "initial",
) -> Float[Tensor, "batch time heads d_v"]:
    """H_t^-1 q_t as (1/c_t) sum_{j=0..steps} (I - H_t / c_t)^j q_t, c_t = the trace bound of `_bounds`.

    The error of a query shrinks like (1 - m/c_t)^(steps + 1), with m the smallest eigenvalue of H_t.
    """
    require(steps >= 0, "steps", steps, "at least 0")

    def solve(problem: Problem, queries: Tensor) -> Tensor:
        return neumann(problem.multiply, queries, steps, _bounds(problem)[1])

    return _attend(_operands(q, k, v, ridge, log_forget, write, regularizer), regularizer, solve).to(q.dtype)


def mesa_attention_chebyshev(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    v: Float[Tensor, "batch time heads d_v"],
    ridge: Float[Tensor, "..."],
    *,
    steps: int,
    log_forget: Float[Tensor, "batch time heads"] | None = None,
    write: Float[Tensor, "batch time heads"] | None = None,
    regularizer: Regularizer = "initial",
) -> Float[Tensor, "batch time heads d_v"]:
    """H_t^-1 q_t by Chebyshev iteration for the eigenvalues between the bounds of `_bounds`.

    The error of a query is at most 2 ((sqrt kappa - 1) / (sqrt kappa + 1))^steps, with kappa the ratio of the bounds.
    """
    require(steps >= 1, "steps", steps, "at least 1")

    def solve(problem: Problem, queries: Tensor) -> Tensor:
        return chebyshev(problem.multiply, queries, steps, *_bounds(problem))

    return _attend(_operands(q, k, v, ridge, log_forget, write, regularizer), regularizer, solve).to(q.dtype)


def mesa_attention_conjugate_gradients(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    v: Float[Tensor, "batch time heads d_v"],
    ridge: Float[Tensor, "..."],
    *,
    tolerance: float = 1e-6,
    max_steps: int = 1000,
    log_forget: Float[Tensor, "batch time heads"] | None = None,
    write: Float[Tensor, "batch time heads"] | None = None,
    regularizer: Regularizer = "initial",
) -> IterativeMesaAttention:
    """H_t^-1 q_t by conjugate gradients; every query stops once its residual is small.

    Args:
        tolerance: a query is solved once ||q_t - H_t y_t|| <= tolerance ||q_t||, as the recurrence sees the residual.
        max_steps: at most so many steps for each query.
    """
    require(max_steps >= 1, "max_steps", max_steps, "at least 1")
    require(tolerance >= 0, "tolerance", tolerance, "at least 0")
    iterations = torch.zeros(q.shape[0], q.shape[2], q.shape[1], dtype=torch.int64, device=q.device)

    def solve(problem: Problem, queries: Tensor) -> Tensor:
        nonlocal iterations
        solved, iterations = counted_conjugate_gradients(problem.multiply, queries, max_steps, tolerance)
        return solved

    output = _attend(_operands(q, k, v, ridge, log_forget, write, regularizer), regularizer, solve)
    return IterativeMesaAttention(output.to(q.dtype), iterations.transpose(1, 2))


def _operands(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    log_forget: Tensor | None,
    write: Tensor | None,
    regularizer: Regularizer,
) -> Operands:
    check_regularizer(regularizer)
    return prepare(q, k, v, ridge, log_forget, write).completed()


def _attend(operands: Operands, regularizer: Regularizer, solve: Callable[[Problem, Tensor], Tensor]) -> Tensor:
    if operands.empty():
        return operands.empty_output()
    q, k, v = (operand.transpose(1, 2) for operand in (operands.q, operands.k, operands.v))
    gates = operands.log_forget, operands.write
    log_forget, write = (None if gate is None else gate.transpose(1, 2) for gate in gates)
    problem = Problem(k, write, log_forget, operands.ridge, None, regularizer)
    written = v if write is None else write[..., None] * v
    return gated_sum(solve(problem, q), k, written, log_forget).transpose(1, 2)


def _bounds(problem: Problem) -> tuple[Tensor, Tensor]:
    """Bounds of the eigenvalues of H_t that a causal layer can compute: ridge and trace; each `[B, H, T, 1]`."""
    low, high = (bound[:, :, None, None] for bound in torch.aminmax(problem.ridge, dim=-1))
    if problem.log_forget is not None and problem.regularizer == "initial":
        low, high = (remaining(problem.log_forget)[..., None] * bound for bound in (low, high))
    energy = (problem.written * problem.k).sum(-1, keepdim=True)
    ones = torch.ones_like(energy)
    high = high + gated_sum(ones, ones, energy, problem.log_forget)
    return low.expand_as(high), high
