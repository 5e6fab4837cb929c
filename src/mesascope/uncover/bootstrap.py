"""Intervals of means over sequences, by resampling whole sequences."""

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require


def bootstrap_means(
    values: Float[Tensor, "sequences columns"], generator: torch.Generator, resamples: int = 1000
) -> Float[Tensor, "resamples columns"]:
    """Column means of `resamples` samples drawn with replacement from the rows, in float64.

    The columns of one resample are means over the same sequences, so differences of columns are paired.

    Raises:
        InputError: no rows, or `resamples` is not positive.
    """
    count = values.shape[0]
    require(count >= 1, "values", tuple(values.shape), "at least one sequence")
    require(resamples >= 1, "resamples", resamples, "at least 1")
    return resample_counts(count, generator, resamples) @ values.double() / count


def resample_counts(count: int, generator: torch.Generator, resamples: int) -> Float[Tensor, "resamples sequences"]:
    """How often each of `count` sequences is drawn in each of `resamples` samples of that size, in float64."""
    drawn = torch.randint(count, (resamples, count), generator=generator)
    counts = torch.zeros(resamples, count, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def interval(samples: Float[Tensor, "resamples columns"], confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """The central interval, (low, high), that holds a share `confidence` of the samples of every column.

    Raises:
        InputError: `confidence` is not between 0 and 1.
    """
    require(0 < confidence < 1, "confidence", confidence, "between 0 and 1, both excluded")
    tail = (1 - confidence) / 2
    low, high = samples.quantile(torch.tensor([tail, 1 - tail], dtype=samples.dtype), dim=0)
    return low, high
