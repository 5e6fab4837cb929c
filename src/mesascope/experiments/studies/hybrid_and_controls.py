"""Seven softmax layers, one softmax and one mesa layer, and Proposition 2 on linear or richer regressors (Fig. 7)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mesascope.claims import Claim, Threshold
from mesascope.errors import require
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.evaluation import (
    Array,
    curve,
    evaluation_sequences,
    proposition_2_curves,
    time_axis,
    tuned_preconditioner,
    tuning_sequences,
)
from mesascope.experiments.studies.replicates import Replicates, figure_name
from mesascope.figures import Figure, Line, LinePanel, Table
from mesascope.learners import Observations, Regressors, Window, Zero, polynomial_moments
from mesascope.predictor import Predictor
from mesascope.tasks import Dynamics
from mesascope.training.config import TrainingConfig
from mesascope.training.seeds import stream
from mesascope.uncover import Candidate, LearnerRanking, learner_candidates, which_learner

_PAPER = "arXiv 2309.05858v2"

_LINEAR, _RICHER = "Proposition-2-linear", "Proposition-2-nonlinear"

_STEPS = 7
"""Six preconditioning steps and one gradient step, as many as the softmax model has layers."""

_TUNED, _RANKED, _BATCH, _SHOWN = 1024, 1024, 256, 5
"""Sequences on which ranked learners are tuned, and on which they are ranked; of a pass; ranks that the table shows."""


@dataclass(frozen=True)
class HybridAndControls:
    """The study, for one task.

    Attributes:
        figure: id of the paper's panel, `"fig7a"`; claims are named after it.
        softmax: seven softmax layers.
        hybrid: one softmax and one mesa layer on the same task, one per seed of `softmax`.
        richer: regressors of "Proposition-2-nonlinear", of which the best on the tuning sequences is taken; empty where
            the observation is all there is.
        linear_to_richer: least ratio of the losses of Proposition-2-linear and -nonlinear that is claimed, or None.
    """

    figure: str
    softmax: Replicates
    hybrid: Replicates
    richer: tuple[Regressors, ...] = ()
    linear_to_richer: float | None = None

    def __post_init__(self) -> None:
        require(self.softmax.task == self.hybrid.task, "hybrid", self.hybrid.task, "on the task of softmax")
        counts = [len(models.by_label) for models in (self.softmax, self.hybrid)]
        require(counts[0] == counts[1], "hybrid", counts[1], f"as many trainings as softmax ({counts[0]})")
        ordered = self.linear_to_richer is None or len(self.richer) > 0
        require(ordered, "linear_to_richer", self.linear_to_richer, "None without richer regressors")

    @property
    def claims(self) -> tuple[Claim, ...]:
        source = f"{_PAPER}, {figure_name(self.figure)}"
        found = [
            Claim(
                f"{self.figure}.hybrid_is_as_good",
                "Test loss of one softmax and one mesa layer divided by that of seven softmax layers, for the seed "
                "with the largest",
                f"{source}; tolerance ours",
                "the hybrid is strongest",
                Threshold(high=1.02),
            )
        ]
        if self.richer:
            found.append(
                Claim(
                    f"{self.figure}.richer_regressors_describe_it",
                    "Distance in test loss of seven softmax layers from Proposition-2-nonlinear divided by the "
                    "distance from Proposition-2-linear, both of six preconditioning steps and one gradient step, for "
                    "the seed with the largest",
                    source,
                    "closer to -nonlinear",
                    Threshold(high=1.0),
                )
            )
        if self.linear_to_richer is not None:
            found.append(
                Claim(
                    f"{self.figure}.richer_regressors_are_needed",
                    "Test loss of Proposition-2-linear divided by that of Proposition-2-nonlinear",
                    f"{source}; least squares in float64 numpy has 2.5 for windows of 1 and 7; threshold ours",
                    "not given",
                    Threshold(low=self.linear_to_richer),
                )
            )
        return tuple(found)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return {**self.softmax.by_label, **self.hybrid.by_label}

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        sequences = evaluation_sequences(self.task)
        softmax, hybrid = (
            np.stack([curve(model, sequences) for model in models.models(trained)])
            for models in (self.softmax, self.hybrid)
        )
        controls = self._controls
        losses = {name: curve(predictor, sequences) for name, predictor in controls.items()}
        ratios = hybrid.mean(1) / softmax.mean(1)
        sheet.record(f"{self.figure}.hybrid_is_as_good", max(ratios), tuple(ratios))
        if self.richer:
            linear, richer = losses[_LINEAR].mean(), losses[_RICHER].mean()
            distances = abs(softmax.mean(1) - richer) / abs(softmax.mean(1) - linear)
            name = controls[_RICHER].name
            sheet.record(f"{self.figure}.richer_regressors_describe_it", max(distances), tuple(distances), name)
            if self.linear_to_richer is not None:
                sheet.record(f"{self.figure}.richer_regressors_are_needed", linear / richer, note=name)
        rankings = [self._ranking(models, trained) for models in (self.softmax, self.hybrid)]
        return Findings(
            figures=(self._curves_figure(softmax, hybrid, losses), self._ranking_figure(rankings)),
            tables=(self._loss_table(softmax, hybrid, losses), self._ranking_table(rankings)),
            notes=tuple(f"{figure_name(self.figure)}: {ranking.verdict}." for ranking in rankings),
        )

    @property
    def task(self) -> Dynamics:
        return self.softmax.task

    @cached_property
    def _best(self) -> Regressors | None:
        """The richer regressors with the least loss of the best polynomial on the tuning sequences."""
        if len(self.richer) <= 1:
            return self.richer[0] if self.richer else None
        tuning = tuning_sequences(self.task).select(slice(0, _TUNED))
        return min(
            self.richer,
            key=lambda x: polynomial_moments(tuning, _STEPS - 1, "frobenius", regressors=x).optimum(_STEPS - 1),
        )

    @cached_property
    def _candidates(self) -> tuple[Candidate, ...]:
        regressors = (Observations(),) if self._best is None else (Observations(), self._best)
        return learner_candidates(tuning_sequences(self.task).select(slice(0, _TUNED)), _STEPS, regressors)

    @property
    def _controls(self) -> dict[str, Predictor]:
        kinds = {_LINEAR: Observations(), _RICHER: self._best}
        return {
            name: tuned_preconditioner("frobenius", _STEPS - 1, self.task, x)
            for name, x in kinds.items()
            if x is not None
        }

    def _ranking(self, models: Replicates, trained: Trained) -> LearnerRanking:
        """Which learner the first seed behaves like."""
        sequences = evaluation_sequences(self.task)
        starts = range(0, min(_RANKED, sequences.batch_size), _BATCH)
        batches = [sequences.select(slice(start, start + _BATCH)) for start in starts]
        return which_learner(models.models(trained)[0], self._candidates, batches, stream(0, "ranking"))

    def _curves_figure(self, softmax: Array, hybrid: Array, controls: Mapping[str, Array]) -> Figure:
        t = time_axis(self.task.length)
        lines = [
            Line.over_seeds("7 softmax layers", t, softmax, "model", 0),
            Line.over_seeds("1 softmax and 1 mesa layer", t, hybrid, "model", 1),
            *(Line(name, t, loss, "hypothesis", 2 + index) for index, (name, loss) in enumerate(controls.items())),
        ]
        panel = LinePanel("Loss along the sequence", "time step t", "next-token loss", tuple(lines))
        richer = "" if self._best is None else f" Proposition-2-nonlinear: {self._best.label}."
        caption = (
            "Loss along the sequence of trained models (solid) and of Proposition 2 (dashed): six Chebyshev steps with "
            "coefficients tuned on other sequences, on the matrix scaled by its norm, and one gradient step."
            f"{richer}"
        )
        title = f"Softmax layers, a mesa layer and Proposition 2 ({figure_name(self.figure)})"
        return Figure(f"{self.figure}_curves", title, caption, (panel,), 1)

    def _loss_table(self, softmax: Array, hybrid: Array, controls: Mapping[str, Array]) -> Table:
        sequences = evaluation_sequences(self.task)
        rows: list[tuple[str, float]] = [("zero", float(curve(Zero(), sequences).mean()))]
        for x in (Observations(), self._best):
            if x is not None:
                shared = proposition_2_curves("none", (_STEPS - 1,), self.task, x)[_STEPS - 1]
                label = x.label or "observations"
                rows.append((f"7 steps with coefficients shared by all t, {label}", float(shared.mean())))
        rows += [(self._describe(name), float(loss.mean())) for name, loss in controls.items()]
        for name, values in (("7 softmax layers", softmax), ("1 softmax and 1 mesa layer", hybrid)):
            rows += [(f"{name}, seed {seed}", float(loss)) for seed, loss in enumerate(values.mean(1))]
        title = f"Test losses ({figure_name(self.figure)})"
        return Table(f"{self.figure}_losses", title, ("predictor", "loss"), tuple(rows))

    def _describe(self, control: str) -> str:
        label = self._best.label if control == _RICHER and self._best is not None else "observations"
        return f"{control}, {label}"

    def _ranking_figure(self, rankings: list[LearnerRanking]) -> Figure:
        caption = (
            "How far the predictions of tuned learners are from those of a model, as a share of the model's own loss: "
            "mean and interval over sequences. Learners with steps over their depth, others as level lines. Below the "
            "dotted line a learner counts as close."
        )
        title = f"Which learner is it? ({figure_name(self.figure)})"
        panels = tuple(ranking.figure("ranking", title, caption).panels[0] for ranking in rankings)
        return Figure(f"{self.figure}_learners", title, caption, panels, 2)

    def _ranking_table(self, rankings: list[LearnerRanking]) -> Table:
        tables = [ranking.table("ranking", "") for ranking in rankings]
        rows = [
            (ranking.model, *row)
            for ranking, table in zip(rankings, tables, strict=True)
            for row in table.rows[:_SHOWN]
        ]
        title = f"The {_SHOWN} nearest learners ({figure_name(self.figure)}), on {rankings[0].num_sequences} sequences"
        return Table(f"{self.figure}_learners", title, ("model", *tables[0].columns), tuple(rows))


def windows(longest: int) -> tuple[Window, ...]:
    """Windows of 2 .. `longest` observations."""
    return tuple(Window(size) for size in range(2, longest + 1))
