"""Softmax-kernel regression, the competitor of least squares: what an induction head computes.

Source: arXiv 2309.05858, section on linear versus softmax attention (Figs. 5B and 20).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require
from mesascope.learners.regression import InContextData, Observations, Regressors, labelled, predict_in_context
from mesascope.ops import softmax_attention
from mesascope.tasks.sequences import Sequences


@dataclass(frozen=True)
class SoftmaxKernelRegression:
    """sum_{i=2..t} s_i softmax_i(beta x_{i-1} . x_t); zero at t = 1, where nothing has been seen.

    beta -> infinity copies what followed the past regressor with the largest inner product with x_t.

    Attributes:
        beta: inverse temperature, at least 0.
        regressors: x.
    """

    beta: float
    regressors: Regressors = Observations()

    def __post_init__(self) -> None:
        require(self.beta >= 0, "beta", self.beta, "at least 0")

    @property
    def name(self) -> str:
        return labelled(f"softmax kernel, beta {self.beta:g}", self.regressors)

    @torch.no_grad()
    def predict(self, sequences: Sequences) -> Float[Tensor, "batch time n_s"]:
        return predict_in_context(sequences, self.regressors, self._regress)

    def _regress(self, data: InContextData) -> Tensor:
        # the zero key of t = 1 has a positive softmax weight, so it is cut off and not just ignored
        keys, values, queries = data.keys[:, 1:], data.values[:, 1:], data.queries[:, 1:]
        queries = self.beta * math.sqrt(queries.shape[-1]) * queries
        predicted = softmax_attention(queries[:, :, None], keys[:, :, None], values[:, :, None])[:, :, 0]
        return torch.cat([torch.zeros_like(data.values[:, :1]), predicted], dim=1)
