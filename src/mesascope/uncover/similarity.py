"""How alike the products of two attention layers are, as far as their inputs can tell.

Directions that no input has do not matter to a layer: their weights stay where they started. Linear attention with one
head is the same when both of its products change sign.

Source: arXiv 2309.05858, Fig. 19. Differences from the paper: (1) it shows pictures; here the cosine of the angle
between two products is measured.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require
from mesascope.nn import Attention

_NEGLIGIBLE = 1e-6
"""Share of the largest eigenvalue of the inputs' second moments below which a direction counts as absent."""


@dataclass(frozen=True)
class ProductSimilarity:
    """Cosines between the products of two layers with one head each, between -1 and 1.

    Attributes:
        QK: of W_K^T W_Q, at least 0: the sign of one layer is chosen so.
        PV: of P W_V, with that sign.
        directions: dimension of the span of the inputs.
    """

    QK: float
    PV: float
    directions: int


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
    basis = _span(inputs)
    QK = [basis.T @ layer.QK[0].double() @ basis for layer in (first, second)]
    PV = [layer.PV[0].double() @ basis for layer in (first, second)]
    sign = 1.0 if float((QK[0] * QK[1]).sum()) >= 0 else -1.0
    return ProductSimilarity(sign * _cosine(*QK), sign * _cosine(*PV), basis.shape[1])


def _span(inputs: Tensor) -> Float[Tensor, "d directions"]:
    """An orthonormal basis of the directions that inputs have."""
    rows = inputs.double().flatten(0, 1)
    moments, directions = torch.linalg.eigh(rows.T @ rows)
    return directions[:, moments > _NEGLIGIBLE * moments.max()]


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))
