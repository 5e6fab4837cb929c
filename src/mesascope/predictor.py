"""The one idea of the package: everything that predicts is a Predictor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.tasks.sequences import Sequences


@runtime_checkable
class Predictor(Protocol):
    """Maps a batch of sequences to next-token predictions.

    A trained Transformer, a construction, a least-squares learner and an induction head are all predictors; comparing
    a model with a hypothesis is comparing two of them on the same sequences. The prediction at time t may use the
    sequence up to and including t only. Oracles may also read the latents; every other predictor must not.
    """

    @property
    def name(self) -> str:
        """A short label for tables and legends."""
        ...

    def predict(self, sequences: Sequences) -> Float[Tensor, "batch time n_s"]:
        """Predictions of `sequences.targets`, without gradient."""
        ...


@dataclass(frozen=True)
class TokenPredictor:
    """Any function from tokens `[B, T, n_e]` to predictions `[B, T, n_s]`, for example somebody else's model."""

    name: str
    function: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def predict(self, sequences: Sequences) -> Float[Tensor, "batch time n_s"]:
        return self.function(sequences.tokens)


def half_squared_error(
    predictions: Float[Tensor, "batch time n_s"], targets: Float[Tensor, "batch time n_s"]
) -> Float[Tensor, "batch time"]:
    """Half the squared error, summed over dimensions: the unit of every loss here (arXiv 2309.05858, eq. 1)."""
    return 0.5 * (predictions - targets).square().sum(-1)


def loss_per_time_step(
    predictions: Float[Tensor, "batch time n_s"], targets: Float[Tensor, "batch time n_s"]
) -> Float[Tensor, " time"]:
    """`half_squared_error` averaged over the batch, accumulated in float64.

    This is the "next-token prediction MSE" of the figures of arXiv 2309.05858 (not divided by n_s).
    """
    return half_squared_error(predictions.double(), targets.double()).mean(0)
