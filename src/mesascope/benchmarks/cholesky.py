"""The mesa layer as batched linear algebra in torch: the peer that our kernels are measured against.

With A = K^T K + ridge I = L L^T (T x T), every leading principal submatrix of A has the matching corner of L as its
factor, so `alpha = L^-T triu(L^-1 K^T Q)` holds the ridge-regression weights of all time steps: matrix products, one
Cholesky and two triangular solves a head. The backward pass uses the optimality condition, which is faster than
autograd through the factorisation: with q~_t = H_t^-1 q_t and g_t = dL/do_t it needs one more solve,
w_t = H_t^-1 G_t^T g_t.

Source: arXiv 2309.05858, eqs. 4-8 and appendix C.2.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mesascope.nn.attention import MesaAttention


def cholesky_mesa_attention(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    v: Float[Tensor, "batch time heads d_v"],
    ridge: Float[Tensor, " heads"],
) -> Float[Tensor, "batch time heads d_v"]:
    """Mesa attention of whole sequences in O(T^3 / 3 + T^2 D) time and O(T^2) memory per head; differentiable once.

    Raises:
        torch.linalg.LinAlgError: the ridge is too small for the keys in this dtype.
    """
    ridge = ridge.expand(q.shape[0], q.shape[2])
    q, k, v = (operand.transpose(1, 2).contiguous() for operand in (q, k, v))
    output: Tensor = _CholeskyMesa.apply(q, k, v, ridge)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2)


def with_cholesky(model: nn.Module) -> int:
    """Make every mesa layer of `model` compute by `cholesky_mesa_attention`, with the same weights; counts them."""
    layers = [module for module in model.modules() if isinstance(module, MesaAttention)]
    for layer in layers:
        layer.__class__ = _CholeskyMesaAttention
    return len(layers)


class _CholeskyMesaAttention(MesaAttention):
    """A mesa layer whose attention is the peer's."""

    def attend(
        self,
        q: Float[Tensor, "batch time heads d"],
        k: Float[Tensor, "batch time heads d"],
        v: Float[Tensor, "batch time heads d"],
    ) -> Float[Tensor, "batch time heads d"]:
        return cholesky_mesa_attention(q, k, v, self.ridge)


class _CholeskyMesa(torch.autograd.Function):
    """Operands are `[B, H, T, D]` and ridge `[B, H]`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ridge: Tensor) -> Tensor:
        gram = k @ k.mT
        gram.diagonal(dim1=-2, dim2=-1).add_(ridge[:, :, None])
        factor = torch.linalg.cholesky(gram)
        weights = _weights(factor, k, q)
        ctx.save_for_backward(q, k, v, ridge, factor, weights)
        return weights.mT @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, ridge, factor, weights = ctx.saved_tensors
        g, penalty = gradients[0], ridge[:, :, None, None]
        solved = (q - weights.mT @ k) / penalty  # q~_t = H_t^-1 q_t = (q_t - K alpha_t) / ridge
        pulled = (g @ v.mT).tril()
        back_projected = pulled @ k
        w = (back_projected - _weights(factor, k, back_projected).mT @ k) / penalty
        attention = (solved @ k.mT).tril()
        dk = (pulled - (w @ k.mT).tril()).mT @ solved - attention.mT @ w
        return w, dk, attention.mT @ g, -(w * solved).sum((-2, -1))


def _weights(factor: Tensor, k: Tensor, q: Tensor) -> Tensor:
    """alpha, `[B, H, T, T]`: column t holds the weights of the T values in output t."""
    inner = torch.linalg.solve_triangular(factor, k @ q.mT, upper=False).triu()
    return torch.linalg.solve_triangular(factor.mT, inner, upper=True)
