"""CompressedAlg-d: a trained linear Transformer reduced to a few numbers per head.

Every n_s x n_s block of both products of a head becomes the mean of its diagonal times the identity; the result is run
as it is, without tuning.

Source: arXiv 2309.05858, Fig. 4B. Differences from the paper: (1) its text counts 16 numbers per head, its code has 16
for each of the two products, 32 in all. 32 are the default (`AllBlocks`). `LargestBlocks` keeps the 16 that matter most
by size and suits any model; `LiveBlocks` keeps the 16 that the constructed algorithms can use, and tests whether a
trained model makes do with them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mesascope.constructions import COPY, CURRENT, OUTPUT, PREVIOUS, block_matrix
from mesascope.errors import require
from mesascope.nn import Transformer
from mesascope.uncover.product_models import Factors, from_factors, linear_layers
from mesascope.uncover.weight_products import block_scalars


@dataclass(frozen=True)
class AllBlocks:
    """Every block of both products: 32 numbers per head on tokens of four slots."""

    def kept(
        self, QK: Float[Tensor, "layers heads slots slots"], PV: Float[Tensor, "layers heads slots slots"]
    ) -> tuple[Bool[Tensor, "layers heads slots slots"], Bool[Tensor, "layers heads slots slots"]]:
        """Which blocks of QK and of PV survive."""
        return torch.ones_like(QK, dtype=torch.bool), torch.ones_like(PV, dtype=torch.bool)


@dataclass(frozen=True)
class LargestBlocks:
    """The blocks of largest absolute value in each product of each head: 16 numbers per head by default.

    Attributes:
        per_product: blocks kept of QK, and as many of PV.
    """

    per_product: int = 8

    def __post_init__(self) -> None:
        require(self.per_product >= 1, "per_product", self.per_product, "at least 1")

    def kept(
        self, QK: Float[Tensor, "layers heads slots slots"], PV: Float[Tensor, "layers heads slots slots"]
    ) -> tuple[Bool[Tensor, "layers heads slots slots"], Bool[Tensor, "layers heads slots slots"]]:
        """Which blocks of QK and of PV survive."""
        available = QK.shape[-1] ** 2
        require(self.per_product <= available, "per_product", self.per_product, f"at most {available} blocks")
        return self._largest(QK), self._largest(PV)

    def _largest(self, scalars: Tensor) -> Tensor:
        flat = scalars.abs().flatten(-2)
        chosen = flat.topk(self.per_product, dim=-1).indices
        return torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, chosen, True).view_as(scalars)


@dataclass(frozen=True)
class LiveBlocks:
    """The blocks of an algorithm that leaves its data alone: 16 numbers per head on tokens of four slots.

    Keys are read from the data, s_t and s_{t-1}, and heads write to the output and the copy, as in the constructions of
    Propositions 1 and 2; queries and values may be any slot. That is 2 x 4 blocks of each product. Deep trained models
    also rewrite the slots of the data, so a large loss here says that a model does more than precondition its query.

    Attributes:
        key_slots: rows kept of QK.
        output_slots: rows kept of PV.
    """

    key_slots: tuple[int, ...] = (CURRENT, PREVIOUS)
    output_slots: tuple[int, ...] = (OUTPUT, COPY)

    def kept(
        self, QK: Float[Tensor, "layers heads slots slots"], PV: Float[Tensor, "layers heads slots slots"]
    ) -> tuple[Bool[Tensor, "layers heads slots slots"], Bool[Tensor, "layers heads slots slots"]]:
        """Which blocks of QK and of PV survive."""
        return self._rows(QK, "key_slots", self.key_slots), self._rows(PV, "output_slots", self.output_slots)

    def _rows(self, scalars: Tensor, argument: str, rows: tuple[int, ...]) -> Tensor:
        slots = scalars.shape[-1]
        require(all(0 <= row < slots for row in rows), argument, rows, f"between 0 and {slots - 1}")
        mask = torch.zeros_like(scalars, dtype=torch.bool)
        mask[..., list(rows), :] = True
        return mask


BlockSelection = AllBlocks | LargestBlocks | LiveBlocks


@dataclass(frozen=True)
class CompressedAlgorithm:
    """The numbers that are left of a model.

    Attributes:
        QK, PV: block scalars, `[layers, H, slots, slots]`, zero where dropped.
        n_s: size of a block.
        count: how many of the scalars were kept, in all layers and heads.
    """

    QK: Float[Tensor, "layers heads slots slots"]
    PV: Float[Tensor, "layers heads slots slots"]
    n_s: int
    count: int

    @property
    def count_per_head(self) -> float:
        """`count` divided by the number of heads in all layers."""
        return self.count / (self.QK.shape[0] * self.QK.shape[1])


def extract_algorithm(model: Transformer, keep: BlockSelection = AllBlocks()) -> CompressedAlgorithm:
    """The block scalars of a linear Transformer on constructed tokens.

    Args:
        model: linear attention only, no embedding, MLP, norm or position encoding.
        keep: which blocks are kept.

    Raises:
        InputError: the model has other parts (the message says which), or its tokens are not slots of its n_s.
    """
    layers, config = linear_layers(model, "model"), model.config
    n_s = config.prediction_dim
    allowed = f"a multiple of prediction_dim ({n_s})"
    require(config.token_dim % n_s == 0, "model.config.token_dim", config.token_dim, allowed)
    QK = torch.stack([block_scalars(layer.QK.detach(), n_s) for layer in layers])
    PV = torch.stack([block_scalars(layer.PV.detach(), n_s) for layer in layers])
    kept_QK, kept_PV = keep.kept(QK, PV)
    count = int(kept_QK.sum()) + int(kept_PV.sum())
    return CompressedAlgorithm(QK * kept_QK, PV * kept_PV, n_s, count)


def compress(model: Transformer, keep: BlockSelection = AllBlocks()) -> Transformer:
    """CompressedAlg-d: the model whose products consist of the block scalars of `model`, with the same activation clip.

    Its products are realised with key size d_e: W_K and P are identities, W_Q and W_V the products themselves. A model
    that consists of block scalars already is returned as an equal function. Arguments and errors as
    `extract_algorithm`.
    """
    algorithm = extract_algorithm(model, keep)
    num_heads, width = model.config.num_heads, model.config.width
    identity = torch.eye(width, dtype=algorithm.QK.dtype).expand(num_heads, width, width)
    layers = []
    for QK, PV in zip(algorithm.QK, algorithm.PV, strict=True):
        W_Q, W_V = (torch.stack([block_matrix(head, algorithm.n_s) for head in scalars]) for scalars in (QK, PV))
        layers.append(Factors(W_Q=W_Q, W_K=identity, W_V=W_V, P=identity))
    return from_factors(model, layers, f"CompressedAlg-{model.config.num_layers}")
