"""Modules: attention layers and the Transformer built from them."""

from mesascope.nn.attention import LinearAttention, MesaAttention, SoftmaxAttention
from mesascope.nn.base import Attention, attention_layers
from mesascope.nn.config import (
    AttentionKind,
    ForgetGate,
    Linear,
    Mesa,
    MixedKey,
    PreviousKey,
    Softmax,
    TransformerConfig,
    WriteGate,
)
from mesascope.nn.features import DPFP, LayerNorm, Norm, UnitNorm
from mesascope.nn.multihead import MesaMultiheadAttention
from mesascope.nn.regression import MesaLayerState
from mesascope.nn.transformer import MLP, Block, RunResult, Transformer, sinusoidal_positions

__all__ = [
    "DPFP",
    "MLP",
    "Attention",
    "AttentionKind",
    "Block",
    "ForgetGate",
    "LayerNorm",
    "Linear",
    "LinearAttention",
    "Mesa",
    "MesaAttention",
    "MesaLayerState",
    "MesaMultiheadAttention",
    "MixedKey",
    "Norm",
    "PreviousKey",
    "RunResult",
    "Softmax",
    "SoftmaxAttention",
    "Transformer",
    "TransformerConfig",
    "UnitNorm",
    "WriteGate",
    "attention_layers",
    "sinusoidal_positions",
]
