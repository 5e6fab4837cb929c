"""Predictors compared on the same sequences: their losses, and how far apart their predictions are.

Source: arXiv 2309.05858, Figs. 4C, 4D and 6C (losses); arXiv 2211.15661 (squared prediction difference). Differences
from the latter: (1) the difference is half the squared norm, in the units of every loss here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import InputError, require
from mesascope.figures import Array, Figure, Line, LinePanel, Role, Table
from mesascope.predictor import Predictor, half_squared_error
from mesascope.tasks.sequences import Sequences
from mesascope.uncover.moments import RunningMoments

TimeSteps = tuple[int, ...]
"""Time steps, counted from 1."""


@dataclass(frozen=True)
class Curves:
    """A quantity per time step, averaged over sequences, one curve per row.

    Attributes:
        labels: of the curves.
        quantity: what is measured, for axes and column names.
        time_steps: `[T]`, counted from 1.
        mean: `[curves, T]`, mean over sequences.
        standard_error: `[curves, T]`, of that mean; NaN for a single sequence.
        overall: `[curves]`, mean over time and sequences.
        overall_standard_error: `[curves]`, over sequences.
        num_sequences: sequences in the mean.
    """

    labels: tuple[str, ...]
    quantity: str
    time_steps: Array
    mean: Array
    standard_error: Array
    overall: Array
    overall_standard_error: Array
    num_sequences: int

    def curve(self, label: str) -> Array:
        """The mean of one curve, `[T]`.

        Raises:
            InputError: no curve has this label.
        """
        require(label in self.labels, "label", label, f"one of {', '.join(map(repr, self.labels))}")
        mean: Array = self.mean[self.labels.index(label)]
        return mean

    def table(self, id: str, title: str) -> Table:
        """One row per time step: mean and standard error of every curve."""
        pairs = [(f"{label}: {self.quantity}", f"{label}: standard error") for label in self.labels]
        rows = []
        for index, step in enumerate(self.time_steps):
            numbers = np.stack([self.mean[:, index], self.standard_error[:, index]], axis=1).ravel()
            rows.append((int(step), *(float(number) for number in numbers)))
        return Table(
            id=id, title=title, columns=("time step", *(name for pair in pairs for name in pair)), rows=tuple(rows)
        )

    def figure(
        self,
        id: str,
        title: str,
        caption: str,
        *,
        roles: Mapping[str, Role] = {},
        log_y: bool = False,
        y_limits: tuple[float, float] | None = None,
    ) -> Figure:
        """The curves over time with a band of one standard error.

        Args:
            id, title, caption: of the figure.
            roles: "model" (solid), "hypothesis" (dashed) or "reference" (dotted) by label; "model" where absent.
            log_y, y_limits: as in `LinePanel`.

        Raises:
            InputError: `roles` has a label that no curve has.
        """
        for label in roles:
            require(label in self.labels, "roles", label, f"one of {', '.join(map(repr, self.labels))}")
        lines = tuple(self._line(index, roles) for index in range(len(self.labels)))
        panel = LinePanel(title, "time step t", self.quantity, lines, log_y=log_y, y_limits=y_limits)
        return Figure(id=id, title=title, caption=caption, panels=(panel,), columns=1)

    def _line(self, index: int, roles: Mapping[str, Role]) -> Line:
        label, mean, error = self.labels[index], self.mean[index], self.standard_error[index]
        band = (mean - error, mean + error) if self.num_sequences > 1 else (None, None)
        return Line(label, self.time_steps, mean, roles.get(label, "model"), index, *band)


def loss_curves(predictors: Sequence[Predictor], batches: Iterable[Sequences]) -> Curves:
    """Half the squared error of every predictor at every time step, on the same sequences.

    Args:
        predictors: with distinct names, which become the labels.
        batches: sequences of one task; every predictor sees every batch. Only scored time steps count.

    Returns:
        Losses summed over dimensions and averaged over sequences, accumulated in float64.

    Raises:
        InputError: no predictors, equal names, no batches, or batches that score different time steps.
    """
    names = tuple(predictor.name for predictor in predictors)
    require(len(names) >= 1, "predictors", names, "at least one predictor")
    require(len(set(names)) == len(names), "predictors", names, "predictors with distinct names")

    def measure(sequences: Sequences) -> tuple[TimeSteps, Tensor]:
        targets = sequences.targets.double()
        losses = [half_squared_error(item.predict(sequences).double(), targets) for item in predictors]
        return _scored(sequences, torch.stack(losses))

    return average_over_sequences(names, "next-token prediction loss", map(measure, batches))


def prediction_difference(first: Predictor, second: Predictor, batches: Iterable[Sequences]) -> Curves:
    """Half the squared difference between two predictors at every time step: zero if and only if they agree.

    Arguments, units and errors as `loss_curves`; the single curve is labelled "first - second" with their names.
    """

    def measure(sequences: Sequences) -> tuple[TimeSteps, Tensor]:
        predictions = [item.predict(sequences).double() for item in (first, second)]
        return _scored(sequences, half_squared_error(*predictions)[None])

    labels = (f"{first.name} - {second.name}",)
    return average_over_sequences(labels, "squared prediction difference", map(measure, batches))


def average_over_sequences(
    labels: tuple[str, ...],
    quantity: str,
    batches: Iterable[tuple[TimeSteps, Float[Tensor, "curves batch points"]]],
) -> Curves:
    """Mean and standard error over sequences of a quantity that every sequence has, batch by batch.

    Args:
        labels, quantity: of the curves.
        batches: of each batch of sequences the time steps, counted from 1, and the values there.

    Raises:
        InputError: no batches, or batches with different time steps.
    """
    # the last column of the moments holds the mean over time of a sequence
    moments, time_steps = RunningMoments(), None
    for steps, values in batches:
        time_steps = steps if time_steps is None else time_steps
        if time_steps != steps:
            raise InputError("batches: got batches that score different time steps, but they must be alike")
        numbers = values.double().numpy().transpose(1, 0, 2)
        moments.add(np.concatenate([numbers, numbers.mean(-1, keepdims=True)], axis=-1))
    if time_steps is None:
        raise InputError("batches: got none, but there must be at least one")
    error = moments.deviation / math.sqrt(moments.count)
    return Curves(
        labels=labels,
        quantity=quantity,
        time_steps=np.array(time_steps, dtype=np.float64),
        mean=moments.mean[:, :-1],
        standard_error=error[:, :-1],
        overall=moments.mean[:, -1],
        overall_standard_error=error[:, -1],
        num_sequences=moments.count,
    )


def _scored(sequences: Sequences, values: Float[Tensor, "curves batch time"]) -> tuple[TimeSteps, Tensor]:
    indices = sequences.scored_indices
    return tuple(index + 1 for index in indices), values[:, :, indices]
