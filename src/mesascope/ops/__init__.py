"""Attention numerics: functions on tensors `[B, T, H, D]`, no modules."""

from mesascope.ops.linear import linear_attention, linear_attention_map
from mesascope.ops.mesa import mesa_attention, mesa_attention_map, mesa_attention_reference
from mesascope.ops.softmax import softmax_attention, softmax_attention_map

__all__ = [
    "linear_attention",
    "linear_attention_map",
    "mesa_attention",
    "mesa_attention_map",
    "mesa_attention_reference",
    "softmax_attention",
    "softmax_attention_map",
]
