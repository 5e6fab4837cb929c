"""Sequences on which studies compare predictors, apart from those that anything was trained or tuned on."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mesascope.experiments.base import Trained
from mesascope.learners import (
    Observations,
    Regressors,
    Scale,
    TunedChebyshevRegression,
    polynomial_moments,
    tune_chebyshev,
)
from mesascope.predictor import Predictor
from mesascope.tasks import ConstructedTokens, Dynamics, Sequences, fully_observed_linear
from mesascope.training.seeds import stream
from mesascope.uncover import loss_curves

Array = NDArray[np.float64]

CONSTRUCTED = fully_observed_linear(tokens=ConstructedTokens())
"""The task of the linear-attention results: n_s = 10, T = 50, four slots per token."""

_BATCH = 256


@lru_cache(maxsize=4)
def evaluation_sequences(task: Dynamics = CONSTRUCTED, count: int = 4096) -> Sequences:
    """Sequences for measuring: the same for every predictor, so sampling error cancels in ratios."""
    return task.sample(count, stream(0, "evaluation"))


@lru_cache(maxsize=4)
def tuning_sequences(task: Dynamics = CONSTRUCTED, count: int = 4096) -> Sequences:
    """Sequences for tuning the scalars of learners."""
    return task.sample(count, stream(0, "tuning"))


def curve(predictor: Predictor, sequences: Sequences | None = None) -> Array:
    """Loss at every time step, `[T]`, on the evaluation sequences or on others."""
    return loss_curves([predictor], in_batches(evaluation_sequences() if sequences is None else sequences)).mean[0]


def in_batches(sequences: Sequences) -> list[Sequences]:
    """`sequences` in parts of at most 256."""
    starts = range(0, sequences.batch_size, _BATCH)
    return [sequences.select(slice(start, start + _BATCH)) for start in starts]


def curves(predictors: Sequence[Predictor], sequences: Sequences | None = None) -> Array:
    """Loss curves, `[predictors, T]`, on the evaluation sequences or on others."""
    return np.stack([curve(predictor, sequences) for predictor in predictors])


@lru_cache(maxsize=8)
def proposition_2_curves(
    scale: Scale, degrees: tuple[int, ...], task: Dynamics = CONSTRUCTED, regressors: Regressors = Observations()
) -> dict[int, Array]:
    """Loss curves of the best polynomial preconditioners of the given degrees, fitted on the evaluation sequences.

    Fitted where they are measured, they bound from below what any schedule of that degree reaches there: the strictest
    reference. On other sequences the form with shared coefficients ("none") can be far worse, because rare sequences
    with a large ||A_t|| lie outside of what the polynomial was fitted on.
    """
    sequences = evaluation_sequences(task)
    moments = polynomial_moments(sequences, max(degrees), scale, regressors=regressors)
    return {degree: curve(moments.fit(degree), sequences) for degree in degrees}


@lru_cache(maxsize=8)
def tuned_preconditioner(
    scale: Scale, degree: int, task: Dynamics = CONSTRUCTED, regressors: Regressors = Observations()
) -> TunedChebyshevRegression:
    """Chebyshev steps of the given degree, tuned for the loss of the prediction on the tuning sequences."""
    return tune_chebyshev(degree, scale, tuning_sequences(task), regressors=regressors).predictor


def learning_curves(trained: Trained, labels: Sequence[str]) -> tuple[Array, Array]:
    """Steps `[points]` and test losses `[seeds, points]` of trainings that differ in their seed only."""
    metrics = [trained.metrics(label) for label in labels]
    steps = np.array([record["step"] for record in metrics[0]], dtype=np.float64)
    return steps, np.array([[record["test_loss"] for record in records] for records in metrics])


def time_axis(length: int = CONSTRUCTED.length) -> Array:
    """t = 1 .. T."""
    return np.arange(1, length + 1, dtype=np.float64)


def worst(values: Iterable[float], expected: float = 1.0) -> float:
    """The value farthest from `expected`: what a claim about every seed is judged by."""
    return max(values, key=lambda value: abs(value - expected))
