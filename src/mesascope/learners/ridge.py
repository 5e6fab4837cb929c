"""Ridge regression on everything seen so far: the learner that a mesa layer runs in one step.

Source: arXiv 2309.05858, mesa-objective and Proposition 2 (its lambda is 1 / ridge).

Solved by mesa attention in float64. Measured against 80-bit arithmetic on 8 sequences of each of three tasks (d of 10,
60 and 80, predictions of size 1 to 5), the largest error is 2e-11 at ridge 1e-3, 2e-8 at 1e-6 and 2e-5 at 1e-9: it
grows like 1 / ridge, as does that of a dense solve of the d x d moment matrices, which is one to three times as large.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require
from mesascope.learners.regression import (
    CausalGram,
    InContextData,
    Observations,
    Preconditioner,
    Regressors,
    labelled,
    predict_in_context,
)
from mesascope.ops import mesa_attention
from mesascope.tasks.sequences import Sequences, shift_right


@dataclass(frozen=True)
class RidgeRegression(Preconditioner):
    """argmin_Phi 1/2 sum_{i=2..t} ||s_i - Phi x_{i-1}||^2 + ridge/2 ||Phi||_F^2, applied to x_t.

    Attributes:
        ridge: positive penalty.
        regressors: x.
        lag: number of newest transitions left out of the sum. 0 uses all that are known at time t; 1 is the
            least-squares curve of the authors' code ("lag one"), which runs one transition late.
    """

    ridge: float = 1e-3
    regressors: Regressors = Observations()
    lag: int = 0

    def __post_init__(self) -> None:
        require(self.ridge > 0, "ridge", self.ridge, "greater than 0")
        require(self.lag >= 0, "lag", self.lag, "at least 0")

    @property
    def method(self) -> str:
        return f"least squares, ridge {self.ridge:g}"

    @property
    def name(self) -> str:
        return labelled(self.method, self.regressors) + (f", lag {self.lag}" if self.lag else "")

    @torch.no_grad()
    def predict(self, sequences: Sequences) -> Float[Tensor, "batch time n_s"]:
        return predict_in_context(sequences, self.regressors, self._regress, self.lag)

    def _regress(self, data: InContextData) -> Tensor:
        return _solve(data, self.ridge)

    def precondition(self, data: InContextData) -> Float[Tensor, "batch time d"]:
        return CausalGram(data.keys, self.ridge).solve(data.queries)


@dataclass(frozen=True)
class PairRegression:
    """Ridge regression on the pairs (x_i, y_i) of few-shot regression alone, in whatever layout and over all tasks.

    A next-token learner also takes what follows y_i for its answer; this control does not. Predictions elsewhere than
    at the positions of the x_i are zero.

    Attributes:
        ridge: positive penalty.
    """

    ridge: float = 1e-3

    def __post_init__(self) -> None:
        require(self.ridge > 0, "ridge", self.ridge, "greater than 0")

    @property
    def name(self) -> str:
        return f"least squares on true pairs, ridge {self.ridge:g}"

    @torch.no_grad()
    def predict(self, sequences: Sequences) -> Float[Tensor, "batch time n_s"]:
        """Predictions of y_i.

        Raises:
            InputError: `sequences.scored` does not say where the x_i are.
        """
        require(
            sequences.scored is not None, "sequences.scored", None, "the positions of the x_i (few-shot regression)"
        )
        at = torch.tensor(sequences.scored_indices)
        x, y = (sequences.observations[:, positions].double() for positions in (at, at + 1))
        predicted = torch.zeros_like(sequences.observations)
        predicted[:, at] = _solve(InContextData(shift_right(x), shift_right(y), x), self.ridge).to(predicted.dtype)
        return predicted


def _solve(data: InContextData, ridge: float) -> Tensor:
    q, k, v = (operand[:, :, None] for operand in (data.queries, data.keys, data.values))
    return mesa_attention(q, k, v, torch.tensor([ridge], dtype=torch.float64))[:, :, 0]
