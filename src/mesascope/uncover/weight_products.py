"""The products W_K^T W_Q and P W_V of attention heads, and how much of them an algorithm predicts.

Single weight matrices are not unique: any invertible map between W_K and W_Q, or W_V and P, leaves a linear layer the
same. Their products per head are, and what is left of freedom - a scale moved from one product of a head to the other,
two heads that share a term - is removed by looking at all heads together (`combined_coefficients`,
`combined_pattern_share`).

Source: arXiv 2309.05858, Figs. 3B, 9 and 13. Differences from the paper: (1) the structure that it shows as pictures is
also measured, as shares of the squared norm. For layers behind a LayerNorm or with normalised queries and keys the
products are what they are, but their scale means little.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.constructions import COPY, CURRENT, NUM_SLOTS, OUTPUT, PREVIOUS, SLOT_LABELS
from mesascope.errors import InputError, require
from mesascope.figures import Figure, HeatmapPanel
from mesascope.nn import attention_layers

Blocks = tuple[tuple[int, int], ...]
"""Positions (row, column) in a grid of blocks."""


@dataclass(frozen=True)
class WeightProducts:
    """The products of one attention layer.

    Attributes:
        layer: index of the layer, from 0.
        QK: W_K^T W_Q, `[H, d_in, d_in]`: entry [h, a, b] multiplies key coordinate a and query coordinate b.
        PV: P W_V, `[H, d_out, d]`: maps input coordinate b to output coordinate a.
    """

    layer: int
    QK: Float[Tensor, "heads key query"]
    PV: Float[Tensor, "heads output value"]


@dataclass(frozen=True)
class ProductPattern:
    """The blocks in which an algorithm has its weights, multiples of the identity.

    Attributes:
        QK: (key slot, query slot) pairs.
        PV: (output slot, value slot) pairs.
    """

    QK: Blocks
    PV: Blocks


PROPOSITION_1 = ProductPattern(QK=((PREVIOUS, CURRENT),), PV=((OUTPUT, CURRENT),))
"""One gradient step from zero weights, on constructed tokens with four slots."""

PROPOSITION_1_FOLDED = ProductPattern(QK=((1, 0),), PV=((0, 0),))
"""The same after `fold_inputs`."""

FOLDED_LABELS = ("s_t", "s_t-1")
"""Names of the blocks after `fold_inputs`."""


def weight_products(model: nn.Module) -> tuple[WeightProducts, ...]:
    """Products of every attention layer of `model`, first to last, detached from its weights.

    A layer with position encoding has larger QK: its last rows and columns belong to the encoding.

    Raises:
        InputError: the model has no attention layer of this package.
    """
    layers = attention_layers(model)
    if not layers:
        raise InputError(f"model: got {type(model).__name__}, but it must contain a layer of mesascope.nn.Attention")
    products = ((layer.QK.detach().clone(), layer.PV.detach().clone()) for layer in layers)
    return tuple(WeightProducts(index, QK, PV) for index, (QK, PV) in enumerate(products))


def fold_inputs(products: WeightProducts, n_s: int) -> WeightProducts:
    """What the products of a one-layer model do to [s_t, s_{t-1}], free of weights that cannot matter.

    At the input of a model on constructed tokens slot 0 is empty and slots 1 and 2 both hold s_t, so only the sum of
    their weights counts; of the output only slot 0 is read. Deeper layers see other slots: fold the only layer of a
    model, not the first of many.

    Returns:
        QK `[H, 2 n_s, 2 n_s]` and PV `[H, n_s, 2 n_s]` in the blocks `FOLDED_LABELS`.

    Raises:
        InputError: the products are not of size 4 n_s.
    """
    width = products.QK.shape[-1]
    require(width == NUM_SLOTS * n_s, "n_s", n_s, f"a quarter of the size {width} of the products")
    slots = torch.zeros(NUM_SLOTS, 2, dtype=products.QK.dtype)
    slots[COPY, 0] = slots[CURRENT, 0] = slots[PREVIOUS, 1] = 1.0
    embed = torch.kron(slots, torch.eye(n_s, dtype=slots.dtype))
    output = products.PV[:, OUTPUT * n_s : (OUTPUT + 1) * n_s]
    return WeightProducts(products.layer, embed.T @ products.QK @ embed, output @ embed)


def block_scalars(matrix: Float[Tensor, "*batch d_out d_in"], block: int) -> Float[Tensor, "*batch rows columns"]:
    """The mean of the diagonal of every block: the best multiple of the identity in its place.

    Args:
        matrix: cut along its last two dimensions.
        block: size of a block, n_s.

    Raises:
        InputError: `block` does not divide the matrix.
    """
    return _block_diagonals(matrix, block).mean(-1)


def diagonal_energy(matrix: Float[Tensor, "*batch d_out d_in"], block: int) -> Float[Tensor, "*batch rows columns"]:
    """The sum of squares on the diagonal of every block, not normalised. Arguments as `block_scalars`."""
    return _block_diagonals(matrix, block).square().sum(-1)


def block_diagonality(matrix: Float[Tensor, "*batch d_out d_in"], block: int) -> Float[Tensor, "*batch"]:
    """The share of the squared norm that lies on the diagonals of the blocks; 1 / block for a random matrix.

    NaN where the matrix is zero. Arguments as `block_scalars`.
    """
    return diagonal_energy(matrix, block).sum((-2, -1)) / matrix.square().sum((-2, -1))


def pattern_share(matrix: Float[Tensor, "*batch d_out d_in"], block: int, blocks: Blocks) -> Float[Tensor, "*batch"]:
    """The share of the squared norm that lies on the diagonals of the given blocks only; NaN where the matrix is zero.

    Args:
        matrix: cut along its last two dimensions.
        block: size of a block, n_s.
        blocks: (row, column) of the predicted blocks, for example `PROPOSITION_1.QK`.

    Raises:
        InputError: `block` does not divide the matrix or a predicted block lies outside it.
    """
    return _only(matrix, block, blocks).square().sum((-2, -1)) / matrix.square().sum((-2, -1))


def combined_coefficients(products: WeightProducts, block: int) -> Float[Tensor, "output value key query"]:
    """Scalars of what all heads do together: c[i, j, k, l] = sum_h PV_h[i, j] QK_h[k, l] of the block scalars.

    If every block is a multiple of the identity, slot i of a linear layer receives
    c[i, j, k, l] sum_{t' <= t} x_t'^j (x_t'^k . x_t^l), summed over j, k and l, where x^j is slot j of the input.
    Neither a scale moved between the products of a head nor a rotation among heads changes it. Arguments as
    `block_scalars`.
    """
    QK, PV = block_scalars(products.QK, block), block_scalars(products.PV, block)
    return torch.einsum("hij,hkl->ijkl", PV, QK)


def combined_pattern_share(products: WeightProducts, block: int, pattern: ProductPattern) -> float:
    """The share of a linear layer, all heads together, that lies on the block diagonals of a pattern.

    The layer is the tensor sum_h PV_h x QK_h with d^4 entries; this is the squared norm of its entries on the pattern's
    diagonals over that of all. Unlike shares of single heads it does not depend on how heads divide the work. NaN for a
    layer that is zero. Arguments and errors as `pattern_share`.
    """
    QK, PV = products.QK.double(), products.PV.double()
    on_pattern = _squared_norm(_only(QK, block, pattern.QK), _only(PV, block, pattern.PV))
    return float(on_pattern / _squared_norm(QK, PV))


def weight_product_figure(
    products: Sequence[WeightProducts],
    block: int,
    *,
    id: str,
    title: str,
    caption: str,
    QK_labels: tuple[str, ...] = SLOT_LABELS,
    PV_labels: tuple[str, ...] = SLOT_LABELS,
) -> Figure:
    """Both products of every head as heatmaps, a row of panels for each product of each layer.

    Panels of a row share their colour scale, symmetric about zero.

    Args:
        products: layers to show, for example a part of `weight_products(model)`.
        block: size of a block, n_s.
        id, title, caption: of the figure.
        QK_labels, PV_labels: names of the blocks.

    Raises:
        InputError: no layers, or layers with different numbers of heads.
    """
    heads = sorted({layer.QK.shape[0] for layer in products})
    require(len(heads) == 1, "products", heads, "layers with one common number of heads")
    panels: list[HeatmapPanel] = []
    for layer in products:
        panels += _row(layer.QK, "W_K^T W_Q", layer.layer, "query", "key", block, QK_labels)
        panels += _row(layer.PV, "P W_V", layer.layer, "input", "output", block, PV_labels)
    return Figure(id=id, title=title, caption=caption, panels=tuple(panels), columns=heads[0])


def _row(
    matrices: Tensor, product: str, layer: int, x_label: str, y_label: str, block: int, labels: tuple[str, ...]
) -> list[HeatmapPanel]:
    limit = float(matrices.abs().max())
    return [
        HeatmapPanel(
            title=f"{product}, layer {layer + 1}, head {head + 1}",
            x_label=x_label,
            y_label=y_label,
            matrix=matrix.double().numpy(),
            limit=limit if limit > 0 else None,
            block=block,
            block_labels=labels,
        )
        for head, matrix in enumerate(matrices)
    ]


def _block_diagonals(matrix: Tensor, block: int) -> Tensor:
    """`[.., rows, columns, block]`."""
    divides = block >= 1 and matrix.shape[-2] % block == 0 and matrix.shape[-1] % block == 0
    require(divides, "block", block, f"a divisor of the matrix dimensions {tuple(matrix.shape[-2:])}")
    grid = matrix.unflatten(-1, (-1, block)).unflatten(-3, (-1, block))
    return grid.diagonal(dim1=-3, dim2=-1)


def _only(matrix: Tensor, block: int, blocks: Blocks) -> Tensor:
    """The matrix with all but the diagonals of `blocks` set to zero."""
    rows, columns = _block_diagonals(matrix, block).shape[-3:-1]
    chosen = torch.zeros(rows, columns, dtype=matrix.dtype)
    for row, column in blocks:
        inside = 0 <= row < rows and 0 <= column < columns
        require(inside, "blocks", (row, column), f"inside the grid of {rows} x {columns} blocks")
        chosen[row, column] = 1.0
    return matrix * torch.kron(chosen, torch.eye(block, dtype=matrix.dtype))


def _squared_norm(QK: Tensor, PV: Tensor) -> Tensor:
    """||sum_h PV_h x QK_h||^2 from inner products of heads, without the tensor itself."""
    return (torch.einsum("hab,gab->hg", QK, QK) * torch.einsum("hab,gab->hg", PV, PV)).sum()
