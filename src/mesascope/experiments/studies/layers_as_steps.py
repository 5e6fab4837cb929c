"""Is a model of k softmax layers as good as k steps of Proposition 2? (Figs. 6C, 24C and 25C)"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

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
    worst,
)
from mesascope.experiments.studies.replicates import Replicates, figure_name
from mesascope.figures import Figure, Line, LinePanel, Table
from mesascope.learners import Observations, Regressors, RidgeRegression, Scale
from mesascope.training.config import TrainingConfig

_PAPER = "arXiv 2309.05858v2"

_FORMS: dict[str, Scale] = {"scaled": "frobenius", "shared": "none"}
"""The matrix scaled by its norm at every t, as the authors do; coefficients shared by all t."""

_NEAR = 0.05
"""Relative distance from the zero predictor at which the loss at t = 1 is near it."""


@dataclass(frozen=True)
class LayersAsSteps:
    """The study.

    Attributes:
        figure: id of the paper's figure, `"fig6c"`; claims are named after it.
        models: by number of layers, the shallowest first; of one task.
        tolerance: relative distance from Proposition 2 that is allowed.
        regressors: x of Proposition 2.
        zero_loss: loss of predicting zero, where the loss at t = 1 is claimed to be near it; None: it is not.
    """

    figure: str
    models: tuple[Replicates, ...]
    tolerance: float
    regressors: Regressors = Observations()
    zero_loss: float | None = None

    def __post_init__(self) -> None:
        depths = [models.num_layers for models in self.models]
        ordered = len(depths) >= 1 and all(shallow < deep for shallow, deep in pairwise(depths))
        require(ordered, "models", depths, "at least one, with numbers of layers that increase")
        tasks = {models.task for models in self.models}
        require(len(tasks) == 1, "models", f"{len(tasks)} tasks", "models of one task")

    @property
    def claims(self) -> tuple[Claim, ...]:
        return (*self._steps, *self._depth, *self._start)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return {label: config for models in self.models for label, config in models.by_label.items()}

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        sequences = evaluation_sequences(self.models[0].task)
        losses = {
            models.num_layers: np.stack([curve(model, sequences) for model in models.models(trained)])
            for models in self.models
        }
        references = {form: self._proposition_2(scale, self.regressors) for form, scale in _FORMS.items()}
        for claim, (layers, values) in zip(self._steps, losses.items(), strict=True):
            ratios = values.mean(1) / references["scaled"][layers].mean()
            shared = values.mean() / references["shared"][layers].mean()
            sheet.record(claim.id, worst(ratios), tuple(ratios), f"{shared:.3f} with coefficients shared by all t")
        for claim in self._depth:
            shallow, deep = (values.mean(1) for values in (losses[min(losses)], losses[max(losses)]))
            sheet.record(claim.id, deep.max() / shallow.min(), tuple(deep / shallow))
        for claim in self._start:
            first = losses[max(losses)][:, 0]
            sheet.record(claim.id, worst(first, self.zero_loss or 0.0), tuple(first))
        return self._findings(losses, references)

    @property
    def _steps(self) -> tuple[Claim, ...]:
        known = f" on {self.regressors.label}" if self.regressors.label else ""
        return tuple(
            Claim(
                f"{self.figure}.{models.num_layers}_layers_are_steps",
                f"Test loss of {models.num_layers} softmax layers divided by that of Proposition 2 with as many "
                f"steps{known}: the best polynomial of degree {models.num_layers - 1} of the matrix scaled by its "
                "norm, for the seed farthest from 1",
                f"{_PAPER}, {figure_name(self.figure)}: within {100 * self.tolerance:g} %; tolerance ours",
                "almost exactly",
                Threshold(1 - self.tolerance, 1 + self.tolerance),
            )
            for models in self.models
        )

    @property
    def _depth(self) -> tuple[Claim, ...]:
        if len(self.models) == 1:
            return ()
        shallow, deep = self.models[0].num_layers, self.models[-1].num_layers
        return (
            Claim(
                f"{self.figure}.depth_helps",
                f"Largest test loss of {deep} softmax layers divided by the least of {shallow}, over seeds",
                f"{_PAPER}, {figure_name(self.figure)}",
                "the loss falls with depth",
                Threshold(high=1.0),
            ),
        )

    @property
    def _start(self) -> tuple[Claim, ...]:
        if self.zero_loss is None:
            return ()
        return (
            Claim(
                f"{self.figure}.starts_from_nothing",
                f"Loss of {self.models[-1].num_layers} softmax layers at t = 1, where nothing is known: near that of "
                f"predicting zero, {self.zero_loss:g}; for the seed farthest from it",
                f"{_PAPER}, {figure_name(self.figure)}, axis; {100 * _NEAR:g} % are ours",
                f"{self.zero_loss:g}",
                Threshold((1 - _NEAR) * self.zero_loss, (1 + _NEAR) * self.zero_loss),
            ),
        )

    def _proposition_2(self, scale: Scale, regressors: Regressors) -> dict[int, Array]:
        """Loss curves of as many steps as there are layers, by number of layers."""
        layers = [models.num_layers for models in self.models]
        found = proposition_2_curves(scale, tuple(count - 1 for count in layers), self.models[0].task, regressors)
        return {count: found[count - 1] for count in layers}

    def _findings(self, losses: Mapping[int, Array], references: Mapping[str, Mapping[int, Array]]) -> Findings:
        task, t = self.models[0].task, time_axis(self.models[0].task.length)
        ridge = curve(RidgeRegression(regressors=self.regressors), evaluation_sequences(task))
        lines = []
        for colour, (layers, values) in enumerate(losses.items()):
            lines.append(Line.over_seeds(f"{layers} softmax layers", t, values, "model", colour))
            lines.append(Line(f"{layers} steps, scaled by norm", t, references["scaled"][layers], "hypothesis", colour))
            lines.append(Line(f"{layers} steps, shared", t, references["shared"][layers], "reference", colour))
        if self.regressors != Observations():
            plain = self._proposition_2("frobenius", Observations())[max(losses)]
            lines.append(Line(f"{max(losses)} steps on observations", t, plain, "reference", len(losses)))
        lines.append(Line("least squares, ridge 0.001", t, ridge, "reference", len(losses) + 1))
        title = f"Layers and steps ({figure_name(self.figure)})"
        panel = LinePanel("Loss along the sequence, softmax layers", "time step t", "next-token loss", tuple(lines))
        caption = (
            "Loss along the sequence of softmax models (solid) and of Proposition 2 with as many steps: the best "
            "polynomial preconditioners followed by one gradient step, fitted on these very sequences. Dashed: of the "
            "matrix scaled by its norm at every t, as the authors do; dotted: with coefficients shared by all t, and "
            "other points of reference."
        )
        columns = ("layers", "test loss", "scaled, same steps", "ratio", "shared, same steps", "ratio to shared")
        rows = []
        for layers, values in losses.items():
            loss, scaled, shared = values.mean(), *(references[form][layers].mean() for form in _FORMS)
            numbers = (loss, scaled, loss / scaled, shared, loss / shared)
            rows.append((layers, *(float(number) for number in numbers)))
        return Findings(
            figures=(Figure(f"{self.figure}_curves", title, caption, (panel,), 1),),
            tables=(Table(f"{self.figure}_losses", title, columns, tuple(rows)),),
        )
