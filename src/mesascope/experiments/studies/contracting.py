"""Contracting dynamics: the same algorithms where W* is not orthogonal (Fig. 11)."""

from collections.abc import Mapping
from dataclasses import dataclass

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.depth import depth_figure, depth_table
from mesascope.experiments.studies.evaluation import worst
from mesascope.experiments.studies.one_layer import N_S, time_figure
from mesascope.experiments.studies.other_dynamics import OtherDynamics
from mesascope.experiments.studies.predicted_blocks import predicted_share
from mesascope.training.config import TrainingConfig
from mesascope.uncover import weight_product_figure, weight_products

_PAPER = "arXiv 2309.05858v2"

ONE_STEP = Claim(
    "fig11a.one_layer_is_one_step",
    "Test loss of a trained linear layer divided by that of one gradient step with the best step size, contracting "
    "dynamics, for the seed farthest from 1",
    f"{_PAPER}, Fig. 11A; tolerance ours",
    "the curves overlap",
    Threshold(0.95, 1.05),
)
DEPTH = Claim(
    "fig11c.depth_helps",
    "Largest of the ratios of test losses mesa layer / 6 linear layers, 6 / 2 and 2 / 1 linear layers, contracting "
    "dynamics",
    f"{_PAPER}, Fig. 11C",
    "depth helps, the mesa layer is best",
    Threshold(high=1.0),
)
SCALED = Claim(
    "fig11c.proposition_2_scaled",
    "Test loss of 6 linear layers divided by that of the best polynomial preconditioner of degree 6 of the matrix "
    "scaled by its norm at every t (the authors' control), contracting dynamics, for the seed farthest from 1",
    f"{_PAPER}, Fig. 11C; tolerance ours",
    "the curves overlap",
    Threshold(0.9, 1.1),
)
SHARED = Claim(
    "fig11c.proposition_2_shared",
    "Test loss of 6 linear layers divided by that of the best polynomial preconditioner of degree 6 whose coefficients "
    "are shared by all t (what linear layers can realise), contracting dynamics, for the seed farthest from 1",
    f"{_PAPER}, Fig. 11C; tolerance ours",
    "the curves overlap",
    Threshold(0.9, 1.1),
)
BLOCKS = Claim(
    "fig11d.predicted_blocks",
    "Share of the squared weight products of one layer trained on contracting dynamics, restricted to what can "
    "influence the prediction, that lies on the diagonals of the blocks of Proposition 1, for the seed with the least",
    f"{_PAPER}, Fig. 11D; threshold ours, as for Fig. 3B",
    "not given",
    Threshold(low=0.8),
)


@dataclass(frozen=True)
class Contracting:
    """The study, of the models in `models`."""

    models: OtherDynamics

    claims = (ONE_STEP, DEPTH, SCALED, SHARED, BLOCKS)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return self.models.trainings()

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        found = self.models.measure(trained)
        one_layer = self.models.replicates(1).models(trained)
        losses = found.losses
        depth = (
            losses["mesa"] / losses["6 linear"],
            losses["6 linear"] / losses["2 linear"],
            losses["2 linear"] / losses["1 linear"],
        )
        sheet.record(DEPTH.id, max(depth), depth)
        for claim, layers, reference in (
            (ONE_STEP, 1, found.gradient),
            (SCALED, 6, found.scaled[6]),
            (SHARED, 6, found.shared[6]),
        ):
            ratios = found.ratios(layers, reference)
            sheet.record(claim.id, worst(ratios), tuple(ratios))
        shares = [predicted_share(model) for model in one_layer]
        sheet.record(BLOCKS.id, min(shares), tuple(shares))
        figures = (
            time_figure(
                found.linear[1],
                found.gradient,
                found.mesa,
                found.ridge,
                title="Loss along the sequence, contracting dynamics (Fig. 11A)",
                caption="Observations shrink, after growing at first in directions that W* does not keep orthogonal. "
                "One linear layer still has the curve of one gradient step.",
            ),
            depth_figure(found.linear, found.forms, found.mesa, "Depth and Proposition 2, contracting (Fig. 11C)"),
            weight_product_figure(
                weight_products(one_layer[0]),
                N_S,
                id="weight_products_1_layer",
                title="Weight products of one layer, contracting dynamics (Fig. 11D)",
                caption="Both products of both heads in blocks of token slots; Proposition 1 puts a multiple of the "
                "identity where the previous observation (key) meets the current one (query), and one from the current "
                "observation to the output.",
            ),
        )
        return Findings(figures=figures, tables=(depth_table(found.linear, found.forms),))
