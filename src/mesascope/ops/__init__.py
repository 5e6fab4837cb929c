"""Attention numerics: functions on tensors `[B, T, H, D]`, no modules."""

from mesascope.ops.linear import linear_attention, linear_attention_map
from mesascope.ops.mesa import (
    MesaState,
    mesa_attention,
    mesa_attention_map,
    native_available,
)
from mesascope.ops.softmax import softmax_attention, softmax_attention_map

__all__ = [
    "MesaState",
    "linear_attention",
    "linear_attention_map",
    "mesa_attention",
    "mesa_attention_map",
    "native_available",
    "softmax_attention",
    "softmax_attention_map",
]
