"""Mean and spread over sequences that arrive in batches."""

import math

import numpy as np

from mesascope.figures import Array


class RunningMoments:
    """Mean and standard deviation over all sequences added so far, elementwise and in float64.

    Attributes:
        count: sequences added.
        mean: `[...]`, of the shape of one sequence's values.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Array = np.zeros(0)
        self._squares: Array = np.zeros(0)

    def add(self, values: Array) -> None:
        """Add a batch, `[B, ...]`."""
        if self.count == 0:
            self.mean = self._squares = np.zeros(values.shape[1:])
        # Chan's update of mean and sum of squared deviations: a difference of large sums would cancel
        new, batch_mean = values.shape[0], values.mean(0)
        shift, total = batch_mean - self.mean, self.count + new
        self._squares = self._squares + ((values - batch_mean) ** 2).sum(0) + shift**2 * (self.count * new / total)
        self.mean, self.count = self.mean + shift * (new / total), total

    @property
    def deviation(self) -> Array:
        """Standard deviation over sequences (n - 1); NaN for a single one."""
        if self.count < 2:
            return np.full_like(self._squares, math.nan)
        deviation: Array = np.sqrt(self._squares / (self.count - 1))
        return deviation
