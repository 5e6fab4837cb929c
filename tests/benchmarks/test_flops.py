"""The formulas count the recurrences: written out, these give the right gradients and that many operations."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mesascope.benchmarks.accuracy import solve_per_step
from mesascope.benchmarks.flops import FORMULAS, flops, matmul_gflops
from mesascope.benchmarks.methods import BOTH_PASSES, Passes, Problem, Shape
from mesascope.ops import linear_attention, softmax_attention

T, D, RIDGE = 6, 3, 0.7
PROBLEMS: tuple[Problem, ...] = ("softmax", "linear", "mesa")


def draw(generator: torch.Generator) -> list[Tensor]:
    """q, k, v and the gradient of the output of one head, `[T, D]`."""
    return [torch.randn(T, D, generator=generator, dtype=torch.float64) for _ in range(4)]


def columns(operand: Tensor) -> list[Tensor]:
    return [row[:, None] for row in operand]


def mesa(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None) -> list[Tensor]:
    """Recursive least squares; backward the state once more, then the accumulators in reverse."""
    solved, out, w = [], [], []
    inverse, association = torch.eye(D, dtype=q.dtype) / RIDGE, torch.zeros(D, D, dtype=q.dtype)
    for query, key, value in zip(*map(columns, (q, k, v)), strict=True):
        u = inverse @ key
        inverse = inverse - (u / (1 + (u * key).sum())) @ u.mT
        association = association + value @ key.mT
        solved.append(inverse @ query)
        out.append(association @ solved[-1])
    if g is None:
        return [torch.stack(out)[..., 0]]
    inverse, association = torch.eye(D, dtype=q.dtype) / RIDGE, torch.zeros(D, D, dtype=q.dtype)
    for key, value, gradient in zip(*map(columns, (k, v, g)), strict=True):
        u = inverse @ key
        inverse = inverse - (u / (1 + (u * key).sum())) @ u.mT
        association = association + value @ key.mT
        w.append(inverse @ (association.mT @ gradient))
    pull, moment = torch.zeros(D, D, dtype=q.dtype), torch.zeros(D, D, dtype=q.dtype)
    dk, dv = [], []
    for step in reversed(range(T)):
        key, value, gradient = k[step][:, None], v[step][:, None], g[step][:, None]
        pull = pull + gradient @ solved[step].mT
        moment = moment + w[step] @ solved[step].mT + solved[step] @ w[step].mT
        dv.append(pull @ key)
        dk.append(pull.mT @ value - moment @ key)
    return [torch.stack(x)[..., 0] for x in (out, w, dk[::-1], dv[::-1])]


def linear(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None) -> list[Tensor]:
    """The state forwards, once more for the queries, and the accumulator in reverse."""
    out, dq, dk, dv = [], [], [], []
    association = torch.zeros(D, D, dtype=q.dtype)
    for query, key, value in zip(*map(columns, (q, k, v)), strict=True):
        association = association + value @ key.mT
        out.append(association @ query)
    if g is None:
        return [torch.stack(out)[..., 0]]
    association = torch.zeros(D, D, dtype=q.dtype)
    for key, value, gradient in zip(*map(columns, (k, v, g)), strict=True):
        association = association + value @ key.mT
        dq.append(association.mT @ gradient)
    pull = torch.zeros(D, D, dtype=q.dtype)
    for query, key, value, gradient in reversed(list(zip(*map(columns, (q, k, v, g)), strict=True))):
        pull = pull + gradient @ query.mT
        dv.append(pull @ key)
        dk.append(pull.mT @ value)
    return [torch.stack(x)[..., 0] for x in (out, dq, dk[::-1], dv[::-1])]


def softmax(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None) -> list[Tensor]:
    """One row at a time; backward the logits once more."""
    out, dq, dk, dv = [], [], torch.zeros_like(k), torch.zeros_like(v)
    for step in range(T):
        seen = slice(step + 1)
        weights = (q[step : step + 1] @ k[seen].mT / D**0.5).softmax(-1)
        out.append(weights @ v[seen])
    if g is None:
        return [torch.cat(out)]
    for step in range(T):
        seen = slice(step + 1)
        weights = (q[step : step + 1] @ k[seen].mT / D**0.5).softmax(-1)
        pulled = g[step : step + 1] @ v[seen].mT
        logits = weights * (pulled - (weights * pulled).sum()) / D**0.5
        dv[seen] += weights.mT @ g[step : step + 1]
        dk[seen] += logits.mT @ q[step : step + 1]
        dq.append(logits @ k[seen])
    return [torch.cat(out), torch.cat(dq), dk, dv]


LITERAL = {"softmax": softmax, "linear": linear, "mesa": mesa}


@pytest.mark.parametrize("passes", BOTH_PASSES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_formulas_count_the_recurrences(problem: Problem, passes: Passes, generator: torch.Generator) -> None:
    q, k, v, g = draw(generator)
    with FlopCounterMode(display=False) as counter:
        LITERAL[problem](q, k, v, None if passes == "forward" else g)
    shape = Shape(1, T, D)
    assert counter.get_total_flops() == flops(problem, shape, passes)
    assert flops(problem, Shape(5, T, D), passes) == 5 * flops(problem, shape, passes)


def test_formulas_are_stated() -> None:
    assert FORMULAS["softmax"] == {"forward": "2 T (T + 1) D", "forward+backward": "7 T (T + 1) D"}
    assert FORMULAS["mesa"] == {"forward": "2 T D (5 D)", "forward+backward": "2 T D (16 D)"}
    assert flops("softmax", Shape(3, 10, 4), "forward") == 3 * 2 * 10 * 11 * 4
    assert flops("mesa", Shape(3, 10, 4), "forward+backward") == 3 * 2 * 10 * 4 * 16 * 4


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_recurrences_are_the_layers(problem: Problem, generator: torch.Generator) -> None:
    q, k, v, g = draw(generator)
    batched = [operand[None, :, None].clone().requires_grad_() for operand in (q, k, v)]
    match problem:
        case "softmax":
            out = softmax_attention(*batched)
        case "linear":
            out = linear_attention(*batched)
        case "mesa":
            out = solve_per_step(*batched, torch.tensor([RIDGE], dtype=torch.float64))
    gradients = torch.autograd.grad(out, batched, g[None, :, None])
    for found, expected in zip(LITERAL[problem](q, k, v, g), (out, *gradients), strict=True):
        torch.testing.assert_close(found, expected[0, :, 0], rtol=1e-9, atol=1e-10)


def test_matrix_product_is_measured() -> None:
    assert matmul_gflops(16) > 0
