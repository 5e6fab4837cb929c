"""The Transformer of arXiv 2309.05858 in NumPy: pre-norm blocks, positions beside the input of the first q and k."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from oracles import attention
from oracles.dynamics import gelu

Array = NDArray[np.float64]


def layer_norm(x: Array, scale: Array, shift: Array) -> Array:
    """Zero mean and unit variance over the last dimension, then scale and shift; 1e-5 is added to the variance."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift


def positions(length: int, dim: int) -> Array:
    """Sinusoids of base 10,000: sine in even, cosine in odd columns."""
    encoding = np.zeros((length, dim))
    for t in range(length):
        for column in range(dim):
            angle = t / 10_000 ** ((column - column % 2) / dim)
            encoding[t, column] = np.cos(angle) if column % 2 else np.sin(angle)
    return encoding


def forward(
    weights: dict[str, Array],
    tokens: Array,
    kinds: list[str],
    num_heads: int,
    *,
    position_dim: int | None = None,
    qk_norm: Callable[[Array], Array] | None = None,
    clip: float = np.inf,
) -> Array:
    """The residual stream after the last block, or the prediction where there are embeddings; `[B, T, n]`.

    Which parts a block has (norms, MLP) follows from which weights are there.
    """
    x = tokens @ weights["embed"].T if "embed" in weights else tokens
    for layer, kind in enumerate(kinds):
        block = {name.removeprefix(f"blocks.{layer}."): value for name, value in weights.items()}
        normed = _norm(x, block, "attn_norm")
        located = normed
        if layer == 0 and position_dim is not None:
            encoding = np.broadcast_to(positions(x.shape[1], position_dim), (*x.shape[:2], position_dim))
            located = np.concatenate([normed, encoding], axis=-1)
        q, k, v = (
            (value @ block[f"attn.{name}"].T).reshape(*x.shape[:2], num_heads, -1)
            for name, value in (("W_Q", located), ("W_K", located), ("W_V", normed))
        )
        if qk_norm is not None:
            q, k = qk_norm(q), qk_norm(k)
        x = x + _attend(kind, q, k, v, block).reshape(*x.shape[:2], -1) @ block["attn.P"].T
        if "mlp.W_1" in block:
            x = x + gelu(_norm(x, block, "mlp_norm") @ block["mlp.W_1"].T) @ block["mlp.W_2"].T
        x = np.clip(x, -clip, clip)
    return x @ weights["unembed"].T if "unembed" in weights else x


def unit_norm(x: Array) -> Array:
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def standardise(x: Array) -> Array:
    return layer_norm(x, np.ones(x.shape[-1]), np.zeros(x.shape[-1]))


def _attend(kind: str, q: Array, k: Array, v: Array, block: dict[str, Array]) -> Array:
    if kind == "linear":
        return attention.linear_attention(q, k, v)
    if kind == "softmax":
        return attention.softmax_attention(q, k, v)
    return attention.mesa_attention(q, k, v, np.log1p(np.exp(block["attn.raw_ridge"])))


def _norm(x: Array, block: dict[str, Array], name: str) -> Array:
    return layer_norm(x, block[f"{name}.weight"], block[f"{name}.bias"]) if f"{name}.weight" in block else x
