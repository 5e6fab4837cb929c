"""The causal solve y_t = H_t^-1 x_t, and its gradient: one more causal solve and two gated sums.

Mesa attention is gated linear attention with the queries y (arXiv 2309.05858, eqs. 4-20 and appendix C.2). H_t, defined
in `problem.py`, is symmetric: with the gradient g_t = dL/dy_t and w_t = H_t^-1 g_t, stationarity gives
dL = sum_t w_t . dx_t - sum_t w_t^T (dH_t) y_t, hence

    dx_t = w_t
    dk_i = -beta_i p_i,   dbeta_i = -k_i . p_i / 2,   p_i = sum_{t>=i} m_{t,i} [(w_t . k_i) y_t + (y_t . k_i) w_t]
    dridge = -sum_t m_{t,0} w_t * y_t   ("initial")   or   -sum_t w_t * y_t   ("constant")
    dC_0 = -sum_t m_{t,0} (w_t y_t^T + y_t w_t^T) / 2
    dlog_forget_j = -sum_{t>=j} (w_t . x_t - [w_t . ridge y_t if "constant"] + beta_t dbeta_t)

Every line consists of functions that can be differentiated again, so derivatives of any order work. Beside the operands
only y is kept for them.
"""

from typing import Any

import torch
from torch import Tensor

from mesascope.ops.mesa import dense, recursive
from mesascope.ops.mesa.gated import decay_at_boundaries, fold_vmap, forget_gradient, gated_sum, outer_sums, remaining
from mesascope.ops.mesa.problem import Problem, Regularizer

_REFINEMENTS = 2
_WORTH_REFINING = 32
"""In units of the rounding error of the dtype, the relative residual from which a solve is refined."""


def causal_solve(
    x: Tensor,
    k: Tensor,
    write: Tensor | None,
    log_forget: Tensor | None,
    ridge: Tensor,
    gram: Tensor | None,
    regularizer: Regularizer,
) -> Tensor:
    """y_t = H_t^-1 x_t for all t; x and y `[B, H, T, D]`, the rest as in `Problem`.

    Raises:
        InputError: the problem is singular in this dtype; also in the backward pass.
    """
    solved: Tensor = _CausalSolve.apply(  # type: ignore[no-untyped-call]
        x, k, write, log_forget, ridge, gram, regularizer
    )
    return solved


class _CausalSolve(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, *problem: Any) -> Tensor:
        return _solve(Problem(*problem), x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.regularizer = inputs
        ctx.save_for_backward(*tensors, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, k, write, log_forget, ridge, gram, y = ctx.saved_tensors
        _, needs_k, needs_write, needs_forget, needs_ridge, needs_gram, _ = ctx.needs_input_grad
        dk = dwrite = dforget = dridge = dgram = None
        w = causal_solve(gradients[0], k, write, log_forget, ridge, gram, ctx.regularizer)
        if needs_k or needs_write or needs_forget:
            p = gated_sum(k, w, y, log_forget, reverse=True) + gated_sum(k, y, w, log_forget, reverse=True)
            dk = -p if write is None else -write[..., None] * p
            dwrite = -(k * p).sum(-1) / 2 if needs_write else None
            if needs_forget:
                problem = Problem(k, write, log_forget, ridge, gram, ctx.regularizer)
                dforget = _forget_gradient(problem, x, y, w, dk)
        if needs_ridge or needs_gram:
            faded = w if log_forget is None else remaining(log_forget)[..., None] * w
            dridge = -((faded if ctx.regularizer == "initial" else w) * y).sum(2)
            outer = faded.mT @ y
            dgram = -(outer + outer.mT) / 2 if needs_gram else None
        return w, dk, dwrite, dforget, dridge, dgram, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> tuple[Tensor, int]:
        return fold_vmap(_CausalSolve, info.batch_size, in_dims, operands)


def _forget_gradient(problem: Problem, x: Tensor, y: Tensor, w: Tensor, dk: Tensor) -> Tensor:
    """-sum_{t>=j} w_t^T (dH_t / dlog gamma_j) y_t, where beta_t dbeta_t = k_t . dk_t / 2."""
    log_forget = problem.log_forget
    assert log_forget is not None
    faded = x if problem.regularizer == "initial" else x - problem.ridge[:, :, None] * y
    own = (w * faded).sum(-1) + (problem.k * dk).sum(-1) / 2
    before, fading = outer_sums(problem.k, problem.written, log_forget)[:, :, 1:], problem.fading()
    if fading is not None:
        before = before + decay_at_boundaries(log_forget)[..., None, None] * fading[:, :, None]
    after = outer_sums(w, y, log_forget, reverse=True)[:, :, :-1]
    return -forget_gradient(own, (before * after).sum((-2, -1)))


def _solve(problem: Problem, x: Tensor) -> Tensor:
    """Solve, refine where rounding is worth it, and verify."""
    size = recursive.chunk(problem)
    if size is None:
        y = dense.solve(problem, x)
        error = problem.residual(x, y)[1]
    else:
        factors = recursive.factorise(problem, size)
        y = factors.solve(x)
        residual, error = problem.residual(x, y)
        for _ in range(_REFINEMENTS):
            if error <= _WORTH_REFINING * torch.finfo(x.dtype).eps:
                break
            y = y + factors.solve(residual)
            residual, error = problem.residual(x, y)
    problem.verify(error)
    return y
