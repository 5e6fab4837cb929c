"""Sequences on which studies compare predictors, apart from those that anything was trained or tuned on."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mesascope.experiments.base import Trained
from mesascope.predictor import Predictor
from mesascope.tasks import ConstructedTokens, Dynamics, Sequences, fully_observed_linear
from mesascope.training.seeds import stream
from mesascope.uncover import loss_curves

Array = NDArray[np.float64]

CONSTRUCTED = fully_observed_linear(tokens=ConstructedTokens())
"""The task of the linear-attention results: n_s = 10, T = 50, four slots per token."""

_BATCH = 256


@lru_cache(maxsize=4)
def evaluation_batches(task: Dynamics = CONSTRUCTED, batches: int = 16) -> tuple[Sequences, ...]:
    """Batches of 256 sequences for measuring: the same for every predictor, so sampling error cancels in ratios."""
    generator = stream(0, "evaluation")
    return tuple(task.sample(_BATCH, generator) for _ in range(batches))


@lru_cache(maxsize=4)
def tuning_sequences(task: Dynamics = CONSTRUCTED, count: int = 4096) -> Sequences:
    """Sequences for tuning the scalars of learners."""
    return task.sample(count, stream(0, "tuning"))


def curve(predictor: Predictor, batches: Iterable[Sequences] | None = None) -> Array:
    """Loss at every time step, `[T]`, on the evaluation batches or on others."""
    return loss_curves([predictor], evaluation_batches() if batches is None else batches).mean[0]


def curves(predictors: Sequence[Predictor]) -> Array:
    """Loss curves on the evaluation batches, `[predictors, T]`."""
    return np.stack([curve(predictor) for predictor in predictors])


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
