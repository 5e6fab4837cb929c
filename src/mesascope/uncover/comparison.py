"""Predictors compared on the same sequences: their losses, and how far apart their predictions are.

Source: arXiv 2309.05858, Figs. 4C, 4D and 6C (losses); arXiv 2211.15661 (squared prediction difference). Differences
from the latter: (1) the difference is half the squared norm, in the units of every loss here.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import InputError, require
from mesascope.figures import Array, Figure, Line, LinePanel, Role, Table
from mesascope.predictor import Predictor
from mesascope.tasks.sequences import Sequences
from mesascope.uncover.moments import RunningMoments


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

    def measure(sequences: Sequences) -> Tensor:
        targets = sequences.targets
        return torch.stack([_half_squared(item.predict(sequences), targets) for item in predictors])

    return _accumulate(names, "next-token prediction loss", measure, batches)


def prediction_difference(first: Predictor, second: Predictor, batches: Iterable[Sequences]) -> Curves:
    """Half the squared difference between two predictors at every time step: zero if and only if they agree.

    Arguments, units and errors as `loss_curves`; the single curve is labelled "first - second" with their names.
    """

    def measure(sequences: Sequences) -> Tensor:
        return _half_squared(first.predict(sequences), second.predict(sequences))[None]

    labels = (f"{first.name} - {second.name}",)
    return _accumulate(labels, "squared prediction difference", measure, batches)


def _half_squared(
    a: Float[Tensor, "batch time n_s"], b: Float[Tensor, "batch time n_s"]
) -> Float[Tensor, "batch time"]:
    return 0.5 * (a.double() - b.double()).square().sum(-1)


def _accumulate(
    labels: tuple[str, ...],
    quantity: str,
    measure: Callable[[Sequences], Float[Tensor, "curves batch time"]],
    batches: Iterable[Sequences],
) -> Curves:
    """Mean and error over sequences; the last column of the moments holds the mean over time of a sequence."""
    moments, time_steps = RunningMoments(), None
    for sequences in batches:
        steps = _scored(sequences)
        time_steps = steps if time_steps is None else time_steps
        if not np.array_equal(time_steps, steps):
            raise InputError("batches: got batches that score different time steps, but they must be alike")
        values = measure(sequences).numpy().transpose(1, 0, 2)[:, :, steps]
        moments.add(np.concatenate([values, values.mean(-1, keepdims=True)], axis=-1))
    if time_steps is None:
        raise InputError("batches: got none, but there must be at least one")
    error = moments.deviation / math.sqrt(moments.count)
    return Curves(
        labels=labels,
        quantity=quantity,
        time_steps=(time_steps + 1).astype(np.float64),
        mean=moments.mean[:, :-1],
        standard_error=error[:, :-1],
        overall=moments.mean[:, -1],
        overall_standard_error=error[:, -1],
        num_sequences=moments.count,
    )


def _scored(sequences: Sequences) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.arange(sequences.length) if sequences.scored is None else sequences.scored.numpy()
