"""Modules: attention layers and the Transformer built from them."""

from mesascope.nn.attention import Attention, LinearAttention, MesaAttention, SoftmaxAttention
from mesascope.nn.config import AttentionKind, Linear, Mesa, Softmax, TransformerConfig
from mesascope.nn.transformer import MLP, Block, RunResult, Transformer, sinusoidal_positions

__all__ = [
    "MLP",
    "Attention",
    "AttentionKind",
    "Block",
    "Linear",
    "LinearAttention",
    "Mesa",
    "MesaAttention",
    "RunResult",
    "Softmax",
    "SoftmaxAttention",
    "Transformer",
    "TransformerConfig",
    "sinusoidal_positions",
]
