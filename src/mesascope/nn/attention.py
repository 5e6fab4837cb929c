"""Attention layers. One type per kind of attention; the kind is chosen once, at construction.

All of them compute sum_h P_h attend(W_Q,h x, W_K,h x, W_V,h x) without biases. Weights are head-major:
`W_Q, W_K, W_V: [H * n_a, d_in]` and `P: [d_e, H * n_a]`, so head h owns the h-th run of n_a rows (columns of P).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.nn.config import AttentionKind, Linear, Mesa, Softmax
from mesascope.ops import (
    linear_attention,
    linear_attention_map,
    mesa_attention,
    mesa_attention_map,
    softmax_attention,
    softmax_attention_map,
)

Record = Callable[[str, Tensor], None]
"""Receives the name and the value of an activation while a model runs."""


class Attention(nn.Module, ABC):
    """Multi-head causal attention.

    Args:
        width: d_e, size of the input and output.
        num_heads: H.
        key_dim: n_a, size of queries, keys and values of one head.
        position_dim: size of the position encoding concatenated to the input of the query and key projections.
        normalise_qk: divide the queries and keys of each head by their Euclidean norm.
    """

    def __init__(
        self, width: int, num_heads: int, key_dim: int, *, position_dim: int = 0, normalise_qk: bool = False
    ) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.normalise_qk = num_heads, key_dim, normalise_qk
        self.W_Q = nn.Parameter(torch.empty(num_heads * key_dim, width + position_dim))
        self.W_K = nn.Parameter(torch.empty(num_heads * key_dim, width + position_dim))
        self.W_V = nn.Parameter(torch.empty(num_heads * key_dim, width))
        self.P = nn.Parameter(torch.empty(width, num_heads * key_dim))

    @property
    def QK(self) -> Float[Tensor, "heads d_in d_in"]:
        """W_K^T W_Q of every head: entry [h, a, b] multiplies key coordinate a and query coordinate b."""
        return self._per_head(self.W_K).mT @ self._per_head(self.W_Q)

    @property
    def PV(self) -> Float[Tensor, "heads d d"]:
        """P W_V of every head: maps input coordinate b to output coordinate a."""
        return self.P.unflatten(1, (self.num_heads, -1)).transpose(0, 1) @ self._per_head(self.W_V)

    def forward(
        self, x: Float[Tensor, "batch time d"], positions: Tensor | None = None, record: Record | None = None
    ) -> Float[Tensor, "batch time d"]:
        """The sum over heads, without the residual. `positions`, `[T, position_dim]`, only where it was asked for."""
        q, k, v = self.project(x, positions)
        if record is not None:
            record("q", q)
            record("k", k)
            record("v", v)
            record("pattern", self.pattern(q, k))
        mixed = self.attend(q, k, v).flatten(-2)
        return nn.functional.linear(mixed, self.P)

    def project(self, x: Float[Tensor, "batch time d"], positions: Tensor | None = None) -> tuple[Tensor, ...]:
        """Queries, keys and values, each `[B, T, H, n_a]`."""
        if positions is None:
            q, k = nn.functional.linear(x, self.W_Q), nn.functional.linear(x, self.W_K)
        else:
            # W [x; p] = W_x x + W_p p, and the second part is the same for every sequence
            q, k = (
                nn.functional.linear(x, weight[:, : x.shape[-1]])
                + nn.functional.linear(positions, weight[:, x.shape[-1] :])
                for weight in (self.W_Q, self.W_K)
            )
        v = nn.functional.linear(x, self.W_V)
        q, k, v = (operand.unflatten(-1, (self.num_heads, self.key_dim)) for operand in (q, k, v))
        if self.normalise_qk:
            q, k = (operand / (operand.norm(dim=-1, keepdim=True) + 1e-16) for operand in (q, k))
        return q, k, v

    @abstractmethod
    def attend(
        self,
        q: Float[Tensor, "batch time heads d"],
        k: Float[Tensor, "batch time heads d"],
        v: Float[Tensor, "batch time heads d"],
    ) -> Float[Tensor, "batch time heads d"]:
        """The attention itself."""

    @abstractmethod
    def pattern(
        self, q: Float[Tensor, "batch time heads d"], k: Float[Tensor, "batch time heads d"]
    ) -> Float[Tensor, "batch heads time time"]:
        """The causal map of weights with which `attend` mixes values: row t, column t'."""

    def _per_head(self, weight: Tensor) -> Tensor:
        return weight.unflatten(0, (self.num_heads, self.key_dim))


class SoftmaxAttention(Attention):
    """Softmax attention; its pattern is positive and sums to one."""

    def attend(
        self,
        q: Float[Tensor, "batch time heads d"],
        k: Float[Tensor, "batch time heads d"],
        v: Float[Tensor, "batch time heads d"],
    ) -> Float[Tensor, "batch time heads d"]:
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
        v: Float[Tensor, "batch time heads d"],
    ) -> Float[Tensor, "batch time heads d"]:
        return linear_attention(q, k, v)

    def pattern(
        self, q: Float[Tensor, "batch time heads d"], k: Float[Tensor, "batch time heads d"]
    ) -> Float[Tensor, "batch heads time time"]:
        return linear_attention_map(q, k)


class MesaAttention(Attention):
    """Mesa attention with one learned ridge per head (arXiv 2309.05858, eqs. 4-8; ridge = 1 / lambda).

    The ridge is the softplus of a free parameter and so stays positive.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        key_dim: int,
        *,
        initial_ridge: float = 1.0,
        position_dim: int = 0,
        normalise_qk: bool = False,
    ) -> None:
        super().__init__(width, num_heads, key_dim, position_dim=position_dim, normalise_qk=normalise_qk)
        # log(exp(r) - 1), the inverse of softplus, written so that a large ridge does not overflow
        raw = initial_ridge + math.log(-math.expm1(-initial_ridge))
        self.raw_ridge = nn.Parameter(torch.full((num_heads,), raw))

    @property
    def ridge(self) -> Float[Tensor, " heads"]:
        return nn.functional.softplus(self.raw_ridge)

    def attend(
        self,
        q: Float[Tensor, "batch time heads d"],
        k: Float[Tensor, "batch time heads d"],
        v: Float[Tensor, "batch time heads d"],
    ) -> Float[Tensor, "batch time heads d"]:
        return mesa_attention(q, k, v, self.ridge)

    def pattern(
        self, q: Float[Tensor, "batch time heads d"], k: Float[Tensor, "batch time heads d"]
    ) -> Float[Tensor, "batch heads time time"]:
        return mesa_attention_map(q, k, self.ridge)


def build_attention(
    kind: AttentionKind, width: int, num_heads: int, key_dim: int, *, position_dim: int, normalise_qk: bool
) -> Attention:
    """The attention layer of a given kind."""
    match kind:
        case Softmax():
            return SoftmaxAttention(width, num_heads, key_dim, position_dim=position_dim, normalise_qk=normalise_qk)
        case Linear():
            return LinearAttention(width, num_heads, key_dim, position_dim=position_dim, normalise_qk=normalise_qk)
        case Mesa(initial_ridge):
            return MesaAttention(
                width,
                num_heads,
                key_dim,
                initial_ridge=initial_ridge,
                position_dim=position_dim,
                normalise_qk=normalise_qk,
            )
