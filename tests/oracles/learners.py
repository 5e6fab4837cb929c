"""In-context learners as loops over the pairs (s_t', s_t'+1) that lie in the past of every prediction."""

import itertools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def one_step_gd(observations: Array, step_size: float) -> Array:
    """Predictions after one gradient step from Phi = 0 on sum_{t' < t} 1/2 ||s_t'+1 - Phi s_t'||^2; `[B, T, n]`."""
    predictions = np.zeros_like(observations)
    for b, sequence in enumerate(observations):
        for t, current in enumerate(sequence):
            weights = np.zeros((len(current), len(current)))
            gradient = np.zeros_like(weights)
            for seen, following in itertools.pairwise(sequence[: t + 1]):
                gradient += np.outer(weights @ seen - following, seen)
            predictions[b, t] = (weights - step_size * gradient) @ current
    return predictions


def streaming_ridge(observations: Array, ridge: float) -> Array:
    """Predictions C A^-1 s_t with A = ridge I + sum s_t' s_t'^T and C = sum s_t'+1 s_t'^T over past pairs."""
    predictions = np.zeros_like(observations)
    for b, sequence in enumerate(observations):
        gram, association = ridge * np.eye(sequence.shape[1]), np.zeros((sequence.shape[1],) * 2)
        for t, current in enumerate(sequence):
            predictions[b, t] = association @ np.linalg.solve(gram, current)
            if t + 1 < len(sequence):
                gram += np.outer(current, current)
                association += np.outer(sequence[t + 1], current)
    return predictions
