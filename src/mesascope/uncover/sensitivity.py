"""Gradient sensitivity: how strongly an activation at time t depends on each token up to t.

Source: arXiv 2309.05858, Figs. 16, 22 and 23. Differences from the paper: (1) its text writes the norm of a Jacobian;
its figures, and this, show the mean over outputs of the norms of their gradients, which is what its code computes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import InputError, require
from mesascope.figures import Array, Figure, Line, LinePanel, Table
from mesascope.uncover.capture import CapturableModel

_FIRST_BLOCK = "blocks.0.resid_post"


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivity of an activation at one time to every token, along a training.

    Attributes:
        activation: its name.
        time: t, counted from 1.
        steps: optimiser steps after which it was measured, `[points]`.
        values: mean over outputs and sequences of the norm of the gradient with respect to token t' = 1 .. t,
            `[points, t]`.
    """

    activation: str
    time: int
    steps: Array
    values: Array

    def to(self, token: int) -> Array:
        """Sensitivity to token t' = `token`, counted from 1, `[points]`.

        Raises:
            InputError: there is no such token.
        """
        require(1 <= token <= self.time, "token", token, f"between 1 and {self.time}")
        column: Array = self.values[:, token - 1]
        return column

    def to_rest(self, recent: int) -> Array:
        """Mean sensitivity to all but the `recent` newest tokens, `[points]`.

        Raises:
            InputError: nothing would be left, or nothing left out.
        """
        require(1 <= recent < self.time, "recent", recent, f"between 1 and {self.time - 1}")
        rest: Array = self.values[:, : self.time - recent].mean(1)
        return rest

    def ratio(self, token: int, recent: int = 6) -> Array:
        """`to(token)` over `to_rest(recent)`, `[points]`."""
        return self.to(token) / self.to_rest(recent)

    def table(self, id: str, title: str, recent: int = 6) -> Table:
        """One row per step: the `recent` newest tokens, newest first, and the mean of the rest."""
        columns = [(f"t' = {token}", self.to(token)) for token in self._newest(recent)]
        columns.append((self._rest_label(recent), self.to_rest(recent)))
        numbers = np.stack([self.steps, *(column for _, column in columns)], axis=1)
        rows = tuple(tuple(float(number) for number in row) for row in numbers)
        return Table(id, title, ("optimiser step", *(name for name, _ in columns)), rows)

    def panel(self, title: str, recent: int = 6) -> LinePanel:
        """A line over the steps for each of the `recent` newest tokens and one for the mean of the rest."""
        lines = [
            Line(f"t' = {token}", self.steps, self.to(token), "model", colour)
            for colour, token in enumerate(self._newest(recent))
        ]
        lines.append(Line(self._rest_label(recent), self.steps, self.to_rest(recent), "reference", len(lines)))
        return LinePanel(title, "optimiser step", "norm of the gradient", tuple(lines))

    def figure(self, id: str, title: str, caption: str, recent: int = 6) -> Figure:
        """The panel as a figure of its own."""
        return Figure(id, title, caption, (self.panel(title, recent),), 1)

    def _newest(self, recent: int) -> range:
        return range(self.time, self.time - recent, -1)

    def _rest_label(self, recent: int) -> str:
        return f"mean of t' = 1 .. {self.time - recent}"


def gradient_norms(
    model: CapturableModel, tokens: Float[Tensor, "batch time n_e"], time: int, activation: str = _FIRST_BLOCK
) -> Float[Tensor, " past"]:
    """Mean over outputs l and sequences of ||d activation[t, l] / d token[t']||, for t' = 1 .. t.

    Args:
        model: whose activation is captured.
        tokens: of the sequences averaged over.
        time: t, counted from 1.
        activation: name of an activation `[B, T, d]`.

    Returns:
        `[t]`, float64.

    Raises:
        InputError: there is no such time or activation, or the activation has another shape.
    """
    batch, length = tokens.shape[:2]
    require(1 <= time <= length, "time", time, f"between 1 and {length}")
    # nothing later than t can matter, so it is not computed
    inputs = tokens[:, :time].detach().clone().requires_grad_()
    with torch.enable_grad():
        captured = model.run(inputs, capture=(activation,)).activations[activation]
    shape = tuple(captured.shape)
    require(captured.dim() == 3 and shape[:2] == (batch, time), "activation", shape, f"of shape [{batch}, {time}, d]")
    # sequences do not mix, so the gradient of a sum over them holds the gradient of each; one pass per output
    totals = captured[:, -1].sum(0)
    mean = torch.zeros(time, dtype=torch.float64)
    for total in totals:
        (gradient,) = torch.autograd.grad(total, inputs, retain_graph=True)
        mean += gradient.double().norm(dim=-1).mean(0) / len(totals)
    return mean


def sensitivity_over_training(
    models: Iterable[tuple[float, CapturableModel]],
    tokens: Float[Tensor, "batch time n_e"],
    *,
    time: int | None = None,
    activation: str = _FIRST_BLOCK,
) -> Sensitivity:
    """`gradient_norms` of several models on the same sequences, such as the snapshots of a training.

    Args:
        models: pairs of an optimiser step and the model after it; any number for a model outside a training.
        tokens: of the sequences averaged over; the paper takes 64.
        time: t, counted from 1; None: the last.
        activation: name of an activation `[B, T, d]`.

    Raises:
        InputError: no models; otherwise as `gradient_norms`.
    """
    time = tokens.shape[1] if time is None else time
    steps, values = [], []
    for step, model in models:
        steps.append(float(step))
        values.append(gradient_norms(model, tokens, time, activation).numpy())
    if not steps:
        raise InputError("models: got none, but there must be at least one")
    return Sensitivity(activation, time, np.array(steps), np.stack(values))
