"""Causal softmax attention, logits divided by sqrt(D)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.ops.kernels import computable, native_kernels, unobserved
from mesascope.ops.native import direct_softmax_attention, softmax_attention_operator
from mesascope.ops.operands import check_shapes, check_types

_LONGEST_NATIVE, _LARGEST_NATIVE_HEAD, _LARGEST_NATIVE, _FEWEST_NATIVE_HEADS = 512, 128, 16_384, 4
"""Up to this length T, this size D of a head and this T D, and from this many heads of all rows on, the native kernel
was faster than both forms in torch: it computes one head per lane of a register, and all tokens of those heads have to
fit into the cache. By `mesascope bench attention` it took 0.23 to 0.57 of the time of scaled_dot_product_attention up
to T D = 4,480, and 1.54 at 32,768."""

_LONGEST_PRODUCT_FORM = 128
"""Up to this length two batched products and a softmax are faster on a CPU than torch's fused kernel: the training step
of `mesascope bench train` took 0.83 instead of 1.01 of its peer's time. Beyond it T x T maps cost too much memory."""


def softmax_attention(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    v: Float[Tensor, "batch time heads d_v"],
) -> Float[Tensor, "batch time heads d_v"]:
    """Causal softmax attention including the diagonal, `[B, T, H, D] -> [B, T, H, Dv]`.

    Differentiable once by the native kernels, which compute short sequences on a CPU.

    Raises:
        InputError: the shapes do not fit, or devices or dtypes differ.
    """
    check_shapes(q, k, v)
    batch, time, heads, size = q.shape
    largest = max(size, v.shape[-1])
    small = time <= _LONGEST_NATIVE and largest <= _LARGEST_NATIVE_HEAD and time * largest <= _LARGEST_NATIVE
    native = small and batch * heads >= _FEWEST_NATIVE_HEADS
    if native and v.numel() > 0 and unobserved(q, k, v):
        return direct_softmax_attention(q, k, v)
    check_types(q, k, v)
    if native and native_kernels() is not None and computable(q, k, v):
        return softmax_attention_operator(q, k, v)
    return softmax_attention_product(q, k, v)


def softmax_attention_product(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    v: Float[Tensor, "batch time heads d_v"],
) -> Float[Tensor, "batch time heads d_v"]:
    """Causal softmax attention in torch: batched products up to T = 128, scaled_dot_product_attention beyond."""
    batch, time, heads, size = q.shape
    if time > _LONGEST_PRODUCT_FORM:
        q, k, v = (operand.transpose(1, 2) for operand in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    q, k, v = (operand.transpose(1, 2).flatten(0, 1) for operand in (q / math.sqrt(size), k, v))
    future = torch.full((time, time), -math.inf, dtype=q.dtype, device=q.device).triu(1)
    mixed = torch.bmm(torch.baddbmm(future, q, k.mT).softmax(-1), v)
    return mixed.unflatten(0, (batch, heads)).transpose(1, 2)


def softmax_attention_map(
    q: Float[Tensor, "batch time heads d"], k: Float[Tensor, "batch time heads d"]
) -> Float[Tensor, "batch heads time time"]:
    """The causal map of weights: row t sums to one over the columns t' <= t."""
    logits = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / math.sqrt(q.shape[-1])
    future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return logits.masked_fill(future, -math.inf).softmax(-1)
