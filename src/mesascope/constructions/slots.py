"""Transformers written slot by slot: which slot a head reads, which it writes, and what the MLP maps where.

The residual stream of width 4 n_s holds the four slots of `ConstructedTokens()`, `[0, s_t, s_t, s_{t-1}]`. A
construction is a list of layers of slot heads; `build` turns it into the weights of an ordinary Transformer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require
from mesascope.nn import (
    MLP,
    Attention,
    AttentionKind,
    Linear,
    MesaAttention,
    Transformer,
    TransformerConfig,
    attention_layers,
)

OUTPUT, COPY, CURRENT, PREVIOUS = range(4)
"""Slots of a constructed token: the prediction, a copy that layers may overwrite, s_t and s_{t-1}."""

NUM_SLOTS = 4

SLOT_LABELS = ("out", "copy", "s_t", "s_t-1")
"""Names of the slots along the axes of a weight product."""


@dataclass(frozen=True)
class SlotHead:
    """A head that attends by the inner products of two slots.

    Attributes:
        keys: slot read by W_K.
        queries: slot read by W_Q.
        values: W_V, `[n_s, 4 n_s]`, in float64.
        output: slot to which P adds.
    """

    keys: int
    queries: int
    values: Float[Tensor, "n_s width"]
    output: int


@dataclass(frozen=True)
class SlotLayer:
    """Heads, followed by a linear map of each token.

    Attributes:
        heads: may be fewer than in other layers; missing heads are zero.
        update: M, `[4 n_s, 4 n_s]`, in float64: x <- x + M x after the attention. None for no update.
    """

    heads: tuple[SlotHead, ...]
    update: Float[Tensor, "width width"] | None = None


def block_matrix(scalars: Float[Tensor, "*layers rows columns"], n_s: int) -> Float[Tensor, "*layers d_out d_in"]:
    """The matrix whose n_s x n_s block (i, j) is `scalars[i, j]` times the identity."""
    return torch.kron(scalars, torch.eye(n_s, dtype=scalars.dtype))


def read_slot(n_s: int, slot: int, scale: float = 1.0) -> Float[Tensor, "n_s width"]:
    """The matrix, in float64, that maps a token to `scale` times one of its slots."""
    selector = torch.zeros(1, NUM_SLOTS, dtype=torch.float64)
    selector[0, slot] = scale
    return block_matrix(selector, n_s)


def build(
    n_s: int,
    layers: Sequence[SlotLayer],
    *,
    name: str,
    dtype: torch.dtype,
    attention: AttentionKind = Linear(),
) -> Transformer:
    """The Transformer on constructed tokens with exactly these heads and maps.

    A linear map of a token becomes a GELU MLP with hidden units in pairs: GELU(z) - GELU(-z) = z, without error beyond
    rounding.
    """
    require(n_s >= 1, "n_s", n_s, "at least 1")
    width = NUM_SLOTS * n_s
    config = TransformerConfig(
        token_dim=width,
        prediction_dim=n_s,
        attention=(attention,) * len(layers),
        num_heads=max(len(layer.heads) for layer in layers),
        key_dim=n_s,
        mlp_dim=2 * width if any(layer.update is not None for layer in layers) else None,
    )
    # the dtype comes before the weights, or float64 weights would be rounded to float32 on their way
    model = Transformer(config, name=name).to(dtype)
    for module, layer in zip(attention_layers(model), layers, strict=True):
        _set_heads(module, n_s, layer.heads)
    if config.mlp_dim is not None:
        mlps = (module for module in model.modules() if isinstance(module, MLP))
        for mlp, layer in zip(mlps, layers, strict=True):
            _set_map(mlp, torch.zeros(width, width) if layer.update is None else layer.update)
    return model


@torch.no_grad()
def set_ridge(attention: MesaAttention, ridge: float) -> None:
    """Give every head the same ridge, exact in the dtype of the layer."""
    # torch's softplus is the identity above 20; below it, this is its inverse without overflow
    raw = ridge if ridge > 20 else ridge + math.log(-math.expm1(-ridge))
    attention.raw_ridge.fill_(raw)


@torch.no_grad()
def _set_heads(attention: Attention, n_s: int, heads: Sequence[SlotHead]) -> None:
    for weight in (attention.W_Q, attention.W_K, attention.W_V, attention.P):
        weight.zero_()
    for index, head in enumerate(heads):
        own = slice(index * n_s, (index + 1) * n_s)
        attention.W_K[own] = read_slot(n_s, head.keys).to(attention.W_K)
        attention.W_Q[own] = read_slot(n_s, head.queries).to(attention.W_Q)
        attention.W_V[own] = head.values.to(attention.W_V)
        attention.P[:, own] = read_slot(n_s, head.output).T.to(attention.P)


@torch.no_grad()
def _set_map(mlp: MLP, update: Float[Tensor, "width width"]) -> None:
    identity = torch.eye(update.shape[1])
    mlp.W_1.copy_(torch.cat([identity, -identity]))
    mlp.W_2.copy_(torch.cat([update, -update], dim=1))
