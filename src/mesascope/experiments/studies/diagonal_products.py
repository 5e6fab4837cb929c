"""The weight products of softmax layers behind the copying layer are nearly diagonal (Fig. 10)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mesascope.claims import Claim, Threshold
from mesascope.errors import require
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.replicates import Replicates, figure_name
from mesascope.figures import Table
from mesascope.training.config import TrainingConfig
from mesascope.uncover import WeightProducts, weight_product_figure, weight_products


@dataclass(frozen=True)
class DiagonalProducts:
    """The study. Its claim is judged by the worst seed; the figure shows the first.

    Attributes:
        figure: id of the paper's figure; claims are named after it.
        models: whose products.
        layers: counted from 1; not the first, whose products act on position encodings, too.
    """

    figure: str
    models: Replicates
    layers: tuple[int, ...] = (2, 3, 5)

    def __post_init__(self) -> None:
        inside = len(self.layers) >= 1 and all(2 <= layer <= self.models.num_layers for layer in self.layers)
        require(inside, "layers", self.layers, f"between 2 and {self.models.num_layers}")

    @property
    def claims(self) -> tuple[Claim, ...]:
        return (
            Claim(
                f"{self.figure}.diagonal",
                "Mean absolute entry on the diagonals of W_K^T W_Q and P W_V divided by that off them, over all heads "
                f"of layers {', '.join(map(str, self.layers))}, for the seed with the least",
                f"arXiv 2309.05858v2, {figure_name(self.figure)}; threshold ours",
                "not given",
                Threshold(low=3.0),
            ),
        )

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return self.models.by_label

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure the claim."""
        by_label = {
            label: [weight_products(model)[layer - 1] for layer in self.layers]
            for label, model in zip(self.models.by_label, self.models.models(trained), strict=True)
        }
        ratios = [
            _diagonal_ratio([matrix for layer in products for matrix in (layer.QK, layer.PV)])
            for products in by_label.values()
        ]
        sheet.record(self.claims[0].id, min(ratios), tuple(ratios))
        products = next(iter(by_label.values()))
        title = f"Weight products of softmax layers ({figure_name(self.figure)})"
        pictures = weight_product_figure(
            products,
            products[0].QK.shape[-1],
            id=f"{self.figure}_products",
            title=title,
            caption=f"Both products of all heads in layers {', '.join(map(str, self.layers))} of one trained model. "
            "They act on coordinates of the embedding, so there are no slots.",
            QK_labels=(),
            PV_labels=(),
        )
        return Findings(figures=(pictures,), tables=(self._table(by_label, title),))

    def _table(self, by_label: Mapping[str, list[WeightProducts]], title: str) -> Table:
        rows = [
            (label, number, _diagonal_ratio([layer.QK]), _diagonal_ratio([layer.PV]))
            for label, products in by_label.items()
            for number, layer in zip(self.layers, products, strict=True)
        ]
        columns = ("training", "layer", "W_K^T W_Q: diagonal / rest", "P W_V: diagonal / rest")
        return Table(f"{self.figure}_diagonals", title, columns, tuple(rows))


def _diagonal_ratio(matrices: list[torch.Tensor]) -> float:
    """Mean absolute entry on the diagonals of square matrices `[H, d, d]` over that off them, all together."""
    sizes = torch.cat([matrix.double().abs() for matrix in matrices])
    on_diagonal = torch.eye(sizes.shape[-1], dtype=torch.bool)
    return float(sizes[:, on_diagonal].mean() / sizes[:, ~on_diagonal].mean())
