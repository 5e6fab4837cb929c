"""How alike the products of two attention layers are, in what they do to the inputs of the layers.

A direction that inputs hardly have hardly matters to a layer, so its weights say little, however large they are; every
direction counts as much as the inputs vary along it. Linear attention with one head is the same when both of its
products change sign.

Source: arXiv 2309.05858, Fig. 19. Differences from the paper: (1) it shows pictures; here the cosine of the angle
between two products is measured.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require
from mesascope.nn import Attention


@dataclass(frozen=True)
class ProductSimilarity:
    """Cosines between the products of two layers with one head each, between -1 and 1.

    With A and B the products and x, y independent inputs, PV is E[A x . B x] / sqrt(E|A x|^2 E|B x|^2), and QK the same
    of the numbers x^T A y and x^T B y.

    Attributes:
        QK: of W_K^T W_Q, at least 0: the sign of one layer is chosen so.
        PV: of P W_V, with that sign.
    """

    QK: float
    PV: float


@torch.no_grad()
def product_similarity(first: Attention, second: Attention, inputs: Float[Tensor, "batch time d"]) -> ProductSimilarity:
    """Cosines between the products of two layers that read the same inputs.

    Args:
        first, second: layers with one head and without position encoding; one of them linear.
        inputs: what they read, for example a captured `attn.in`.

    Raises:
        InputError: a layer has several heads or position encodings, or another width than the inputs.
    """
    width = inputs.shape[-1]
    for argument, layer in (("first", first), ("second", second)):
        require(layer.num_heads == 1, f"{argument}.num_heads", layer.num_heads, "1")
        require(layer.position_dim == 0, f"{argument}.position_dim", layer.position_dim, "0")
        require(layer.width == width, f"{argument}.width", layer.width, f"{width}, the size of the inputs")
    scale = _root_of_second_moments(inputs)
    QK = [scale @ layer.QK[0].double() @ scale for layer in (first, second)]
    PV = [layer.PV[0].double() @ scale for layer in (first, second)]
    sign = 1.0 if float((QK[0] * QK[1]).sum()) >= 0 else -1.0
    return ProductSimilarity(sign * _cosine(*QK), sign * _cosine(*PV))


def _root_of_second_moments(inputs: Tensor) -> Float[Tensor, "d d"]:
    """The symmetric square root of E[x x^T]."""
    rows = inputs.double().flatten(0, 1)
    moments, directions = torch.linalg.eigh(rows.T @ rows / len(rows))
    return directions * moments.clamp(min=0).sqrt() @ directions.T


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))
