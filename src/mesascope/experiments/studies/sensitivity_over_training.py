"""Binding emerges: the first block comes to depend on the newest tokens alone (Figs. 16, 22, 23)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.bound_tokens import NAMES, SHORT_NAMES
from mesascope.experiments.studies.evaluation import evaluation_sequences
from mesascope.experiments.studies.replicates import Replicates, figure_name
from mesascope.experiments.studies.trainings import Architecture
from mesascope.figures import Figure
from mesascope.nn import Transformer
from mesascope.training.config import TrainingConfig
from mesascope.uncover import Sensitivity, sensitivity_over_training

RECENT = 6
"""Tokens with a line of their own in the figures; the others are averaged."""


@dataclass(frozen=True)
class SensitivityOverTraining:
    """The study, for the models of one figure.

    Attributes:
        figure: id of the paper's figure; claims are named after it.
        models: in the order of the panels.
        bound: how many of the newest tokens, the current one included, are claimed to be bound.
        factor: by how much the sensitivity to each of them exceeds that to the rest.
        least: the key of `models` whose factor is claimed to be the smallest, or None.
        sequences: number of sequences averaged over.
    """

    figure: str
    models: Mapping[Architecture, Replicates]
    bound: int
    factor: float
    least: Architecture | None = None
    sequences: int = 64

    @property
    def claims(self) -> tuple[Claim, ...]:
        source = f"arXiv 2309.05858v2, {figure_name(self.figure)}"
        length = next(iter(self.models.values())).task.length
        joint = "and" if self.bound == 2 else ".."
        binding = tuple(
            Claim(
                self.binding_id(key),
                f"Sensitivity of the first block of {NAMES[key]} at t = {length} to t' = {length - self.bound + 1} "
                f"{joint} {length}, the smallest of them, divided by the mean sensitivity to t' = 1 .. "
                f"{length - RECENT}, for the seed with the least",
                f"{source}; threshold ours",
                "not given",
                Threshold(low=self.factor),
            )
            for key in self.models
        )
        if self.least is None:
            return binding
        least = Claim(
            self.least_id,
            f"That ratio of {NAMES[self.least]} divided by the smallest of the other models, means over seeds",
            source,
            "less clear",
            Threshold(high=1.0),
        )
        return (*binding, least)

    def binding_id(self, key: Architecture) -> str:
        return f"{self.figure}.binding_{SHORT_NAMES[key]}"

    @property
    def least_id(self) -> str:
        return f"{self.figure}.less_clear"

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return {label: config for models in self.models.values() for label, config in models.by_label.items()}

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims; the course of the training is that of the first seed."""
        panels, tables, factors = [], [], dict[Architecture, float]()
        for key, models in self.models.items():
            tokens = evaluation_sequences(models.task, self.sequences).tokens
            course = sensitivity_over_training(_snapshots(models, trained), tokens)
            others = [sensitivity_over_training([(0, model)], tokens) for model in models.models(trained)[1:]]
            ratios = tuple(self._ratio(found) for found in (course, *others))
            sheet.record(self.binding_id(key), min(ratios), ratios)
            factors[key] = sum(ratios) / len(ratios)
            title = f"First block, {NAMES[key]}"
            panels.append(course.panel(title, RECENT))
            tables.append(course.table(f"{self.figure}_{SHORT_NAMES[key]}", title, RECENT))
        if self.least is not None:
            smallest = min(factor for key, factor in factors.items() if key != self.least)
            sheet.record(self.least_id, factors[self.least] / smallest)
        caption = (
            "Norm of the gradient of an output of the first block at the last time step with respect to token t', mean "
            f"over outputs and over {self.sequences} sequences, along the training of the first seed. Untrained blocks "
            "depend on the current token through the residual connection and on all others alike; where tokens are "
            "bound, the newest stand out."
        )
        title = f"Sensitivity of the first block to past tokens ({figure_name(self.figure)})"
        figure = Figure(f"{self.figure}_sensitivity", title, caption, tuple(panels), min(3, len(panels)))
        return Findings(figures=(figure,), tables=tuple(tables))

    def _ratio(self, found: Sensitivity) -> float:
        """How far the least of the bound tokens stands out in the last row."""
        newest = range(found.time - self.bound + 1, found.time + 1)
        return min(float(found.ratio(token, RECENT)[-1]) for token in newest)


def _snapshots(models: Replicates, trained: Trained) -> Iterator[tuple[int, Transformer]]:
    """Steps along the training of the first seed and the models after them, the trained one last."""
    label, config = next(iter(models.by_label.items()))
    for step in trained.snapshot_steps(label):
        if step < config.steps:
            yield step, trained.snapshot(label, step, label)
    yield config.steps, trained.model(label, label)
