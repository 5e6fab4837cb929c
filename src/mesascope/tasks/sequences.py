"""Sequences: what a task draws and a predictor reads."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Latents:
    """What generated a batch of sequences, for probes and oracles. Absent parts are None.

    Attributes:
        transition: W*, `[B, n_h, n_h]`; for few-shot regression one per task, `[B, tasks, n, n]`.
        states: h_1 .. h_{T+1}, `[B, T+1, n_h]`.
        emission: C*, `[B, n_s, n_h]`, when the state is only partially observed.
        features: g(h_1) .. g(h_T), `[B, T, n_h]`, for nonlinear dynamics: the next state is W* times these.
    """

    transition: Tensor
    states: Tensor | None = None
    emission: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True)
class Sequences:
    """A batch of B sequences with T predictions each.

    Attributes:
        tokens: what a model sees, `[B, T, n_e]`.
        targets: what it has to predict at each time, s_2 .. s_{T+1}, `[B, T, n_s]`.
        observations: s_1 .. s_T, `[B, T, n_s]`, from which learners predict.
        latents: what generated the sequences.
        scored: time indices (from 0) whose predictions count; None means all of them.
    """

    tokens: Float[Tensor, "batch time n_e"]
    targets: Float[Tensor, "batch time n_s"]
    observations: Float[Tensor, "batch time n_s"]
    latents: Latents
    scored: Tensor | None = None

    @property
    def batch_size(self) -> int:
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        """T, the number of predictions."""
        return self.tokens.shape[1]

    @property
    def scored_indices(self) -> list[int]:
        """Time indices, from 0, of the predictions that count."""
        return list(range(self.length)) if self.scored is None else self.scored.tolist()

    def to(self, dtype: torch.dtype) -> "Sequences":
        """The same sequences with every floating-point tensor converted to `dtype`."""
        return _map_tensors(self, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def select(self, rows: slice) -> "Sequences":
        """The sub-batch `rows`."""
        selected = _map_tensors(self, lambda tensor: tensor[rows])
        return replace(selected, scored=self.scored)


def shift_right(values: Float[Tensor, "batch time n"]) -> Float[Tensor, "batch time n"]:
    """The value one step earlier, zero at the first step: s_0 = 0."""
    return torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], dim=1)


def _map_tensors(record: Any, function: Any) -> Any:
    changes = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = function(value)
        elif isinstance(value, Latents):
            changes[field.name] = _map_tensors(value, function)
    return replace(record, **changes)
