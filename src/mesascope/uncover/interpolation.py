"""Averages of two linear Transformers in the space of their weight products.

Source: arXiv 2309.05858, Figs. 4A and 4B. Single matrices are not unique, so averaging them means nothing; the products
W_K^T W_Q and P W_V of each head are averaged. Heads are matched by index: meaningful for models of one training run or
of runs that share their initial weights and data.
"""

import torch

from mesascope.errors import require
from mesascope.nn import Transformer
from mesascope.uncover.product_models import Factors, factors, from_factors, linear_layers


def interpolate(model_a: Transformer, model_b: Transformer, weight: float = 0.5) -> Transformer:
    """The model whose products are (1 - weight) times those of `model_a` plus weight times those of `model_b`.

    Realised by stacking both factorisations along the key dimension, so key sizes may differ and add up.

    Args:
        model_a, model_b: linear attention only, of equal width, depth, heads, activation clip and dtype.
        weight: share of `model_b`, between 0 and 1.

    Raises:
        InputError: `weight` is out of range, a model has parts outside the products, or the models do not match (the
            message names the field).
    """
    require(0 <= weight <= 1, "weight", weight, "between 0 and 1")
    layers_a, layers_b = linear_layers(model_a, "model_a"), linear_layers(model_b, "model_b")
    for field in ("token_dim", "prediction_dim", "num_layers", "num_heads", "activation_clip"):
        value_a, value_b = getattr(model_a.config, field), getattr(model_b.config, field)
        require(value_a == value_b, f"model_b.config.{field}", value_b, f"{value_a}, as in model_a")
    dtype_a, dtype_b = layers_a[0].P.dtype, layers_b[0].P.dtype
    require(dtype_a == dtype_b, "model_b", dtype_b, f"of dtype {dtype_a}, as model_a")
    layers = [
        _average(factors(layer_a), factors(layer_b), weight)
        for layer_a, layer_b in zip(layers_a, layers_b, strict=True)
    ]
    return from_factors(model_a, layers, f"interpolation of {model_a.name} and {model_b.name}")


def _average(a: Factors, b: Factors, weight: float) -> Factors:
    return Factors(
        W_Q=torch.cat([(1 - weight) * a.W_Q, weight * b.W_Q], dim=1),
        W_K=torch.cat([a.W_K, b.W_K], dim=1),
        W_V=torch.cat([(1 - weight) * a.W_V, weight * b.W_V], dim=1),
        P=torch.cat([a.P, b.P], dim=2),
    )
