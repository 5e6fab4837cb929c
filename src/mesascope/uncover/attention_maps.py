"""Attention maps of a model, averaged over sequences: which past tokens a head reads, whatever they contain.

A head that copies by position has nearly the same map for every sequence, so the mean map shows it and the standard
deviation over sequences is small.

Source: arXiv 2309.05858, Figs. 3A, 14 and 15. Differences from the paper: (1) the spread over sequences and the share
of the attention on chosen offsets are measured beside the picture. The maps of linear and mesa layers are signed; their
shares are of absolute values.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mesascope.errors import InputError, require
from mesascope.figures import Array, Figure, HeatmapPanel, Table
from mesascope.tasks import Sequences
from mesascope.uncover.capture import CapturableModel
from mesascope.uncover.moments import RunningMoments


@dataclass(frozen=True)
class AttentionMaps:
    """Maps of some layers over many sequences; row t attends to column t'.

    Attributes:
        activations: names of the captured maps, one per layer.
        mean: `[layers, H, T, T]`, over sequences.
        magnitude: `[layers, H, T, T]`, mean of the absolute value.
        deviation: `[layers, H, T, T]`, standard deviation over sequences (n - 1).
        num_sequences: sequences in the mean.
    """

    activations: tuple[str, ...]
    mean: Array
    magnitude: Array
    deviation: Array
    num_sequences: int

    def shares(self, offsets: Sequence[int]) -> Array:
        """The share of the attention that falls on the tokens t' = t - offset, `[layers, H]`.

        Averaged over the time steps that could also attend elsewhere, t > max(offsets) + 1.

        Raises:
            InputError: no offsets, or one that is negative or reaches beyond the sequence.
        """
        require(len(offsets) >= 1, "offsets", tuple(offsets), "not empty")
        on_offsets = sum(self._diagonal(self.magnitude, offset, offsets) for offset in offsets)
        first = max(offsets) + 1
        shares: Array = (on_offsets / self.magnitude.sum(-1)[..., first:]).mean(-1)
        return shares

    def spread(self, offset: int) -> Array:
        """The standard deviation over sequences of the attention on t' = t - offset, averaged over t, `[layers, H]`.

        Over the same time steps as `shares`. Errors as there.
        """
        spread: Array = self._diagonal(self.deviation, offset, (offset,)).mean(-1)
        return spread

    def table(self, id: str, title: str, offsets: Sequence[int] = (0, 1, 2, 3)) -> Table:
        """One row per layer and head: share and spread on every offset."""
        rows: list[tuple[str | float, ...]] = []
        shares = np.stack([self.shares((offset,)) for offset in offsets], -1)
        spreads = np.stack([self.spread(offset) for offset in offsets], -1)
        for layer, name in enumerate(self.activations):
            for head in range(self.mean.shape[1]):
                numbers = np.concatenate([shares[layer, head], spreads[layer, head]])
                rows.append((name, head + 1, *(float(number) for number in numbers)))
        columns = (
            *("layer", "head"),
            *(f"share on t' = {_token(offset)}" for offset in offsets),
            *(f"standard deviation on t' = {_token(offset)}" for offset in offsets),
        )
        return Table(id, title, columns, tuple(rows))

    def figure(self, id: str, title: str, caption: str) -> Figure:
        """The mean map of every head, a row of panels per layer on a common colour scale."""
        panels = []
        for layer, name in enumerate(self.activations):
            limit = float(np.abs(self.mean[layer]).max())
            panels += [
                HeatmapPanel(
                    f"{name}, head {head + 1}",
                    "attended token t'",
                    "time step t",
                    matrix,
                    limit=limit if limit > 0 else None,
                )
                for head, matrix in enumerate(self.mean[layer])
            ]
        return Figure(id, title, caption, tuple(panels), self.mean.shape[1])

    def _diagonal(self, maps: Array, offset: int, offsets: Sequence[int]) -> Array:
        """Entries (t, t - offset) for t > max(offsets) + 1, `[layers, H, times]`."""
        length = maps.shape[-1]
        allowed = f"between 0 and {length - 2} for sequences of {length} tokens"
        require(all(0 <= each <= length - 2 for each in offsets), "offsets", tuple(offsets), allowed)
        diagonal = np.diagonal(maps, -offset, axis1=-2, axis2=-1)
        return diagonal[..., max(offsets) + 1 - offset :]


def mean_attention_maps(
    model: CapturableModel, batches: Iterable[Sequences], activations: Sequence[str] = ("blocks.0.attn.pattern",)
) -> AttentionMaps:
    """Mean and spread of the attention maps of some layers.

    Args:
        model: whose maps are captured.
        batches: sequences of one task.
        activations: names of maps `[B, H, T, T]`, all with the same number of heads.

    Raises:
        InputError: no batches, no names, an unknown name, or maps of different shapes.
    """
    require(len(activations) >= 1, "activations", tuple(activations), "at least one name")
    moments, magnitudes = RunningMoments(), RunningMoments()
    for sequences in batches:
        with torch.no_grad():
            captured = model.run(sequences.tokens, capture=activations).activations
        maps = [captured[name] for name in activations]
        shapes = sorted({tuple(each.shape) for each in maps})
        require(len(shapes) == 1 and len(shapes[0]) == 4, "activations", shapes, "maps of one shape [B, H, T, T]")
        stacked = torch.stack(maps, dim=1).double().numpy()
        moments.add(stacked)
        magnitudes.add(np.abs(stacked))
    if moments.count == 0:
        raise InputError("batches: got none, but there must be at least one")
    return AttentionMaps(tuple(activations), moments.mean, magnitudes.mean, moments.deviation, moments.count)


def _token(offset: int) -> str:
    return "t" if offset == 0 else f"t - {offset}"
