"""Linear probes: what can be read off the residual stream, at every depth and time step.

A probe is a linear map without intercept, fitted by least squares, one per depth and time step. All of them are solved
at once, by batched Cholesky in float64.

Source: arXiv 2309.05858, section "Probing analyses" and Figs. 2, 4E-F, 6, 17, 21. Differences from the paper:
(1) probes are scored on sequences on which they were not fitted; the paper's scores, on the same sequences, are beside
them; (2) a tiny ridge keeps the solution unique where directions of the stream are empty; (3) two controls that the
paper has not: a model that was never trained, and the targets of other sequences.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mesascope.errors import require
from mesascope.uncover.bootstrap import resample_counts
from mesascope.uncover.capture import ResidualStream
from mesascope.uncover.probe_results import ControlledProbe, Estimate, ProbeResult


@dataclass(frozen=True)
class ProbeFit:
    """How probes are fitted and scored.

    Attributes:
        fraction: share of the sequences on which probes are fitted; they are scored on the others.
        ridge: added to the diagonal of the Gram matrix, as a share of its mean diagonal entry. At 1e-10 only directions
            whose standard deviation is below 1e-5 of the typical one are not resolved.
        resamples: bootstrap samples of the held-out sequences.
        confidence: coverage of the intervals.
    """

    fraction: float = 0.5
    ridge: float = 1e-10
    resamples: int = 500
    confidence: float = 0.95

    def __post_init__(self) -> None:
        require(0 < self.fraction < 1, "fraction", self.fraction, "between 0 and 1, both excluded")
        require(self.ridge > 0, "ridge", self.ridge, "greater than 0")
        require(self.resamples >= 1, "resamples", self.resamples, "at least 1")
        require(0 < self.confidence < 1, "confidence", self.confidence, "between 0 and 1, both excluded")


def probe(
    stream: ResidualStream,
    targets: Float[Tensor, "batch time m"],
    *,
    generator: torch.Generator,
    kept: Bool[Tensor, "batch time"] | None = None,
    fit: ProbeFit = ProbeFit(),
) -> ProbeResult:
    """Probes of `targets` from every depth, at every time step.

    Args:
        stream: where is probed, B sequences and T time steps.
        targets: what is probed for, `[B, T, m]`.
        generator: draws which sequences are fitted on, and the bootstrap samples.
        kept: the sequences that count, at each time step; None: all.
        fit: how probes are fitted and scored.

    Raises:
        InputError: shapes differ, a number is not finite, or at a time step no more sequences are fitted on than the
            stream has coordinates, or none is held out.
    """
    kept = _checked(stream, targets, kept)
    return _probe(stream, targets, kept, fit, _draw(len(targets), fit, generator))


def probe_with_controls(
    stream: ResidualStream,
    untrained: ResidualStream,
    targets: Float[Tensor, "batch time m"],
    *,
    generator: torch.Generator,
    kept: Bool[Tensor, "batch time"] | None = None,
    fit: ProbeFit = ProbeFit(),
    axis: str = "time step t",
) -> ControlledProbe:
    """The probes of `probe`, and the same on two controls, with the same split and bootstrap samples.

    Args:
        stream: of the model.
        untrained: of a model of the same shape with fresh weights, on the same sequences.
        targets, generator, kept, fit: as for `probe`; `generator` also draws the shuffle of the sequences.
        axis: what the time steps are, for axes and column names.

    Raises:
        InputError: as for `probe`, or the two streams differ in shape.
    """
    shape, other = tuple(stream.values.shape), tuple(untrained.values.shape)
    require(other == shape, "untrained", other, f"a stream of the model's shape {shape}")
    _checked(untrained, targets, kept)
    kept = _checked(stream, targets, kept)
    split = _draw(len(targets), fit, generator)
    shuffle = torch.randperm(len(targets), generator=generator)
    return ControlledProbe(
        model=_probe(stream, targets, kept, fit, split),
        untrained=_probe(untrained, targets, kept, fit, split),
        shuffled=_probe(stream, targets[shuffle], kept[shuffle], fit, split),
        axis=axis,
    )


@dataclass(frozen=True)
class _Split:
    """Rows fitted on, rows held out, and how often each of the latter is in a sample: in the first once, then drawn."""

    fitted: Tensor
    held_out: Tensor
    resamples: Float[Tensor, "resamples held_out"]


def _draw(batch_size: int, fit: ProbeFit, generator: torch.Generator) -> _Split:
    order, size = torch.randperm(batch_size, generator=generator), round(batch_size * fit.fraction)
    fitted, held_out = order[:size], order[size:]
    times = resample_counts(len(held_out), generator, fit.resamples)
    return _Split(fitted, held_out, torch.cat([torch.ones_like(times[:1]), times]))


def _checked(
    stream: ResidualStream, targets: Float[Tensor, "batch time m"], kept: Bool[Tensor, "batch time"] | None
) -> Bool[Tensor, "batch time"]:
    """`kept`, all if it is None."""
    batch, time = shape = tuple(stream.values.shape[1:3])
    kept = torch.ones(shape, dtype=torch.bool) if kept is None else kept
    require(tuple(targets.shape[:2]) == shape, "targets", tuple(targets.shape), f"of shape [{batch}, {time}, m]")
    require(tuple(kept.shape) == shape, "kept", tuple(kept.shape), f"of shape [{batch}, {time}]")
    require(bool(stream.values.isfinite().all()), "stream", "infinite or missing numbers", "finite")
    require(bool(targets[kept].isfinite().all()), "targets", "infinite or missing numbers", "finite where kept")
    return kept


def _probe(
    stream: ResidualStream,
    targets: Float[Tensor, "batch time m"],
    kept: Bool[Tensor, "batch time"],
    fit: ProbeFit,
    split: _Split,
) -> ProbeResult:
    # what is left out weighs nothing, whatever it is
    y, weight = targets.double().masked_fill(~kept[:, :, None], 0.0), kept.double()
    published = _Scoring(y[split.fitted], weight[split.fitted], torch.ones(1, len(split.fitted), dtype=torch.float64))
    held_out = _Scoring(y[split.held_out], weight[split.held_out], split.resamples)
    _require_enough(stream, published.count[0], held_out.count[0])
    maps, scores, scores_in_sample = [], [], []
    for x in stream.values:
        x_fitted, x_held_out = (x[rows].double().transpose(0, 1) for rows in (split.fitted, split.held_out))
        maps.append(_least_squares(x_fitted, published.y, published.weight, fit.ridge))
        scores.append(held_out(x_held_out @ maps[-1].mT))
        scores_in_sample.append(published(x_fitted @ maps[-1].mT)[:, 0])
    r2, mse, loss = _estimates(torch.stack(scores, 2), torch.stack(scores_in_sample, 1), fit.confidence)
    return ProbeResult(
        labels=stream.labels,
        time_steps=np.array(stream.time_steps, dtype=np.float64),
        r2=r2,
        mse=mse,
        loss=loss,
        variance=held_out.variance.numpy(),
        num_fitted=published.count[0].numpy(),
        num_held_out=held_out.count[0].numpy(),
        weights=torch.stack(maps),
    )


def _require_enough(stream: ResidualStream, fitted: Float[Tensor, " time"], held_out: Float[Tensor, " time"]) -> None:
    width = stream.values.shape[-1]
    for purpose, counts, least in (("fit on", fitted, width + 1), ("score on", held_out, 2)):
        index = int(counts.argmin())
        found = f"{int(counts[index])} to {purpose} at time step {stream.time_steps[index]}"
        require(int(counts[index]) >= least, "sequences", found, f"at least {least} for a stream of width {width}")


def _least_squares(
    x: Float[Tensor, "time batch d"],
    y: Float[Tensor, "time batch m"],
    weight: Float[Tensor, "time batch"],
    ridge: float,
) -> Float[Tensor, "time m d"]:
    """The maps W_t that minimise the sum of weight |y - W_t x|^2, plus the ridge, at every time step."""
    weighted = (x * weight[:, :, None]).mT
    gram = weighted @ x
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    size = diagonal.mean(-1, keepdim=True)
    # an empty stream has nothing to read: its maps are 0
    diagonal += ridge * torch.where(size > 0, size, 1.0)
    return torch.cholesky_solve(weighted @ y, torch.linalg.cholesky(gram)).mT


class _Scoring:
    """Scores of predictions of `y`, for several samples of its sequences.

    Args:
        y: targets, `[B, T, m]`, zero where their weight is.
        weight: 1 for targets that count, else 0.
        samples: how often each sequence is in each sample.
    """

    def __init__(
        self,
        y: Float[Tensor, "batch time m"],
        weight: Float[Tensor, "batch time"],
        samples: Float[Tensor, "samples batch"],
    ) -> None:
        self.y, self.weight, self.samples = y.transpose(0, 1), weight.T, samples
        self.count = samples @ weight
        # about the mean of all, so that the variance is not a difference of large numbers
        centred = (self.y - (self.y.sum(1) / weight.sum(0)[:, None])[:, None]) * self.weight[:, :, None]
        self._deviation = self._sums(centred.square()) - self._sums(centred).square() / self.count[:, :, None]

    @property
    def variance(self) -> Float[Tensor, " time"]:
        """Of the targets in the first sample, mean over their dimensions."""
        return self._deviation[0].mean(-1) / self.count[0]

    def __call__(self, predictions: Float[Tensor, "time batch m"]) -> Float[Tensor, "quantity samples time"]:
        """R2, mean squared error and loss of every sample."""
        errors = self._sums((predictions - self.y).square() * self.weight[:, :, None])
        r2 = 1 - (errors / self._deviation).mean(-1)
        mse, loss = errors.mean(-1) / self.count, errors.sum(-1) / (2 * self.count)
        return torch.stack([r2, mse, loss])

    def _sums(self, values: Float[Tensor, "time batch m"]) -> Float[Tensor, "samples time m"]:
        time, batch, m = values.shape
        return (self.samples @ values.transpose(0, 1).reshape(batch, time * m)).unflatten(1, (time, m))


def _estimates(
    scores: Float[Tensor, "quantity samples depths time"],
    in_sample: Float[Tensor, "quantity depths time"],
    confidence: float,
) -> list[Estimate]:
    """Scores of the first sample, with the spread of the others."""
    tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = torch.quantile(scores[:, 1:], tails, dim=1)
    parts = (scores[:, 0], low, high, in_sample)
    return [Estimate(*(part[quantity].numpy() for part in parts)) for quantity in range(len(scores))]
