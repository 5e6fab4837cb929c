"""The weights of one trained linear layer are the block matrices of Proposition 1 (Figs. 3B and 13)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.replicates import Replicates
from mesascope.figures import Figure
from mesascope.nn import Transformer
from mesascope.training.config import TrainingConfig
from mesascope.uncover import (
    PROPOSITION_1_FOLDED,
    combined_pattern_share,
    fold_inputs,
    weight_product_figure,
    weight_products,
)

BLOCKS = Claim(
    "fig3b.predicted_blocks",
    "Share of the squared weight products, restricted to what can influence the prediction, that lies on the diagonals "
    "of the blocks of Proposition 1, for the seed with the least",
    "arXiv 2309.05858v2, Fig. 3B; threshold ours",
    "not given",
    Threshold(low=0.8),
)


@dataclass(frozen=True)
class PredictedBlocks:
    """The study.

    Attributes:
        models: one linear layer on constructed tokens.
    """

    models: Replicates

    claims = (BLOCKS,)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return self.models.by_label

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure the claim."""
        return Findings(figures=(judge_blocks(sheet, self.models.models(trained)),))


def judge_blocks(sheet: ClaimSheet, models: Sequence[Transformer]) -> Figure:
    """Record the claim for models of one linear layer; returns a picture of the first one's weights."""
    n_s, shares = models[0].config.prediction_dim, [predicted_share(model) for model in models]
    sheet.record(BLOCKS.id, min(shares), tuple(shares))
    return weight_product_figure(
        weight_products(models[0]),
        n_s,
        id="weight_products_1_layer",
        title="Weight products of one trained layer (Figs. 3B and 13)",
        caption="Both products of both heads of one trained layer in blocks of token slots. Proposition 1 puts "
        "a multiple of the identity where the previous observation (key) meets the current one (query), and "
        "one from the current observation to the output. At the input the slots copy and s_t are equal, so "
        "their weights share the work; the slot out is empty.",
    )


def predicted_share(model: Transformer) -> float:
    """Share of a one-layer model's squared weight products on the block diagonals of Proposition 1.

    Restricted to what can influence the prediction, all heads together.
    """
    n_s = model.config.prediction_dim
    return combined_pattern_share(fold_inputs(weight_products(model)[0], n_s), n_s, PROPOSITION_1_FOLDED)
