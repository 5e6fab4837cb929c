"""Time per token against the length of the sequence."""

from collections.abc import Sequence

import numpy as np

from mesascope.benchmarks.attention_result import AttentionResult, Record
from mesascope.benchmarks.methods import BOTH_PASSES, Passes
from mesascope.benchmarks.peers import SDPA
from mesascope.errors import require
from mesascope.figures import Figure, Line, LinePanel, Role

_COLOURS = {"mesa": 0, "softmax": 1, "linear": 2}
_MARGIN = 1.2
"""Factor between the outermost values and the ends of the vertical axis."""


def scaling_figure(result: AttentionResult, identifier: str) -> Figure:
    """Two panels, forward and forward with backward, from the `scaling` of a result; `identifier` names the file.

    Raises:
        InputError: the result has no `scaling`.
    """
    records = result.scaling
    require(len(records) > 0, "result.scaling", records, "measured")
    shape = records[0].shape
    limits = (
        min(_per_token(record.low, record) for record in records) / _MARGIN,
        max(_per_token(record.high, record) for record in records) * _MARGIN,
    )
    return Figure(
        identifier,
        f"Attention on a CPU: time per token, {shape.heads} heads of size {shape.dim}",
        f"Median time per token of {shape.heads} heads of size D = {shape.dim} in float32 on {result.threads} CPU "
        f"threads, without (left) and with (right) the backward pass, against the length T of the sequence. The bands "
        f"reach from the first to the third quartile of up to {result.rounds} interleaved runs. Mesa and linear "
        "attention carry a state of fixed size along the sequence; softmax attention looks back at all of it. "
        "Solid: mesascope; dotted: torch.",
        tuple(_panel(records, passes, limits) for passes in BOTH_PASSES),
    )


def _panel(records: Sequence[Record], passes: Passes, limits: tuple[float, float]) -> LinePanel:
    shown = [record for record in records if record.passes == passes]
    names = list(dict.fromkeys(record.method for record in shown))
    return LinePanel(
        passes.replace("+", " and ").capitalize(),
        "sequence length T (tokens)",
        "time per token (µs)",
        tuple(_line(name, [record for record in shown if record.method == name]) for name in names),
        log_y=True,
        y_limits=limits,
        log_x=True,
    )


def _line(name: str, records: Sequence[Record]) -> Line:
    times = np.array([float(record.shape.time) for record in records])
    low, median, high = (
        np.array([_per_token(getattr(record, field), record) for record in records])
        for field in ("low", "seconds", "high")
    )
    role: Role = "reference" if name == SDPA else "model"
    return Line(name, times, median, role, _COLOURS[name.split(":")[0]], low, high)


def _per_token(seconds: float, record: Record) -> float:
    """Microseconds per token."""
    return 1e6 * seconds / record.shape.time
