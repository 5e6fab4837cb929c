"""How much every layer of a trained model holds of the preconditioned input of Proposition 2.

Figs. 4F, 6B, 11B, 12B, 24B and 25B of arXiv 2309.05858.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mesascope.claims import Claim, Threshold
from mesascope.errors import require
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.evaluation import Array, tuned_preconditioner, tuning_sequences
from mesascope.experiments.studies.replicates import Replicates, Streams, figure_name
from mesascope.figures import Figure, Line, LinePanel, Table
from mesascope.learners import Observations, Preconditioner, Regressors, RidgeRegression, polynomial_moments
from mesascope.training.config import TrainingConfig
from mesascope.training.seeds import stream
from mesascope.uncover import (
    PreconditioningProbes,
    ProbeFit,
    ProbeResult,
    ResidualStream,
    ordinary,
    preconditioned_inputs,
    preconditioning_probes,
    probe,
)

_PAPER = "arXiv 2309.05858v2"

STEPS = 6
"""Chebyshev steps of the preconditioned input, whatever the number of layers."""

JUDGED_AT = 40
"""The time step that claims are about."""

DEGREES = (1, 2, 4, 6)
"""Polynomials of which it is shown at which layer they can be read."""

SCALED, SHARED, EXACT = "scaled by its norm", "shared coefficients", "exact inverse"

_FIT = ProbeFit(resamples=200)


@dataclass(frozen=True)
class LayerProbes:
    """The probes of one model.

    Attributes:
        forms: by the form of the preconditioned input.
        degrees: R2 at the time step of the claims, layer by layer, of the best polynomials with shared coefficients
            and of the exact inverse; by name.
    """

    forms: Mapping[str, PreconditioningProbes]
    degrees: Mapping[str, Array]


@dataclass(frozen=True)
class Preconditioning:
    """The study. Claims are judged by the worst seed; figures show the first.

    Claims are about six tuned Chebyshev steps of the matrix scaled by its norm, without outliers: what the authors
    plot. Coefficients shared by all t, the exact inverse and probes with outliers are in the figure and the table.

    Attributes:
        figure: id of the paper's figure, `"fig4f"`; claims are named after it.
        models: what is probed.
        regressors: x.
        copying_layers: first layers that bind tokens and do not count as preconditioning steps.
    """

    figure: str
    models: Replicates
    regressors: Regressors = Observations()
    copying_layers: int = 0

    def __post_init__(self) -> None:
        least, most = 0, self.models.num_layers - 1
        require(least <= self.copying_layers <= most, "copying_layers", self.copying_layers, f"between 0 and {most}")

    @property
    def claims(self) -> tuple[Claim, ...]:
        layers, counted = self.models.num_layers, self.models.num_layers - self.copying_layers
        among = f"of the {counted} after the copying layer" if self.copying_layers else f"of {layers}"
        source = f"{_PAPER}, {figure_name(self.figure)}"
        return (
            Claim(
                f"{self.figure}.last_layer",
                f"Loss of a probe of the preconditioned input after layer {layers} divided by that at the input, at "
                f"t = {JUDGED_AT}, for the seed with the largest",
                f"{source}; threshold ours",
                "not given",
                Threshold(high=0.2),
            ),
            Claim(
                f"{self.figure}.most_layers",
                f"Layers, {among}, that do not raise the loss of a probe of the preconditioned input at "
                f"t = {JUDGED_AT}, for the seed with the fewest",
                f"{source}: most layers",
                "not given",
                Threshold(low=counted // 2 + 1),
            ),
        )

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return self.models.by_label

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        probes = self.probes(trained)
        losses = [_losses(found.forms[SCALED].cleaned.model) for found in probes.values()]
        ratios = [loss[-1] / loss[0] for loss in losses]
        steps = [
            sum(bool(deep <= shallow) for shallow, deep in pairwise(loss[self.copying_layers :])) for loss in losses
        ]
        last_layer, most_layers = self.claims
        sheet.record(last_layer.id, max(ratios), tuple(ratios))
        sheet.record(most_layers.id, min(steps), tuple(steps))
        return self.findings(probes)

    def probes(self, trained: Trained) -> dict[str, LayerProbes]:
        """By label of the training."""
        task, regressors = self.models.task, self.regressors
        learners: dict[str, Preconditioner] = {
            SCALED: tuned_preconditioner("frobenius", STEPS, task, regressors),
            SHARED: tuned_preconditioner("none", STEPS, task, regressors),
            EXACT: RidgeRegression(regressors=regressors),
        }
        moments = polynomial_moments(tuning_sequences(task), max(DEGREES), regressors=regressors)
        degrees: dict[str, Preconditioner] = {f"degree {degree}": moments.fit(degree) for degree in DEGREES}
        return {
            label: LayerProbes(_by_form(found, learners), _r2_by_layer(found, {**degrees, EXACT: learners[EXACT]}))
            for label, found in zip(self.models.by_label, self.models.streams(trained), strict=True)
        }

    def findings(self, probes: Mapping[str, LayerProbes]) -> Findings:
        """The figure and the tables of what `probes` returns."""
        id, title = f"{self.figure}_preconditioning", f"Probes of the preconditioned input ({figure_name(self.figure)})"
        first = next(iter(probes.values()))
        panels = (
            *(
                first.forms[form].cleaned.panel(
                    f"Preconditioned input, {form}", "loss", log_y=True, y_limits=(1e-4, 10)
                )
                for form in (SCALED, SHARED)
            ),
            _degree_panel(first.degrees),
        )
        caption = (
            "Loss with which a linear probe reads the preconditioned input off the residual stream at time t, for "
            "every layer, on sequences on which it was not fitted and without outliers. Six Chebyshev steps, tuned for "
            "prediction on other sequences, stand for the inverse: of the matrix scaled by its norm at every t, as the "
            "authors plot it, and with coefficients shared by all t. The target itself shrinks with t, so layers are "
            "to be compared at one t. Dotted: the best layer of the model before its training, and of the model when "
            f"targets are those of other sequences. Third panel, t = {JUDGED_AT}: at which layer inputs can be read "
            "that are preconditioned by the best polynomials of several degrees and by the exact inverse."
        )
        details = first.forms[SCALED].cleaned.table(id, title)
        return Findings(figures=(Figure(id, title, caption, panels, 3),), tables=(self._forms_table(probes), details))

    def _forms_table(self, probes: Mapping[str, LayerProbes]) -> Table:
        columns = (
            *("training", "preconditioned input", "sequences", "share dropped", "input"),
            *(f"layer {layer}" for layer in range(1, self.models.num_layers + 1)),
            *("last / input", "best / input", "untrained, best layer", "shuffled targets, best layer"),
            "R² of the next observation",
        )
        rows: list[tuple[str | float | int, ...]] = []
        for label, found in probes.items():
            for form, one in found.forms.items():
                at = one.cleaned.model.at(JUDGED_AT)
                controls = (one.cleaned.untrained, one.cleaned.shuffled)
                beside = (*(float(control.loss.value[:, at].min()) for control in controls),)
                following = float(one.next_observation.r2.value[0, at])
                cleaned, uncleaned = _numbers(one.cleaned.model), _numbers(one.uncleaned)
                rows.append((label, form, "without outliers", float(one.dropped[at]), *cleaned, *beside, following))
                rows.append((label, form, "all", 0.0, *uncleaned, "", "", ""))
        title = f"Losses of probes of the preconditioned input at t = {JUDGED_AT} ({figure_name(self.figure)})"
        return Table(f"{self.figure}_forms", title, columns, tuple(rows))


@dataclass(frozen=True)
class WeakPreconditioning:
    """Models whose layers barely precondition, beside models whose layers do (Fig. 12B).

    Attributes:
        weak: the former; shown, and compared in the claim.
        strong: the latter.
    """

    weak: Preconditioning
    strong: Preconditioning

    @property
    def claims(self) -> tuple[Claim, ...]:
        return (
            Claim(
                f"{self.weak.figure}.barely_preconditions",
                "Loss of a probe of the preconditioned input after the last layer divided by that at the input, at "
                f"t = {JUDGED_AT}, in units of the same ratio in {figure_name(self.strong.figure)}; the least of the "
                "one divided by the largest of the other over seeds",
                f"{_PAPER}, {figure_name(self.weak.figure)}; threshold ours",
                "barely improves",
                Threshold(low=3.0),
            ),
        )

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return {**self.strong.trainings(), **self.weak.trainings()}

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure the claim."""
        probes = self.weak.probes(trained)
        weak, strong = (
            np.array([_remaining(found.forms[SCALED].cleaned.model) for found in by_label.values()])
            for by_label in (probes, self.strong.probes(trained))
        )
        note = f"{weak.min():.3g} here and {strong.max():.3g} in {figure_name(self.strong.figure)}"
        sheet.record(self.claims[0].id, weak.min() / strong.max(), tuple(weak / strong.max()), note)
        return self.weak.findings(probes)


def _by_form(streams: Streams, learners: Mapping[str, Preconditioner]) -> dict[str, PreconditioningProbes]:
    return {
        form: preconditioning_probes(
            streams.model, streams.untrained, streams.sequences, learner, generator=stream(0, "probes"), fit=_FIT
        )
        for form, learner in learners.items()
    }


def _r2_by_layer(streams: Streams, learners: Mapping[str, Preconditioner]) -> dict[str, Array]:
    """R2 of probes at the time step of the claims, `[layers + 1]` for every learner."""
    at = slice(JUDGED_AT - 1, JUDGED_AT)
    layers = ResidualStream(streams.model.labels, streams.model.values[:, :, at], (JUDGED_AT,))
    found = {}
    for name, learner in learners.items():
        targets = preconditioned_inputs(streams.sequences, learner)[:, at]
        result = probe(layers, targets, generator=stream(0, "probes"), kept=ordinary(targets), fit=_FIT)
        found[name] = result.r2.value[:, 0]
    return found


def _degree_panel(degrees: Mapping[str, Array]) -> LinePanel:
    lines = tuple(
        Line(name, np.arange(float(len(r2))), r2, "reference" if name == EXACT else "model", colour)
        for colour, (name, r2) in enumerate(degrees.items())
    )
    title = f"Preconditioned inputs of several degrees, t = {JUDGED_AT}"
    return LinePanel(title, "layer (0: input)", "R² of the probe, held out", lines, y_limits=(0, 1))


def _losses(probes: ProbeResult) -> Array:
    """At the time step of the claims, input first."""
    losses: Array = probes.loss.value[:, probes.at(JUDGED_AT)]
    return losses


def _remaining(probes: ProbeResult) -> float:
    losses = _losses(probes)
    return float(losses[-1] / losses[0])


def _numbers(probes: ProbeResult) -> tuple[float, ...]:
    losses = _losses(probes)
    return (*(float(loss) for loss in losses), _remaining(probes), float(losses.min() / losses[0]))
