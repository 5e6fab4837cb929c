"""Models that are determined by their weight products: linear attention on the residual stream and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import InputError
from mesascope.nn import Linear, LinearAttention, Transformer

_REASONS = {
    "embed_dim": "an embedding is not part of the products",
    "mlp_dim": "an MLP is not part of the products",
    "layer_norm": "LayerNorm makes the layers nonlinear and the scale of the products meaningless",
    "position_dim": "position encodings enter the keys and queries beside the tokens",
    "qk_norm": "normalised queries and keys depend on more than the product of their weights",
}


@dataclass(frozen=True)
class Factors:
    """Weights of one layer, head by head.

    Attributes:
        W_Q, W_K, W_V: `[H, n_a, d]`.
        P: `[H, d, n_a]`.
    """

    W_Q: Float[Tensor, "heads key_dim d"]
    W_K: Float[Tensor, "heads key_dim d"]
    W_V: Float[Tensor, "heads key_dim d"]
    P: Float[Tensor, "heads d key_dim"]


def linear_layers(model: Transformer, argument: str) -> list[LinearAttention]:
    """The layers of a model that its products W_K^T W_Q and P W_V determine.

    Raises:
        InputError: the model has anything else; the message names `argument`, the field and the reason.
    """
    for index, kind in enumerate(model.config.attention):
        if not isinstance(kind, Linear):
            raise InputError(
                f"{argument}.config.attention[{index}]: got {kind}, but it must be Linear(): only a linear layer is a "
                "function of its products alone"
            )
    for field, reason in _REASONS.items():
        value = getattr(model.config, field)
        if value not in (None, False):
            allowed = "False" if value is True else "None"
            raise InputError(f"{argument}.config.{field}: got {value}, but it must be {allowed}: {reason}")
    return [module for module in model.modules() if isinstance(module, LinearAttention)]


def factors(layer: LinearAttention) -> Factors:
    """The weights of `layer`, detached."""
    heads = (layer.num_heads, layer.key_dim)
    W_Q, W_K, W_V = (weight.detach().unflatten(0, heads) for weight in (layer.W_Q, layer.W_K, layer.W_V))
    return Factors(W_Q, W_K, W_V, layer.P.detach().unflatten(1, heads).transpose(0, 1))


@torch.no_grad()
def from_factors(template: Transformer, layers: Sequence[Factors], name: str) -> Transformer:
    """A model like `template`, in its dtype and with its activation clip, but with other weights and key size."""
    key_dim = layers[0].W_Q.shape[1]
    dtype = next(template.parameters()).dtype
    model = Transformer(replace(template.config, key_dim=key_dim), name=name).to(dtype)
    for module, layer in zip(linear_layers(model, "model"), layers, strict=True):
        module.W_Q.copy_(layer.W_Q.flatten(0, 1))
        module.W_K.copy_(layer.W_K.flatten(0, 1))
        module.W_V.copy_(layer.W_V.flatten(0, 1))
        module.P.copy_(layer.P.transpose(0, 1).flatten(1))
    return model
