"""Gradient descent on the in-context least-squares objective L_t, for all time steps at once.

L_t(Phi) = 1/2 sum_{i=2..t} ||s_i - Phi x_{i-1}||^2 + ridge/2 ||Phi||_F^2 has the gradient Phi A_t - C_t with
A_t = sum x_{i-1} x_{i-1}^T + ridge I and C_t = sum s_i x_{i-1}^T. Weights are never formed: the prediction of k steps,
Phi_k x_t = Phi_{k-1} (I - eta_k A_t) x_t + eta_k C_t x_t, is unrolled from the last step to the first, and every step
is two causal linear attentions.

Source: arXiv 2309.05858, mesa-objective and Proposition 1; the closed form of the best step size is ours.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import InputError, require
from mesascope.learners.regression import (
    CausalGram,
    InContextData,
    Observations,
    Regressors,
    chunks,
    in_context_data,
    labelled,
    predict_in_context,
)
from mesascope.tasks.sequences import Sequences


@dataclass(frozen=True)
class GradientDescent:
    """len(step_sizes) steps of gradient descent on L_t, from the same initial weights at every time step.

    Attributes:
        step_sizes: eta_1 .. eta_k, in the order in which the steps are taken.
        initial: Phi_0: a number c for c I, or the rows of an n_s x d matrix.
        ridge: weight of the penalty ||Phi||_F^2 / 2 in L_t.
        regressors: x.
    """

    step_sizes: tuple[float, ...]
    initial: float | tuple[tuple[float, ...], ...] = 0.0
    ridge: float = 0.0
    regressors: Regressors = Observations()

    def __post_init__(self) -> None:
        require(len(self.step_sizes) >= 1, "step_sizes", self.step_sizes, "at least one step size")
        require(self.ridge >= 0, "ridge", self.ridge, "at least 0")
        if isinstance(self.initial, tuple):
            widths = {len(row) for row in self.initial}
            require(len(widths) == 1, "initial", widths, "rows of one length")

    @property
    def name(self) -> str:
        steps = len(self.step_sizes)
        return labelled(f"gradient descent, {steps} step{'s' if steps > 1 else ''}", self.regressors)

    @torch.no_grad()
    def predict(self, sequences: Sequences) -> Float[Tensor, "batch time n_s"]:
        return predict_in_context(sequences, self.regressors, self._regress)

    def _regress(self, data: InContextData) -> Tensor:
        gram = CausalGram(data.keys, self.ridge)
        inputs, predicted = data.queries, torch.zeros_like(data.values)
        for step_size in reversed(self.step_sizes):
            predicted = predicted + step_size * data.associate(inputs)
            inputs = inputs - step_size * gram.apply(inputs)
        return predicted + self._initial_prediction(inputs, data.values.shape[-1])

    def _initial_prediction(self, inputs: Tensor, n_s: int) -> Tensor:
        d = inputs.shape[-1]
        if isinstance(self.initial, tuple):
            weights = torch.tensor(self.initial, dtype=inputs.dtype)
            shape = tuple(weights.shape)
            require(shape == (n_s, d), "initial", shape, f"a matrix of shape {(n_s, d)}, n_s x regressors")
            return inputs @ weights.T
        if self.initial == 0:
            return torch.zeros_like(inputs[..., :1]).expand(*inputs.shape[:-1], n_s)
        if n_s != d:
            raise InputError(
                f"initial: got the number {self.initial} for c I, but the weights map {d} regressors to {n_s} values; "
                "give the rows of a matrix"
            )
        return self.initial * inputs


@torch.no_grad()
def best_step_size(sequences: Sequences, regressors: Regressors = Observations()) -> float:
    """The step size of one step from Phi_0 = 0 with the least mean loss on `sequences`, in closed form.

    eta* = sum <C_t x_t, s_{t+1}> / sum ||C_t x_t||^2 over the batch and the scored time steps.

    Raises:
        InputError: no sequence has a transition to learn from, so every step size is as good.
    """
    product = square = 0.0
    for chunk in chunks(sequences):
        data = in_context_data(chunk, regressors)
        direction, targets = data.associate(data.queries), chunk.targets.double()
        if chunk.scored is not None:
            direction, targets = direction[:, chunk.scored], targets[:, chunk.scored]
        product += float((direction * targets).sum())
        square += float(direction.square().sum())
    require(square > 0, "sequences", "no gradient", "sequences whose observations are not all zero")
    return product / square
