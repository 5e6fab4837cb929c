"""Learners in NumPy, float64, written as loops over sequences and time from their definitions."""

import numpy as np
import torch

from mesascope.tasks import ConstructedTokens


def random_observations(seed, batch, length, n_s, scale=0.5):
    return scale * np.random.default_rng(seed).normal(size=(batch, length, n_s))


def predict(model, observations, tokens=None):
    if tokens is None:
        tokens = ConstructedTokens()(torch.from_numpy(observations))
    with torch.no_grad():
        return model(tokens).numpy()


def for_every_context(observations, learner):
    """`learner(regressors, targets, query)` with the pairs (s_1, s_2) .. (s_{t-1}, s_t) as rows and query s_t."""
    predictions = np.zeros_like(observations)
    for row, sequence in enumerate(observations):
        for t in range(len(sequence)):
            predictions[row, t] = learner(sequence[:t], sequence[1 : t + 1], sequence[t])
    return predictions


def descend(observations, step_sizes, ridge=0.0, initial_weights=None):
    """Explicit gradient steps on the weights."""
    n_s = observations.shape[-1]
    start = np.zeros((n_s, n_s)) if initial_weights is None else initial_weights

    def learner(regressors, targets, query):
        weights = start.copy()
        for step_size in step_sizes:
            gradient = ridge * weights
            for regressor, target in zip(regressors, targets, strict=True):
                gradient = gradient + np.outer(weights @ regressor - target, regressor)
            weights = weights - step_size * gradient
        return weights @ query

    return for_every_context(observations, learner)


def second_order_richardson(observations, alphas, betas, ridge):
    def learner(regressors, targets, query):
        matrix = ridge * np.eye(query.size)
        association = np.zeros((query.size, query.size))
        for regressor, target in zip(regressors, targets, strict=True):
            matrix += np.outer(regressor, regressor)
            association += np.outer(target, regressor)
        before = x = query
        for alpha, beta in zip(alphas, betas, strict=True):
            x, before = x + alpha * (query - matrix @ x) + beta * (x - before), x
        return association @ x

    return for_every_context(observations, learner)


def solve_ridge(observations, ridge):
    def learner(regressors, targets, query):
        gram = regressors.T @ regressors + ridge * np.eye(query.size)
        return targets.T @ regressors @ np.linalg.solve(gram, query)

    return for_every_context(observations, learner)


def largest_eigenvalue(observations, ridge):
    return float(max(np.linalg.eigvalsh(sequence.T @ sequence)[-1] for sequence in observations)) + ridge
