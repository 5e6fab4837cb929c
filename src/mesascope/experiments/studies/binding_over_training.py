"""Token binding appears during training (Fig. 17)."""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.bound_tokens import NAMES, SHORT_NAMES
from mesascope.experiments.studies.evaluation import Array, evaluation_sequences
from mesascope.experiments.studies.replicates import Replicates, initial_model
from mesascope.experiments.studies.trainings import Architecture
from mesascope.figures import Figure, Line, LinePanel, Table
from mesascope.training.config import TrainingConfig
from mesascope.training.seeds import stream
from mesascope.uncover import QUANTITY_LABELS, ControlledProbe, Quantity, residual_stream, token_probes

_SOURCE = "arXiv 2309.05858v2, Fig. 17; threshold ours"
ARCHITECTURES: tuple[Architecture, ...] = ("softmax-7", "hybrid", "full-mesa")
_CLEAR: tuple[Architecture, ...] = ("softmax-7", "hybrid")

BOUND = {
    kind: Claim(
        f"fig17.bound_{SHORT_NAMES[kind]}",
        f"{NAMES[kind]}: R2 of held-out probes of layer 1 at t = 50 for s_49 and s_50 after training, the smaller, for "
        "the seed with the least",
        _SOURCE,
        "not given",
        Threshold(low=0.9),
    )
    for kind in _CLEAR
}
NOTHING_OLDER = {
    kind: Claim(
        f"fig17.nothing_older_{SHORT_NAMES[kind]}",
        f"{NAMES[kind]}: R2 for s_43 .. s_47 after training, the largest, for the seed with the largest",
        _SOURCE,
        "not given",
        Threshold(high=0.5),
    )
    for kind in _CLEAR
}
LESS_CLEAR = Claim(
    "fig17.full_mesa_less_clear",
    "Contrast of 2 mesa layers after training (R2 for s_49 minus the largest R2 for s_43 .. s_47, mean over seeds) "
    "minus the smaller contrast of the other two models",
    _SOURCE,
    "less clear",
    Threshold(high=0.0),
)
EMERGES = Claim(
    "fig17.emerges",
    "R2 for s_49 before the first optimiser step, the largest over models and seeds",
    "control; threshold ours",
    "not given",
    Threshold(high=0.5),
)

_MOST_POINTS, _SEQUENCES = 26, 2_048


@dataclass(frozen=True)
class _Course:
    """Probes along the training of one model.

    Attributes:
        steps: `[points]`, from the first to the last optimiser step.
        time_steps: t' of the tokens that are read.
        scores: `[seeds, points, t']`, by quantity.
        shuffled: the same with shuffled targets.
    """

    steps: Array
    time_steps: Array
    scores: Mapping[Quantity, Array]
    shuffled: Mapping[Quantity, Array]

    def contrast(self) -> float:
        """R2 for s_49 minus the largest for s_43 .. s_47, after training, mean over seeds."""
        last = self.scores["r2"][:, -1]
        return float((last[:, -2] - last[:, :-3].max(-1)).mean())


@dataclass(frozen=True)
class BindingOverTraining:
    """The study. Claims are judged by the worst seed.

    Attributes:
        models: "softmax-7", "hybrid" and "full-mesa", whose trainings keep snapshots.
    """

    models: Mapping[Architecture, Replicates]

    claims = (*BOUND.values(), *NOTHING_OLDER.values(), LESS_CLEAR, EMERGES)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return {label: config for kind in ARCHITECTURES for label, config in self.models[kind].by_label.items()}

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        courses = {kind: _course(self.models[kind], trained) for kind in ARCHITECTURES}
        for kind in _CLEAR:
            last = courses[kind].scores["r2"][:, -1]
            pair, older = last[:, -2:].min(-1), last[:, :-3].max(-1)
            sheet.record(BOUND[kind].id, min(pair), tuple(pair))
            sheet.record(NOTHING_OLDER[kind].id, max(older), tuple(older))
        contrasts = {kind: course.contrast() for kind, course in courses.items()}
        difference = contrasts["full-mesa"] - min(contrasts[kind] for kind in _CLEAR)
        note = "values: the contrasts of the three models, in the order of the figure"
        sheet.record(LESS_CLEAR.id, difference, tuple(contrasts.values()), note)
        before = [course.scores["r2"][:, 0, -2].max() for course in courses.values()]
        sheet.record(EMERGES.id, max(before), tuple(before))
        return Findings(figures=(_figure(courses, "r2"), _figure(courses, "mse")), tables=(_table(courses),))


def _course(models: Replicates, trained: Trained) -> _Course:
    steps = _thinned(trained.snapshot_steps(next(iter(models.by_label))))
    found = [_along(label, steps, trained) for label in models.by_label]
    quantities: tuple[Quantity, ...] = ("r2", "mse")
    scores, shuffled = (
        {
            name: np.array([[read(one).score(name).value[0] for one in probes] for probes in found])
            for name in quantities
        }
        for read in (attrgetter("model"), attrgetter("shuffled"))
    )
    return _Course(np.array(steps, dtype=np.float64), found[0][0].model.time_steps, scores, shuffled)


def _along(label: str, steps: list[int], trained: Trained) -> list[ControlledProbe]:
    """Probes of the first layer after each of the steps of one training."""
    config = trained.config(label)
    sequences = evaluation_sequences(config.task).select(slice(0, _SEQUENCES))
    untrained = residual_stream(initial_model(config), sequences, layers=(1,))
    streams = (residual_stream(trained.snapshot(label, step, label), sequences, layers=(1,)) for step in steps)
    return [token_probes(read, untrained, sequences, generator=stream(0, "probes")) for read in streams]


def _thinned(steps: list[int]) -> list[int]:
    """At most `_MOST_POINTS` of the steps, evenly, with the first and the last."""
    if len(steps) <= _MOST_POINTS:
        return steps
    chosen = np.linspace(0, len(steps) - 1, _MOST_POINTS).round().astype(int)
    return [steps[index] for index in chosen]


def _figure(courses: Mapping[Architecture, _Course], quantity: Quantity) -> Figure:
    limits = (-0.1, 1.05) if quantity == "r2" else None
    panels = tuple(
        LinePanel(NAMES[kind], "optimiser step", QUANTITY_LABELS[quantity], _lines(course, quantity), y_limits=limits)
        for kind, course in courses.items()
    )
    caption = (
        "How well the observation s_t' can be read off the output of the first layer at t = 50 while the model is "
        "trained; linear maps fitted on half of the sequences and scored on the others. The current observation is "
        "there from the start, for a layer adds to its input; the previous one has to be brought in. Dotted: "
        "observations of other sequences. Bands: one standard deviation over seeds."
    )
    title = "Token binding during training (Fig. 17)" if quantity == "r2" else "The same as squared errors"
    return Figure(f"token_probes_training_{quantity}", title, caption, panels, 2)


def _lines(course: _Course, quantity: Quantity) -> tuple[Line, ...]:
    """One for each of the last four observations, one for the mean of those before, and the shuffled control."""
    scores, steps = course.scores[quantity], [int(step) for step in course.time_steps]
    curves = [(f"t' = {steps[-1 - back]}", scores[:, :, -1 - back]) for back in range(4)]
    curves.append((f"mean of t' = {steps[0]} .. {steps[-5]}", scores[:, :, :-4].mean(-1)))
    lines = [
        Line.over_seeds(label, course.steps, values, "model", index) for index, (label, values) in enumerate(curves)
    ]
    control = course.shuffled[quantity][:, :, -2]
    return (*lines, Line.over_seeds(f"t' = {steps[-2]}, other sequences", course.steps, control, "reference", 1))


def _table(courses: Mapping[Architecture, _Course]) -> Table:
    """After training, mean over seeds."""
    rows: list[tuple[str | float, ...]] = [
        (NAMES[kind], int(step), *(float(course.scores[name][:, -1, index].mean()) for name in ("r2", "mse")))
        for kind, course in courses.items()
        for index, step in enumerate(course.time_steps)
    ]
    columns = ("model", "t'", "R² after training", "squared error after training")
    return Table(
        "token_probes_training", "Tokens in layer 1 after training, held out, mean over seeds", columns, tuple(rows)
    )
