"""The mesa layer in dual form: one Cholesky factor of the T x T Gram matrix serves every time step.

With A = K^T K + ridge I = L L^T (T x T), every leading principal submatrix of A has the matching corner of L as its
factor, so the ridge-regression weights of all time steps are `alpha = L^-T triu(L^-1 K^T Q)`, column t holding those
of output t. Only matrix products, one Cholesky and triangular solves: exact, and parallel over time.

The backward pass uses the optimality condition instead of differentiating the solver: with H_t = K_t K_t^T + ridge I,
q~_t = H_t^-1 q_t and g_t = dL/do_t it needs one more solve, w_t = H_t^-1 G_t^T g_t, and then

    dq_t = w_t,   dv_i = sum_{t>=i} g_t (q~_t . k_i),   dridge = -sum_t w_t . q~_t,
    dk_i = sum_{t>=i} [(g_t . v_i) q~_t - (w_t . k_i) q~_t - (q~_t . k_i) w_t].

Source: arXiv 2309.05858, eqs. 4-8 and appendix C.2; lambda of the paper is 1 / ridge.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mesascope.errors import InputError


def mesa_attention_dual(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    v: Float[Tensor, "batch time heads d_v"],
    ridge: Float[Tensor, "*#heads"],
) -> Float[Tensor, "batch time heads d_v"]:
    """Mesa attention of a whole sequence, O(T^3 / 3 + T^2 D) time per head. Arguments as in `mesa_attention`."""
    ridge = ridge.expand(q.shape[0], q.shape[2])
    q, k, v = (operand.transpose(1, 2).contiguous() for operand in (q, k, v))
    output: Tensor = _DualMesa.apply(q, k, v, ridge)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2)


def mesa_attention_map_dual(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    ridge: Float[Tensor, "*#heads"],
) -> Float[Tensor, "batch heads time time"]:
    """The layer's own causal attention map alpha: row t holds the weights of the values in output t.

    Signed and not normalised; zero for t' > t.
    """
    ridge = ridge.expand(q.shape[0], q.shape[2])
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    return _dual_weights(_gram_factor(k, ridge), k, q).mT


class _DualMesa(torch.autograd.Function):
    """Operands are `[B, H, T, D]` and ridge `[B, H]`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ridge: Tensor) -> Tensor:
        factor = _gram_factor(k, ridge)
        weights = _dual_weights(factor, k, q)
        ctx.save_for_backward(q, k, v, ridge, factor, weights)
        return weights.mT @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, ridge, factor, weights = ctx.saved_tensors
        g = gradients[0]
        q_solved = _primal_solution(q, k, weights, ridge)
        back_projected = (g @ v.mT).tril() @ k
        w = _primal_solution(back_projected, k, _dual_weights(factor, k, back_projected), ridge)
        attention = (q_solved @ k.mT).tril()
        pull = (g @ v.mT - w @ k.mT).tril()
        dv = attention.mT @ g
        dk = pull.mT @ q_solved - attention.mT @ w
        dridge = -(w * q_solved).sum((-2, -1))
        return w, dk, dv, dridge


def _gram_factor(k: Tensor, ridge: Tensor) -> Tensor:
    gram = k @ k.mT
    gram.diagonal(dim1=-2, dim2=-1).add_(ridge[:, :, None])
    factor, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed.any()):
        raise InputError(
            f"ridge: the smallest is {float(ridge.detach().min()):.3g}, too small for keys of this size in {k.dtype} "
            "(the Gram matrix is not positive definite) or the keys are not finite; use a larger ridge, smaller keys "
            "or float64"
        )
    return factor


def _dual_weights(factor: Tensor, k: Tensor, q: Tensor) -> Tensor:
    """alpha, `[B, H, T, T]`: column t holds the weights of the T values in output t."""
    inner = torch.linalg.solve_triangular(factor, k @ q.mT, upper=False).triu()
    return torch.linalg.solve_triangular(factor.mT, inner, upper=True)


def _primal_solution(q: Tensor, k: Tensor, weights: Tensor, ridge: Tensor) -> Tensor:
    """H_t^-1 q_t = (q_t - K_t alpha_t) / ridge."""
    return (q - weights.mT @ k) / ridge[:, :, None, None]
