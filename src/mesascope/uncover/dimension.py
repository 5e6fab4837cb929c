"""Learners over the size of observations: how each fares as the dimension grows with the context.

An induction head, which weighs the past by similarity, needs more and more context as observations grow; least squares
does not. Both are tuned by a line search for every size, on sequences that they are not measured on.

Source: arXiv 2309.05858, Figs. 5B and 20. Differences from the paper: (1) the line searches are refined around their
best value and must not end at the edge of their grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mesascope.errors import require
from mesascope.figures import Array, Figure, Line, LinePanel, Table
from mesascope.learners import (
    LineSearch,
    RidgeRegression,
    SoftmaxKernelRegression,
    mean_loss,
    refined_line_search,
)
from mesascope.predictor import Predictor
from mesascope.tasks import Dynamics, Sequences

Unit = Literal["summed", "per dimension"]
"""Half the squared error summed over the dimensions of an observation, or that divided by n_s."""


@dataclass(frozen=True)
class Family:
    """Learners that differ in one positive number, which is tuned.

    Attributes:
        name: label in tables and legends.
        number: what it is called, `"ridge"`.
        make: the learner with a value of it.
        grid: values at which the line search starts.
    """

    name: str
    number: str
    make: Callable[[float], Predictor]
    grid: tuple[float, ...]

    def tune(self, sequences: Sequences) -> LineSearch[Predictor]:
        """The best member on `sequences`; errors as in `refined_line_search`."""
        return refined_line_search(self.make, self.grid, sequences)


LEAST_SQUARES = Family("least squares", "ridge", RidgeRegression, tuple(10.0**exponent for exponent in range(-6, 6)))
"""Ridge regression on all transitions seen so far."""

SOFTMAX_KERNEL = Family(
    "softmax kernel", "beta", SoftmaxKernelRegression, tuple(10.0 ** (exponent / 2) for exponent in range(-8, 6))
)
"""What an induction head computes (`SoftmaxKernelRegression`)."""


@dataclass(frozen=True)
class LossesByDimension:
    """Losses of tuned learners for several sizes of an observation.

    Attributes:
        families: names of the learners.
        numbers: name of the tuned number of each.
        n_s: sizes, `[sizes]`.
        losses: mean over sequences and time, summed over dimensions, `[families, seeds, sizes]`.
        tuned: the tuned numbers, `[families, seeds, sizes]`.
    """

    families: tuple[str, ...]
    numbers: tuple[str, ...]
    n_s: Array
    losses: Array
    tuned: Array

    def of(self, family: str, unit: Unit = "summed") -> Array:
        """Losses of one family, `[seeds, sizes]`.

        Raises:
            InputError: no family has this name.
        """
        require(family in self.families, "family", family, f"one of {', '.join(map(repr, self.families))}")
        losses: Array = self.losses[self.families.index(family)]
        return losses / self.n_s if unit == "per dimension" else losses

    def table(self, id: str, title: str, unit: Unit = "summed") -> Table:
        """One row per size: mean over seeds of every loss and tuned number."""
        columns = [
            column
            for family, number in zip(self.families, self.numbers, strict=True)
            for column in (f"{family}: loss, {unit}", f"{family}: {number}")
        ]
        rows = []
        for index, n_s in enumerate(self.n_s):
            pairs = [
                (self.of(family, unit)[:, index].mean(), tuned[:, index].mean())
                for family, tuned in zip(self.families, self.tuned, strict=True)
            ]
            rows.append((int(n_s), *(float(number) for pair in pairs for number in pair)))
        return Table(id, title, ("n_s", *columns), tuple(rows))

    def panel(self, title: str, unit: Unit = "summed") -> LinePanel:
        """Loss over n_s, with a band of one standard deviation over seeds."""
        lines = tuple(
            Line.over_seeds(family, self.n_s, self.of(family, unit), "hypothesis", index)
            for index, family in enumerate(self.families)
        )
        return LinePanel(title, "size of an observation n_s", f"loss, {unit}", lines)

    def figure(self, id: str, title: str, caption: str, unit: Unit = "summed") -> Figure:
        """Loss over n_s as a figure of its own."""
        return Figure(id, title, caption, (self.panel(title, unit),), 1)


def losses_by_dimension(
    task: Callable[[int], Dynamics],
    sizes: Sequence[int],
    streams: Sequence[tuple[torch.Generator, torch.Generator]],
    *,
    families: Sequence[Family] = (LEAST_SQUARES, SOFTMAX_KERNEL),
    tuning_sequences: int = 256,
    sequences: int = 1024,
) -> LossesByDimension:
    """Tune every family for every size, and measure it on other sequences.

    Args:
        task: where sequences of size n_s come from, for example with T = 4 n_s.
        sizes: values of n_s, ascending.
        streams: for every seed the generators of the sequences that are tuned on and measured on.
        families: learners with one number to tune.
        tuning_sequences: sequences tuned on.
        sequences: sequences measured on, the same for all families.

    Raises:
        InputError: no sizes, seeds or families, or a best value at the edge of its grid.
    """
    for argument, values in (("sizes", sizes), ("streams", streams), ("families", families)):
        require(len(values) >= 1, argument, tuple(values), "not empty")
    require(list(sizes) == sorted(set(sizes)), "sizes", tuple(sizes), "ascending")
    measured = np.empty((2, len(families), len(streams), len(sizes)))
    for seed, (tuning, measuring) in enumerate(streams):
        for column, n_s in enumerate(sizes):
            tuned_on = task(n_s).sample(tuning_sequences, tuning)
            measured_on = task(n_s).sample(sequences, measuring)
            for row, family in enumerate(families):
                found = family.tune(tuned_on)
                measured[:, row, seed, column] = mean_loss(found.predictor, measured_on), found.value
    return LossesByDimension(
        families=tuple(family.name for family in families),
        numbers=tuple(family.number for family in families),
        n_s=np.array(sizes, dtype=np.float64),
        losses=measured[0],
        tuned=measured[1],
    )
