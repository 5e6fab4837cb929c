"""What the drop-in for torch's multi-head attention refuses, and what it says then."""

from typing import Any

import pytest
import torch

from mesascope.errors import InputError
from mesascope.nn import DPFP, Mesa, MesaMultiheadAttention

pytestmark = pytest.mark.usefixtures("unchecked_shapes")

X = torch.ones(3, 5, 8)
LAYER = MesaMultiheadAttention(8, 2, batch_first=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 0}, "embed_dim: got 0, but it must be at least 1"),
        ({"num_heads": 3}, "num_heads: got 3, but it must be a positive divisor of embed_dim (8)"),
        ({"num_heads": 0}, "num_heads: got 0"),
        ({"dropout": 0.1}, "dropout: got 0.1, but it must be 0"),
        ({"add_bias_kv": True}, "add_bias_kv: got True, but it must be False"),
        ({"add_zero_attn": True}, "add_zero_attn: got True, but it must be False"),
        ({"kdim": 4}, "kdim: got 4, but it must be None or embed_dim (8)"),
        ({"vdim": 4}, "vdim: got 4, but it must be None or embed_dim (8)"),
        ({"mesa": Mesa(features=(DPFP(9),))}, "nu: got 9, but it must be at most 7 for keys of 4 coordinates"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        MesaMultiheadAttention(**{"embed_dim": 8, "num_heads": 2, **options})
    assert str(error.value).startswith(message)


def test_sizes_equal_to_embed_dim_are_fine() -> None:
    assert MesaMultiheadAttention(8, 2, kdim=8, vdim=8).embed_dim == 8


BIDIRECTIONAL = torch.zeros(5, 5)
BANDED = torch.ones(5, 5, dtype=torch.bool).triu(1) | torch.ones(5, 5, dtype=torch.bool).tril(-2)
SOFT = torch.full((5, 5), -torch.inf).triu(1) - 0.5 * torch.ones(5, 5).tril(-1)
CALLS: dict[str, tuple[tuple[torch.Tensor, ...], dict[str, Any]]] = {
    "is_causal: got False, but it must be True, or attn_mask the causal mask": ((X, X, X), {}),
    "attn_mask: got 'another mask', but it must be the causal one": ((X, X, X), {"attn_mask": BIDIRECTIONAL}),
    "attn_mask: got 'another mask', but": ((X, X, X), {"attn_mask": BIDIRECTIONAL, "is_causal": True}),
    "attn_mask: got 'another mask'": ((X, X, X), {"attn_mask": BANDED}),
    "attn_mask: got 'another": ((X, X, X), {"attn_mask": SOFT}),
    "attn_mask: got (4, 4), but it must be of shape (5, 5) or (6, 5, 5)": ((X, X, X), {"attn_mask": BANDED[1:, 1:]}),
    "query: got (3, 5, 7), but it must be of shape [B, T, embed_dim] or [T, embed_dim] with embed_dim = 8": (
        (X[..., 1:], X, X),
        {},
    ),
    "query: got (8,), but": ((X[0, 0], X, X), {}),
    "query: got (1, 3, 5, 8), but": ((X[None], X, X), {}),
    "key: got (3, 4, 8), but it must be of the shape of query (3, 5, 8)": ((X, X[:, 1:], X), {"is_causal": True}),
    "value: got (3, 4, 8), but": ((X, X, X[:, 1:]), {"is_causal": True}),
    "value: got (5, 8), but": ((X, X, X[0]), {"is_causal": True}),
    "key_padding_mask: got (5,), but it must be of shape [B, T] = (3, 5)": (
        (X, X, X),
        {"key_padding_mask": torch.zeros(5, dtype=torch.bool), "is_causal": True},
    ),
    "key_padding_mask: got (1, 5), but it must be of shape [T] = (5,)": (
        (X[0], X[0], X[0]),
        {"key_padding_mask": torch.zeros(1, 5, dtype=torch.bool), "is_causal": True},
    ),
    "key_padding_mask: got 'other values', but it must be boolean, or 0 and -inf": (
        (X, X, X),
        {"key_padding_mask": torch.ones(3, 5), "is_causal": True},
    ),
}


@pytest.mark.parametrize("message", CALLS)
def test_calls(message: str) -> None:
    arguments, options = CALLS[message]
    with pytest.raises(InputError) as error:
        LAYER(*arguments, **options)
    assert str(error.value).startswith(message)


def test_the_order_of_dimensions_is_named() -> None:
    with pytest.raises(InputError, match=r"^query: .* of shape \[T, B, embed_dim\] or \[T, embed_dim\]"):
        MesaMultiheadAttention(8, 2)(X[..., 1:], X, X)
