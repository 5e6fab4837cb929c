"""Causal solves by recursive least squares, a chunk of C tokens at a time.

With R = H^-1 before the chunk, m_t the product of its forget factors up to t and keys khat_i = sqrt(beta_i / m_i) k_i,

    A = I + Khat R Khat^T = L L^T,   Y = L^-1 Khat R,   m_t H_t^-1 = R - sum_{i<=t} y_i y_i^T,   R <- (R - Y^T Y) / m_C

because every leading principal submatrix of A has the matching corner of L as its factor (arXiv 2309.05858, eqs. 10-13,
in blocks). Later keys contract an error in R; run backwards in time, the recursion would amplify it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mesascope.ops.mesa.gated import chunk_size, split
from mesascope.ops.mesa.problem import Problem

CHUNK = 32
"""Most tokens in a chunk. Of 16, 32 and 64 the fastest at T = 512 and 2048, D = 64, and at T = 50, D = 20."""

_SMALLEST_CHUNK = 8
_MOST_FORGOTTEN = -2.0
"""The least sum of log_forget over a chunk: dividing by m_t amplifies rounding by 1 / m_t, so by 7 at most. With -8 a
solve in float32 at T = 1000, D = 64, gamma about 0.9 needs its refinements: see `test_chunks_end_before_they_decay`."""


def chunk(problem: Problem) -> int | None:
    """The chunk size with which the recursion is accurate, or None where there is none."""
    time = problem.k.shape[2]
    if problem.log_forget is None:
        return chunk_size(time, CHUNK)
    if problem.regularizer == "constant":
        return None
    most = CHUNK
    while most >= _SMALLEST_CHUNK:
        size = chunk_size(time, most)
        if bool((split(problem.log_forget, size).sum(-1) >= _MOST_FORGOTTEN).all()):
            return size
        most //= 2
    return None


@dataclass(frozen=True)
class Factors:
    """What solves a problem for any right-hand side.

    Attributes:
        inverses: R before every chunk, `[B, H, N, D, D]`.
        rows: y_i, `[B, H, N, C, D]`.
        growth: 1 / m_t, `[B, H, N, C]`, or None where nothing is forgotten.
    """

    inverses: Tensor
    rows: Tensor
    growth: Tensor | None

    def solve(self, x: Tensor) -> Tensor:
        """H_t^-1 x_t for all chunks at once, `[B, H, T, D]`."""
        time = x.shape[2]
        x = split(x, self.rows.shape[3])
        y = torch.matmul(x, self.inverses) - (x @ self.rows.mT).tril_() @ self.rows
        if self.growth is not None:
            y *= self.growth[..., None]
        return y.flatten(2, 3)[:, :, :time]


def factorise(problem: Problem, size: int) -> Factors:
    """Run the recursion over chunks of `size` tokens."""
    growth, strength = None, problem.write
    if problem.log_forget is not None:
        growth = (-split(problem.log_forget, size).cumsum(-1)).exp()
        within = growth.flatten(2, 3)[:, :, : problem.k.shape[2]]
        strength = within if strength is None else strength * within
    keys = split(problem.k if strength is None else strength.sqrt()[..., None] * problem.k, size)
    identity = torch.eye(size, dtype=keys.dtype, device=keys.device)
    inverse, inverses, rows = _start(problem), [], []
    for number in range(keys.shape[2]):
        own = keys[:, :, number]
        projected = own @ inverse
        # where this fails the residual of the solution tells
        factor, _ = torch.linalg.cholesky_ex(identity + projected @ own.mT)
        inverses.append(inverse)
        rows.append(torch.linalg.solve_triangular(factor, projected, upper=False))
        inverse = inverse - rows[-1].mT @ rows[-1]
        if growth is not None:
            inverse = growth[:, :, number, -1, None, None] * inverse
        inverse = (inverse + inverse.mT) / 2
    return Factors(torch.stack(inverses, 2), torch.stack(rows, 2), growth)


def _start(problem: Problem) -> Tensor:
    """H_0^-1."""
    if problem.gram is None:
        return torch.diag_embed(1 / problem.ridge)
    factor, _ = torch.linalg.cholesky_ex(problem.gram + torch.diag_embed(problem.ridge))
    return torch.cholesky_inverse(factor)
