"""One W* for all sequences: nothing has to be learned in context, and little is (Fig. 12)."""

from collections.abc import Mapping
from dataclasses import dataclass

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.depth import depth_figure, depth_table, mean_block_diagonality
from mesascope.experiments.studies.one_layer import N_S, OneLayer, linear_label, time_figure
from mesascope.experiments.studies.other_dynamics import OtherDynamics
from mesascope.training.config import TrainingConfig
from mesascope.uncover import weight_product_figure, weight_products

_PAPER = "arXiv 2309.05858v2"

OUTPERFORMS = Claim(
    "fig12a.beats_one_step",
    "Test loss of a linear layer trained on one fixed W* divided by that of one gradient step with the best step size, "
    "for the seed with the largest",
    f"{_PAPER}, Fig. 12A; factor ours",
    "drastically outperforms it",
    Threshold(high=0.5),
)
KNOWS = Claim(
    "fig12a.knows_the_teacher",
    "Loss at t = 2 of a linear layer trained on one fixed W* divided by that of predicting zero, for the seed with the "
    "largest: one transition cannot tell W*",
    f"{_PAPER}, Fig. 12A; threshold ours",
    "low from the start",
    Threshold(high=0.2),
)
BEATS = {
    form: Claim(
        f"fig12c.beats_proposition_2_{form}",
        f"Largest test loss of 1, 2, 4, 6 linear layers and one mesa layer trained on one fixed W*, divided by that of "
        f"the best polynomial preconditioner of degree 6, {what}",
        f"{_PAPER}, Fig. 12C",
        "all models are better",
        Threshold(high=1.0),
    )
    for form, what in (
        ("scaled", "of the matrix scaled by its norm at every t (the authors' control)"),
        ("shared", "with coefficients shared by all t"),
    )
}
BLOCKS = Claim(
    "fig12d.less_structured",
    "Share of the squared weight products on the diagonals of their blocks, of a linear layer trained on one fixed W* "
    "divided by one trained on a fresh W* per sequence (Fig. 13), means over seeds",
    f"{_PAPER}, Fig. 12D",
    "less structured",
    Threshold(high=1.0),
)


@dataclass(frozen=True)
class FixedTeacher:
    """The study.

    Attributes:
        models: trained on the fixed W*.
        fresh: the one-layer study whose linear models, trained on fresh W*, the weights are compared with.
    """

    models: OtherDynamics
    fresh: OneLayer

    claims = (OUTPERFORMS, KNOWS, *BEATS.values(), BLOCKS)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        fresh = self.fresh.trainings()
        return {**self.models.trainings(), **{label: fresh[label] for label in self._fresh_labels()}}

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        found = self.models.measure(trained)
        one_layer = self.models.replicates(1).models(trained)
        ratios = found.ratios(1, found.gradient)
        sheet.record(OUTPERFORMS.id, max(ratios), tuple(ratios))
        early = found.linear[1][:, 1] / found.zero[1]
        sheet.record(KNOWS.id, max(early), tuple(early))
        for form, claim in BEATS.items():
            losses = {name: loss / found.forms[form][6].mean() for name, loss in found.losses.items()}
            largest = max(losses, key=lambda name: losses[name])
            sheet.record(claim.id, losses[largest], tuple(losses.values()), note=f"the largest is that of {largest}")
        fixed = [mean_block_diagonality(model) for model in one_layer]
        fresh = [mean_block_diagonality(trained.model(label, label)) for label in self._fresh_labels()]
        means = sum(fixed) / len(fixed), sum(fresh) / len(fresh)
        sheet.record(BLOCKS.id, means[0] / means[1], note=f"shares: {means[0]:.3f} and {means[1]:.3f}")
        figures = (
            time_figure(
                found.linear[1],
                found.gradient,
                found.mesa,
                found.ridge,
                title="Loss along the sequence, one fixed W* (Fig. 12A)",
                caption="With the same W* in every sequence the models need not learn it in context: their weights may "
                "hold it. The learners, which do not know it, are those of the other figures.",
            ),
            depth_figure(found.linear, found.forms, found.mesa, "Depth and Proposition 2, one fixed W* (Fig. 12C)"),
            weight_product_figure(
                weight_products(one_layer[0]),
                N_S,
                id="weight_products_1_layer",
                title="Weight products of one layer, one fixed W* (Fig. 12D)",
                caption="Both products of both heads in blocks of token slots, to compare with those of a layer that "
                "was trained on a fresh W* in every sequence (Fig. 13).",
            ),
        )
        return Findings(figures=figures, tables=(depth_table(found.linear, found.forms),))

    def _fresh_labels(self) -> list[str]:
        return [linear_label(1, seed) for seed in range(self.fresh.seeds)]
