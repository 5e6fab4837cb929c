"""Sequences of different lengths: concatenated along time, or padded into a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mesascope.ops.mesa.checks import Operands, expand_ridge


def pad(packed: Operands, lengths: Sequence[int]) -> Operands:
    """From B = 1 to one row per sequence, filled up with zeros: a zero key and a zero log_forget change nothing."""

    def rows(operand: Tensor) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(operand[0].split(lengths), batch_first=True)

    heads, d = packed.q.shape[2:]
    return Operands(
        rows(packed.q),
        rows(packed.k),
        rows(packed.v),
        expand_ridge(packed.ridge, 1, heads, d).expand(len(lengths), heads, d),
        None if packed.log_forget is None else rows(packed.log_forget),
        None if packed.write is None else rows(packed.write),
    )


def unpad(padded: Tensor, lengths: Sequence[int]) -> Tensor:
    """From one row per sequence, `[N, Lmax, ...]`, to `[1, T, ...]`."""
    return torch.cat([row[:length] for row, length in zip(padded, lengths, strict=True)])[None]
