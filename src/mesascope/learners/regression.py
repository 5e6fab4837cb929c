"""In-context regression: the pairs a learner reads off a sequence, and the matrix its solvers share.

Whatever the learner, at time t it knows the pairs (x_{i-1}, s_i), i = 2..t, and is asked for s_{t+1} given x_t. The
regressor x is the observation itself, a window of the last observations, or known features of the observation
(arXiv 2309.05858, section on mesa-objectives; windows and features: sections on partial observation and on nonlinear
dynamics). Laid out as keys x_{t-1} (zero at t = 1), values s_t and queries x_t, the product of the in-context moment
matrices with a vector of every time step is one causal linear attention: no learner loops over time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require
from mesascope.ops import linear_attention
from mesascope.ops.mesa.causal_solve import causal_solve
from mesascope.tasks.dynamics import MLPFeatures
from mesascope.tasks.sequences import Sequences, shift_right
from mesascope.tasks.tokens import WindowTokens

_CHUNK_NUMBERS = 2**21
"""Largest number of entries of the T x T maps that are held at once (16 MB in float64)."""


@dataclass(frozen=True)
class Observations:
    """x_t = s_t."""

    @property
    def label(self) -> str:
        """What the regressor is, for names of predictors; empty for the plain case."""
        return ""

    def __call__(self, sequences: Sequences) -> Float[Tensor, "batch time d"]:
        return sequences.observations


@dataclass(frozen=True)
class Window:
    """x_t = z_t^k = [s_t, s_{t-1}, .., s_{t-k+1}], newest first, zeros before the start (partial observation).

    Attributes:
        size: k, the number of observations in a window.
    """

    size: int

    def __post_init__(self) -> None:
        require(self.size >= 1, "size", self.size, "at least 1")

    @property
    def label(self) -> str:
        """What the regressor is, for names of predictors."""
        return f"last {self.size} observations"

    def __call__(self, sequences: Sequences) -> Float[Tensor, "batch time d"]:
        return WindowTokens(self.size)(sequences.observations)


@dataclass(frozen=True)
class Features:
    """x_t = g(s_t), the MLP* features that generate nonlinear dynamics.

    Attributes:
        mlp: g; use the one of the task.
    """

    mlp: MLPFeatures = MLPFeatures()

    @property
    def label(self) -> str:
        """What the regressor is, for names of predictors."""
        return "MLP* features"

    def __call__(self, sequences: Sequences) -> Float[Tensor, "batch time d"]:
        return self.mlp(sequences.observations)


Regressors = Observations | Window | Features


@dataclass(frozen=True)
class InContextData:
    """The pairs and the query of every time step: at time t a learner may use rows 1..t of keys and values.

    Attributes:
        keys: x_{t-1}, zero at t = 1, `[B, T, d]`.
        values: s_t, `[B, T, n_s]`; the first has a zero key and so never counts.
        queries: x_t, `[B, T, d]`.
    """

    keys: Float[Tensor, "batch time d"]
    values: Float[Tensor, "batch time n_s"]
    queries: Float[Tensor, "batch time d"]

    def associate(self, inputs: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time n_s"]:
        """C_t y_t with C_t = sum_{i=2..t} s_i x_{i-1}^T, for the vectors y of all time steps."""
        return _attend(inputs, self.keys, self.values)


def in_context_data(sequences: Sequences, regressors: Regressors = Observations(), lag: int = 0) -> InContextData:
    """Pairs and queries of all time steps, in float64.

    Args:
        lag: number of newest pairs withheld: at time t the last pair is (x_{t-1-lag}, s_{t-lag}).
    """
    require(lag >= 0, "lag", lag, "at least 0")
    sequences = sequences.to(torch.float64)
    queries = regressors(sequences)
    keys, values = shift_right(queries), sequences.observations
    for _ in range(lag):
        keys, values = shift_right(keys), shift_right(values)
    return InContextData(keys, values, queries)


def chunks(sequences: Sequences) -> list[Sequences]:
    """`sequences` cut along the batch so that a T x T map in float64 per sequence stays within 16 MB."""
    rows = max(1, _CHUNK_NUMBERS // sequences.length**2)
    return [sequences.select(slice(start, start + rows)) for start in range(0, sequences.batch_size, rows)]


def predict_in_context(
    sequences: Sequences,
    regressors: Regressors,
    regress: Callable[[InContextData], Tensor],
    lag: int = 0,
) -> Float[Tensor, "batch time n_s"]:
    """Apply `regress`, which maps float64 pairs and queries to predictions, a part of the batch at a time.

    Returns:
        Predictions in the dtype of the observations.
    """
    dtype = sequences.observations.dtype
    parts = [regress(in_context_data(chunk, regressors, lag)).to(dtype) for chunk in chunks(sequences)]
    return torch.cat(parts)


@runtime_checkable
class Preconditioner(Protocol):
    """A learner that predicts C_t x~_t, where x~_t is what it makes of A_t^-1 x_t."""

    @property
    def regressors(self) -> Regressors:
        """x."""
        ...

    @property
    def method(self) -> str:
        """What makes x~_t, for the name."""
        ...

    @property
    def name(self) -> str:
        return labelled(self.method, self.regressors)

    @torch.no_grad()
    def predict(self, sequences: Sequences) -> Float[Tensor, "batch time n_s"]:
        """C_t x~_t in the dtype of the observations, a part of the batch at a time."""
        return predict_in_context(sequences, self.regressors, lambda data: data.associate(self.precondition(data)))

    def precondition(self, data: InContextData) -> Float[Tensor, "batch time d"]:
        """x~_t for all t: what layers that run this learner hold before their gradient step."""
        ...


def labelled(method: str, regressors: Regressors) -> str:
    """The name of a learner: its method, and its regressors unless they are the plain ones."""
    return f"{method}, {regressors.label}" if regressors.label else method


@dataclass(frozen=True)
class CausalGram:
    """A_t = sum_{i <= t} k_i k_i^T + ridge I for every time step t, without forming a d x d matrix.

    Attributes:
        keys: k_1 .. k_T, `[B, T, d]`.
        ridge: multiple of the identity, at least 0.
    """

    keys: Float[Tensor, "batch time d"]
    ridge: float = 0.0

    def __post_init__(self) -> None:
        require(self.ridge >= 0, "ridge", self.ridge, "at least 0")

    def apply(self, x: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time d"]:
        """A_t x_t for all t: one causal linear attention whose values are its keys."""
        return _attend(x, self.keys, self.keys) + self.ridge * x

    def solve(self, x: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time d"]:
        """A_t^-1 x_t for all t, by recursive least squares that is refined and verified.

        Raises:
            InputError: the ridge is too small for keys of this size.
        """
        ridge = self.keys.new_full((self.keys.shape[0], 1, self.keys.shape[2]), self.ridge)
        return causal_solve(x[:, None], self.keys[:, None], None, None, ridge, None, "initial")[:, 0]

    def trace(self) -> Float[Tensor, "batch time 1"]:
        """tr A_t."""
        return self.keys.square().sum(-1, keepdim=True).cumsum(1) + self.ridge * self.keys.shape[-1]

    def frobenius_norm(self) -> Float[Tensor, "batch time 1"]:
        """||A_t||_F, from ||K K^T||_F = ||K^T K||_F, whose squares over time are a cumulative sum."""
        inner = (self.keys @ self.keys.mT).square()
        added = 2 * inner.tril(-1).sum(-1) + inner.diagonal(dim1=-2, dim2=-1)
        squared = added.cumsum(1)[:, :, None]
        data_trace = self.keys.square().sum(-1, keepdim=True).cumsum(1)
        return (squared + 2 * self.ridge * data_trace + self.ridge**2 * self.keys.shape[-1]).sqrt()

    def bounds(self) -> tuple[Float[Tensor, "batch time 1"], Float[Tensor, "batch time 1"]]:
        """Cheap bounds (low, high) on the spectrum of A_t: the ridge, and the ridge plus the trace of the rest."""
        low = torch.full_like(self.keys[..., :1], self.ridge)
        return low, self.keys.square().sum(-1, keepdim=True).cumsum(1) + self.ridge

    def extreme_eigenvalues(self) -> tuple[Float[Tensor, "batch time 1"], Float[Tensor, "batch time 1"]]:
        """The smallest and the largest eigenvalue of A_t. Forms A_t, one sequence at a time when d is large."""
        batch, time, d = self.keys.shape
        rows = max(1, _CHUNK_NUMBERS // (time * d * d))
        spectra = []
        for start in range(0, batch, rows):
            part = self.keys[start : start + rows]
            moments = torch.einsum("btd,bte->btde", part, part).cumsum(1)
            spectra.append(torch.linalg.eigvalsh(moments)[..., [0, -1]])
        # a rank-deficient matrix has rounding noise of either sign where its smallest eigenvalue is zero
        spectrum = torch.cat(spectra).clamp(min=0) + self.ridge
        return spectrum[..., :1], spectrum[..., 1:]


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return linear_attention(queries[:, :, None], keys[:, :, None], values[:, :, None])[:, :, 0]
