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
from mesascope.learners.regression import CausalGram, InContextData, Observations, Regressors, predict_in_context
from mesascope.ops import mesa_attention
from mesascope.tasks.sequences import Sequences


@dataclass(frozen=True)
class RidgeRegression:
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
    def name(self) -> str:
        label = f", {self.regressors.label}" if self.regressors.label else ""
        lag = f", lag {self.lag}" if self.lag else ""
        return f"least squares, ridge {self.ridge:g}{label}{lag}"

    @torch.no_grad()
    def predict(self, sequences: Sequences) -> Float[Tensor, "batch time n_s"]:
        return predict_in_context(sequences, self.regressors, self._regress, self.lag)

    def _regress(self, data: InContextData) -> Tensor:
        ridge = torch.tensor([self.ridge], dtype=torch.float64)
        q, k, v = (operand[:, :, None] for operand in (data.queries, data.keys, data.values))
        return mesa_attention(q, k, v, ridge)[:, :, 0]

    def precondition(self, data: InContextData) -> Float[Tensor, "batch time d"]:
        return CausalGram(data.keys, self.ridge).solve(data.queries)
