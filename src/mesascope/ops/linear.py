"""Causal linear attention: o_t = sum_{t' <= t} v_t' (k_t' . q_t), neither scaled nor normalised."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mesascope.ops.kernels import computable, fitting, native_kernels, observed, transforms
from mesascope.ops.native import direct_linear_attention, linear_attention_operator
from mesascope.ops.operands import check_shapes, check_types


def linear_attention_map(
    q: Float[Tensor, "batch time heads d"], k: Float[Tensor, "batch time heads d"]
) -> Float[Tensor, "batch heads time time"]:
    """The causal map of weights `k_t' . q_t`: row t, column t', zero for t' > t."""
    return (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).tril()


def linear_attention(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    v: Float[Tensor, "batch time heads d_v"],
) -> Float[Tensor, "batch time heads d_v"]:
    """Causal linear attention including the diagonal, `[B, T, H, D] -> [B, T, H, Dv]`.

    With keys x_{t-1}, values x_t and queries x_t this is one gradient step on in-context least squares
    (arXiv 2309.05858, Proposition 1). Exact in the dtype of its inputs and differentiable once. On a CPU the native
    kernels compute it in O(T) time and memory; elsewhere the masked product is formed, O(T^2) per head.

    Raises:
        InputError: the shapes do not fit, or devices or dtypes differ.
    """
    if not observed() and fitting(q, k, v):
        return direct_linear_attention(q, k, v)
    check_shapes(q, k, v)
    check_types(q, k, v)
    if native_kernels() is not None and computable(q, k, v):
        return linear_attention_operator(q, k, v)
    if transforms():
        return (linear_attention_map(q, k) @ v.transpose(1, 2)).transpose(1, 2)
    return linear_attention_product(q, k, v)


def linear_attention_product(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    v: Float[Tensor, "batch time heads d_v"],
) -> Float[Tensor, "batch time heads d_v"]:
    """Causal linear attention as a masked product of matrices, on any device."""
    batch, _, heads, _ = q.shape
    q, k, v = (operand.transpose(1, 2).flatten(0, 1) for operand in (q, k, v))
    output: Tensor = _LinearAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
    return output.unflatten(0, (batch, heads)).transpose(1, 2)


class _LinearAttention(torch.autograd.Function):
    """Operands `[B * H, T, D]`. Masks in place, which autograd of the same expression would copy for."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.bmm(q, k.mT).tril_()
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, weights = ctx.saved_tensors
        g = gradients[0]
        pull = torch.bmm(g, v.mT).tril_()
        return torch.bmm(pull, k), torch.bmm(pull.mT, q), torch.bmm(weights.mT, g)
