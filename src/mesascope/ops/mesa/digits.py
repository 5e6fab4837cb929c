"""How many digits mesa attention keeps, and whether float32 is enough.

Rounding costs digits where a key is new, as many as its gain beta_t k_t . H_(t-1)^-1 k_t has; and as many as the
condition number of H_t has for queries of all directions alike, |H_t| |H_t^-1| / sqrt(D) with the Frobenius norm of the
inverse.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mesascope.ops.mesa.case import Case
from mesascope.ops.mesa.checks import tracing
from mesascope.ops.mesa.problem import Problem

_CHUNK = 32
_POWERS = 5


class Limits(NamedTuple):
    """Up to which gain and which condition number a dtype keeps what is promised."""

    gain: float
    condition: float


_USUAL = Limits(128, 100)
"""In float32 the error is about 1e-7 of either: 1e-5."""

_LEARNING_TO_FORGET = Limits(16, 20)
"""The gradient of log_forget, a sum of terms of both signs, loses up to ten times as much."""

_LARGEST_GAIN_OF_UNIT_KEYS, _BEYOND = 32, Limits(128, 1000)
"""Keys of norm 1 and a ridge of 0.1 have no larger gain where nothing is forgotten; for others 1e-4 is promised."""

_IN_DOUBLE = Limits(1e5, 1e8)


def enough(gain: float, condition: float, dtype: torch.dtype, log_forget: Tensor | None) -> bool:
    """Whether a dtype keeps what is promised, for the largest gain and condition number of all tokens."""
    if dtype == torch.float64:
        limits = _IN_DOUBLE
    elif log_forget is None:
        limits = _USUAL if gain <= _LARGEST_GAIN_OF_UNIT_KEYS else _BEYOND
    else:
        limits = _LEARNING_TO_FORGET if log_forget.requires_grad and torch.is_grad_enabled() else _USUAL
    return gain <= limits.gain and condition <= limits.condition


def too_few(case: Case) -> bool:
    """Whether a case in float32 needs float64; looked at closely only where simple bounds do not say so.

    Where values are not known nobody can tell, traces hold for others, and not all devices have float64.
    """
    known = not tracing() and torch._C._get_tracing_state() is None and case.k.device.type != "mps"
    if case.k.dtype != torch.float32 or not known:
        return False
    problem = _problem(case)
    return not any(enough(*found(problem), torch.float32, case.log_forget) for found in (_bounds, _estimates))


@torch.no_grad()
def _problem(case: Case) -> Problem:
    k = case.k.transpose(1, 2)
    write, log_forget = (None if gate is None else gate.transpose(1, 2) for gate in (case.write, case.log_forget))
    ridge, gram = case.expanded().ridge, None
    if case.state is not None:
        gram = (case.state.matrix + case.state.matrix.mT) / 2
        if case.regularizer == "initial":
            ridge, gram = torch.zeros_like(ridge), torch.linalg.inv_ex(gram).inverse
    return Problem(k, write, log_forget, ridge, gram, case.regularizer)


@torch.no_grad()
def _bounds(problem: Problem) -> tuple[float, float]:
    """Upper bounds of the gain and the condition number; infinite where a state or forgetting hides the ridge."""
    if problem.gram is not None or problem.log_forget is not None:
        return math.inf, math.inf
    energy, (smallest, largest) = (problem.k * problem.written).sum(-1), torch.aminmax(problem.ridge, dim=-1)
    return float((energy.amax(-1) / smallest).max()), float(((largest + energy.sum(-1)) / smallest).max())


@torch.no_grad()
def _estimates(problem: Problem) -> tuple[float, float]:
    """The gain and the condition number, as far as H between chunks of tokens tells; infinite where it is singular."""
    k, written, log_forget = problem.k, problem.written, problem.log_forget
    ridge, state = torch.diag_embed(problem.ridge), problem.fading()
    state = torch.zeros_like(ridge) if state is None else state
    constant = problem.regularizer == "constant"
    kept = ridge if constant else torch.zeros_like(ridge)
    widest = 1 / problem.ridge.amin(-1)  # the inverse, where the ridge is kept
    largest = k.new_zeros(3)
    for chunk in _chunks(k.shape[2], log_forget is not None):
        inverse, singular = torch.linalg.inv_ex(state + kept)
        gains = ((k[:, :, chunk] @ inverse) * written[:, :, chunk]).sum(-1)
        spread = torch.linalg.matrix_norm(inverse) / math.sqrt(k.shape[-1])
        if log_forget is None:
            state = state + k[:, :, chunk].mT @ written[:, :, chunk]
        else:
            # until the end of the chunk H is forgotten, and the inverse grows by as much at most
            sums = log_forget[:, :, chunk].cumsum(-1)
            left, remaining = (sums[..., -1:] - sums).exp()[..., None], sums.exp()
            state = remaining[..., -1, None, None] * state + k[:, :, chunk].mT @ (left * written[:, :, chunk])
            gains, spread = gains / remaining, spread / remaining[..., -1]
        if constant:
            gains = torch.minimum(gains, widest[..., None] * (k[:, :, chunk] * written[:, :, chunk]).sum(-1))
            spread = torch.minimum(spread, widest)
        conditions = spread * largest_eigenvalue(state + kept)
        largest = torch.maximum(largest, torch.stack([gains.max(), conditions.max(), singular.max().to(k.dtype)]))
    gain, condition, failed = largest.tolist()
    return (math.inf, math.inf) if failed else (gain, condition)


def _chunks(time: int, forgetting: bool) -> Iterator[slice]:
    """Of equal lengths; where nothing is forgotten, and H^-1 only shrinks, each as long as all before it."""
    start = 0
    while start < time:
        end = start + _CHUNK if forgetting or start == 0 else 2 * start
        yield slice(start, end)
        start = end


@torch.no_grad()
def largest_eigenvalue(matrices: Tensor) -> Tensor:
    """Of positive semidefinite matrices, from below, by powers: of the column with the largest diagonal and another."""
    column = matrices.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(*matrices.shape[:-1], 1)
    unlike = torch.arange(1.0, 1 + matrices.shape[-1], dtype=matrices.dtype, device=matrices.device).cos()[:, None]
    vector = _unit(matrices.gather(-1, column)) + _unit(unlike)
    for _ in range(_POWERS):
        vector = matrices @ _unit(vector)
    return torch.linalg.vector_norm(vector, dim=-2)[..., 0]


def _unit(vectors: Tensor) -> Tensor:
    """Columns divided by their norms, but zeros."""
    return vectors / torch.linalg.vector_norm(vectors, dim=-2, keepdim=True).clamp(min=torch.finfo(vectors.dtype).tiny)
