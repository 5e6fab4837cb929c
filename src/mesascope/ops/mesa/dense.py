"""Causal solves by one Cholesky factorisation per token, in chunks: O(D^3 / 3) per token, for when tokens share none.

That is so where the ridge is not forgotten but the keys are (regularizer="constant", arXiv 2506.05233), and where so
much is forgotten from one token to the next that the recursion of `recursive.py` would lose the digits.
"""

import torch
from torch import Tensor

from mesascope.ops.mesa.gated import chunk_size, decay_inside, split
from mesascope.ops.mesa.problem import Problem

_LARGEST_CHUNK = 32
_LARGEST_WORKSPACE = 2**24
"""Numbers in the matrices H_t of a chunk."""


def solve(problem: Problem, x: Tensor) -> Tensor:
    """H_t^-1 x_t, `[B, H, T, D]`. Where a factorisation fails the residual of the solution tells."""
    assert problem.log_forget is not None
    batch, heads, time, d = x.shape
    fitting = max(1, _LARGEST_WORKSPACE // (batch * heads * d * d))
    size = chunk_size(time, min(_LARGEST_CHUNK, fitting))
    keys, written, right = (split(operand, size) for operand in (problem.k, problem.written, x))
    sums = split(problem.log_forget, size).cumsum(-1)
    ridge = torch.diag_embed(problem.ridge)
    fading = problem.fading()
    carried = torch.zeros_like(ridge) if fading is None else fading
    solved = torch.empty_like(right)
    for number in range(keys.shape[2]):
        outer = (written[:, :, number, :, :, None] * keys[:, :, number, :, None, :]).flatten(-2)
        grams = (decay_inside(sums[:, :, number]) @ outer).unflatten(-1, (d, d))
        grams += sums[:, :, number, :, None, None].exp() * carried[:, :, None]
        carried = grams[:, :, -1].clone()
        if problem.regularizer == "constant":
            grams += ridge[:, :, None]
        factors, _ = torch.linalg.cholesky_ex(grams)
        solved[:, :, number] = torch.cholesky_solve(right[:, :, number, ..., None], factors)[..., 0]
    return solved.flatten(2, 3)[:, :, :time]
