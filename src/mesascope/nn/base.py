"""What all attention layers have in common.

All of them compute sum_h P_h attend(W_Q,h x, W_K,h x, W_V,h x) without biases. Weights are head-major:
`W_Q, W_K, W_V: [H * n_a, d_in]` and `P: [d_e, H * n_a]`, so head h owns the h-th run of n_a rows (columns of P).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.errors import require
from mesascope.nn.features import Feature, Norm, apply_features
from mesascope.ops.dense import linear_maps

Record = Callable[[str, Tensor], None]
"""Receives the name and the value of an activation while a model runs."""


class Attention(nn.Module, ABC):
    """Multi-head causal attention.

    Args:
        width: d_e, size of the input and output.
        num_heads: H.
        key_dim: n_a, size of queries, keys and values of one head.
        position_dim: size of the position encoding concatenated to the input of the query and key projections.
        qk_norm: how the queries and keys of each head are normalised, or None.
        generator: draws the initial weights; None: torch's global generator, as in torch.nn.

    Raises:
        InputError: a size is not positive.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        key_dim: int,
        *,
        position_dim: int = 0,
        qk_norm: Norm | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for argument, value in (("width", width), ("num_heads", num_heads), ("key_dim", key_dim)):
            require(value >= 1, argument, value, "at least 1")
        require(position_dim >= 0, "position_dim", position_dim, "at least 0")
        self.width, self.num_heads, self.key_dim, self.position_dim = width, num_heads, key_dim, position_dim
        self.features: tuple[Feature, ...] = () if qk_norm is None else (qk_norm,)
        self.W_Q = nn.Parameter(torch.empty(num_heads * key_dim, width + position_dim))
        self.W_K = nn.Parameter(torch.empty(num_heads * key_dim, width + position_dim))
        self.W_V = nn.Parameter(torch.empty(num_heads * key_dim, width))
        self.P = nn.Parameter(torch.empty(width, num_heads * key_dim))
        for weight in (self.W_Q, self.W_K, self.W_V, self.P):
            nn.init.xavier_uniform_(weight, generator=generator)

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
        return self._sum_of_heads(self.attend(q, k, v))

    def attention_map(
        self, x: Float[Tensor, "batch time d"], positions: Tensor | None = None
    ) -> Float[Tensor, "batch heads time time"]:
        """The causal map alpha of weights with which the values of `x` are mixed: row t, column t'."""
        q, k, _ = self.project(x, positions)
        return self.pattern(q, k)

    def project(self, x: Float[Tensor, "batch time d"], positions: Tensor | None = None) -> tuple[Tensor, ...]:
        """Queries, keys and values as the attention takes them, `[B, T, H, ...]`."""
        q, k, v = self._projections(x, positions)
        return apply_features(self.features, q), apply_features(self.features, k), v

    def _projections(self, x: Tensor, positions: Tensor | None) -> tuple[Tensor, ...]:
        """W_Q x, W_K x and W_V x, each `[B, T, H, n_a]`."""
        shape = f"of shape [B, T, {self.width}]"
        require(x.dim() == 3 and x.shape[-1] == self.width, "x", tuple(x.shape), shape)
        expected = None if self.position_dim == 0 else (x.shape[1], self.position_dim)
        given = None if positions is None else tuple(positions.shape)
        allowed = "None, for position_dim is 0" if expected is None else f"of shape [T, position_dim] = {expected}"
        require(given == expected, "positions", given, allowed)
        if positions is None:
            q, k, v = linear_maps(x, self.W_Q, self.W_K, self.W_V)
        else:
            # W [x; p] = W_x x + W_p p, and the second part is the same for every sequence
            q, k, v = linear_maps(x, self.W_Q[:, : self.width], self.W_K[:, : self.width], self.W_V)
            of_q, of_k = linear_maps(positions, self.W_Q[:, self.width :], self.W_K[:, self.width :])
            q, k = q + of_q, k + of_k
        return tuple(operand.unflatten(-1, (self.num_heads, self.key_dim)) for operand in (q, k, v))

    def _sum_of_heads(self, mixed: Float[Tensor, "batch *time heads n_a"]) -> Float[Tensor, "batch *time d"]:
        """sum_h P_h of what each head has mixed."""
        return linear_maps(mixed.flatten(-2), self.P)[0]

    @abstractmethod
    def attend(
        self,
        q: Float[Tensor, "batch time heads d"],
        k: Float[Tensor, "batch time heads d"],
        v: Float[Tensor, "batch time heads d_v"],
    ) -> Float[Tensor, "batch time heads d_v"]:
        """The attention itself."""

    @abstractmethod
    def pattern(
        self, q: Float[Tensor, "batch time heads d"], k: Float[Tensor, "batch time heads d"]
    ) -> Float[Tensor, "batch heads time time"]:
        """The causal map of weights with which `attend` mixes values: row t, column t'."""

    def _per_head(self, weight: Tensor) -> Tensor:
        return weight.unflatten(0, (self.num_heads, self.key_dim))


def attention_layers(model: nn.Module) -> list[Attention]:
    """The attention layers of this package inside `model`, first to last."""
    return [module for module in model.modules() if isinstance(module, Attention)]
