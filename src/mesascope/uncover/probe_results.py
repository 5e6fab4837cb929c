"""What probes find: scores with intervals, beside those of two controls, as tables and figures."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require
from mesascope.figures import Array, Figure, Line, LinePanel, Table

Quantity = Literal["r2", "mse", "loss"]
"""r2: coefficient of determination, mean over target dimensions. mse: squared error, mean over them. loss: half the
squared error, summed over them, the unit of every prediction loss here."""

QUANTITY_LABELS: dict[Quantity, str] = {
    "r2": "R² of the probe, held out",
    "mse": "squared error of the probe, held out",
    "loss": "loss of the probe, held out",
}


@dataclass(frozen=True)
class Estimate:
    """A score of every probe, `[depths, T]` each.

    Attributes:
        value: on sequences on which the probes were not fitted.
        low, high: its bootstrap interval over these sequences, given the probes.
        in_sample: on the sequences on which the probes were fitted, as arXiv 2309.05858 scores them.
    """

    value: Array
    low: Array
    high: Array
    in_sample: Array


@dataclass(frozen=True)
class ProbeResult:
    """Linear maps without intercept from the residual stream to targets, one per depth and time step.

    Attributes:
        labels: of the depths, "Inp.", "1", "2", ...
        time_steps: `[T]`, counted from 1.
        r2, mse, loss: scores; see `Quantity`. r2 is not finite where a target dimension does not vary.
        variance: of the targets on the held-out sequences, mean over their dimensions, `[T]`; what an mse is a
            share of.
        num_fitted, num_held_out: sequences kept at each time step, `[T]`.
        weights: the maps, `[depths, T, m, d]`.
    """

    labels: tuple[str, ...]
    time_steps: Array
    r2: Estimate
    mse: Estimate
    loss: Estimate
    variance: Array
    num_fitted: Array
    num_held_out: Array
    weights: Float[Tensor, "depths time m d"]

    def score(self, quantity: Quantity) -> Estimate:
        """The scores called `quantity`."""
        scores: dict[str, Estimate] = {"r2": self.r2, "mse": self.mse, "loss": self.loss}
        require(quantity in scores, "quantity", quantity, f"one of {', '.join(map(repr, scores))}")
        return scores[quantity]

    def at(self, time_step: int) -> int:
        """The index of a time step in the arrays.

        Raises:
            InputError: nothing was probed at this time step.
        """
        steps = [int(step) for step in self.time_steps]
        require(time_step in steps, "time_step", time_step, f"one of {steps[0]} .. {steps[-1]}")
        return steps.index(time_step)


@dataclass(frozen=True)
class ControlledProbe:
    """The same probes on a model and on two controls.

    Attributes:
        model: on the model.
        untrained: on a model of the same shape with weights that were never trained.
        shuffled: on the model, with the targets of other sequences; held out, their r2 is below 0.
        axis: what the time steps are, for axes and column names.
    """

    model: ProbeResult
    untrained: ProbeResult
    shuffled: ProbeResult
    axis: str = "time step t"

    def table(self, id: str, title: str) -> Table:
        """One row per depth and time step: the scores of the model, and those of the controls."""
        columns = ["layer", self.axis, "R²", "R² low", "R² high", "R² in sample", "squared error", "low", "high"]
        columns += ["squared error in sample", "variance of the target", "loss", "loss in sample"]
        columns += ["R² untrained", "R² shuffled", "squared error untrained", "squared error shuffled"]
        rows: list[tuple[str | float | int, ...]] = []
        for depth, label in enumerate(self.model.labels):
            for index, step in enumerate(self.model.time_steps):
                numbers = self._numbers(depth, index)
                rows.append((label, int(step), *(float(number) for number in numbers)))
        return Table(id, title, tuple(columns), tuple(rows))

    def lines(self, quantity: Quantity) -> tuple[Line, ...]:
        """A solid line per depth with its interval, and a dotted one per control, at its best depth of each time."""
        score, steps = self.model.score(quantity), self.model.time_steps
        lines = [
            Line(
                "embedded input" if label == "Inp." else f"layer {label}",
                steps,
                score.value[depth],
                "model",
                depth,
                score.low[depth],
                score.high[depth],
            )
            for depth, label in enumerate(self.model.labels)
        ]
        best = np.max if quantity == "r2" else np.min
        lines += [
            Line(label, steps, best(control.score(quantity).value, axis=0), "reference", len(lines) + index)
            for index, (label, control) in enumerate(self._controls(quantity))
        ]
        return tuple(lines)

    def panel(
        self, title: str, quantity: Quantity, *, log_y: bool = False, y_limits: tuple[float, float] | None = None
    ) -> LinePanel:
        """The `lines` of one quantity over time steps."""
        return LinePanel(title, self.axis, QUANTITY_LABELS[quantity], self.lines(quantity), log_y, y_limits)

    def figure(
        self,
        id: str,
        title: str,
        caption: str,
        quantity: Quantity = "mse",
        *,
        log_y: bool = False,
        y_limits: tuple[float, float] | None = None,
    ) -> Figure:
        """One panel: every depth, and both controls dotted."""
        panel = self.panel(title, quantity, log_y=log_y, y_limits=y_limits)
        return Figure(id=id, title=title, caption=caption, panels=(panel,), columns=1)

    def _controls(self, quantity: Quantity) -> tuple[tuple[str, ProbeResult], ...]:
        suffix = "" if len(self.model.labels) == 1 else ", best layer"
        return (f"untrained model{suffix}", self.untrained), (f"shuffled targets{suffix}", self.shuffled)

    def _numbers(self, depth: int, index: int) -> list[float]:
        at, model = (depth, index), self.model
        r2, mse = (
            [score.value[at], score.low[at], score.high[at], score.in_sample[at]] for score in (model.r2, model.mse)
        )
        loss = [model.loss.value[at], model.loss.in_sample[at]]
        controls = [
            score.value[at]
            for scores in ((self.untrained.r2, self.shuffled.r2), (self.untrained.mse, self.shuffled.mse))
            for score in scores
        ]
        return [*r2, *mse, model.variance[index], *loss, *controls]
