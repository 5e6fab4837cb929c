"""Attention layers. One type per kind of attention; the kind is chosen once, at construction."""

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.nn.base import Attention
from mesascope.nn.config import AttentionKind, Linear, Mesa, Softmax
from mesascope.nn.features import Norm
from mesascope.nn.mesa import MesaAttention
from mesascope.ops import linear_attention, linear_attention_map, softmax_attention, softmax_attention_map

__all__ = ["LinearAttention", "MesaAttention", "SoftmaxAttention", "build_attention"]


class SoftmaxAttention(Attention):
    """Softmax attention; its pattern is positive and sums to one."""

    def attend(
        self,
        q: Float[Tensor, "batch time heads d"],
        k: Float[Tensor, "batch time heads d"],
        v: Float[Tensor, "batch time heads d_v"],
    ) -> Float[Tensor, "batch time heads d_v"]:
        return softmax_attention(q, k, v)

    def pattern(
        self, q: Float[Tensor, "batch time heads d"], k: Float[Tensor, "batch time heads d"]
    ) -> Float[Tensor, "batch heads time time"]:
        return softmax_attention_map(q, k)


class LinearAttention(Attention):
    """Linear attention; its pattern is k_t' . q_t, signed and not normalised."""

    def attend(
        self,
        q: Float[Tensor, "batch time heads d"],
        k: Float[Tensor, "batch time heads d"],
        v: Float[Tensor, "batch time heads d_v"],
    ) -> Float[Tensor, "batch time heads d_v"]:
        return linear_attention(q, k, v)

    def pattern(
        self, q: Float[Tensor, "batch time heads d"], k: Float[Tensor, "batch time heads d"]
    ) -> Float[Tensor, "batch heads time time"]:
        return linear_attention_map(q, k)


def build_attention(
    kind: AttentionKind,
    width: int,
    num_heads: int,
    key_dim: int,
    *,
    position_dim: int,
    qk_norm: Norm | None,
    generator: torch.Generator | None = None,
) -> Attention:
    """The attention layer of a given kind; arguments as for `Attention`."""
    sizes = (width, num_heads, key_dim)
    match kind:
        case Softmax():
            return SoftmaxAttention(*sizes, position_dim=position_dim, qk_norm=qk_norm, generator=generator)
        case Linear():
            return LinearAttention(*sizes, position_dim=position_dim, qk_norm=qk_norm, generator=generator)
        case Mesa():
            return MesaAttention(*sizes, kind, position_dim=position_dim, qk_norm=qk_norm, generator=generator)
