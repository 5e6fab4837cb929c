"""Numbers both renderers must agree on: ranges of axes, edges of bands, ends of colour scales, places of blocks."""

import math

import numpy as np

from mesascope.errors import require
from mesascope.figures import Array, HeatmapPanel, Line, LinePanel
from mesascope.report.style import ROLES

Range = tuple[float, float]

_MOST_TICKS = 10


def x_range(panel: LinePanel) -> Range:
    """The horizontal axis: all finite coordinates, on a logarithmic axis the positive ones, and 2 % on either side."""
    values = _finite(*(line.x for line in panel.lines))
    if not panel.log_x:
        return _padded(values.min(), values.max(), 0.02) if values.size else (0.0, 1.0)
    values = values[values > 0]
    if not values.size:
        return 0.1, 1.0
    left, right = _padded(math.log10(values.min()), math.log10(values.max()), 0.02)
    return 10**left, 10**right


def y_range(panel: LinePanel) -> Range:
    """The vertical axis: the panel's limits, or all curves and bands and 5 % on either side.

    A logarithmic axis shows positive values only. A band that reaches down to zero or nearly so does not stretch it
    by more than one decade below the lowest curve.

    Raises:
        InputError: the limits are not increasing, or not positive on a logarithmic axis.
    """
    if panel.y_limits is not None:
        low, high = panel.y_limits
        allowed = "increasing and positive on a logarithmic axis"
        require(low < high and (low > 0 or not panel.log_y), "y_limits", panel.y_limits, allowed)
        return panel.y_limits
    curves = _finite(*(line.y for line in panel.lines))
    edges = [edge for line in panel.lines for edge in (line.low, line.high) if edge is not None]
    everything = _finite(curves, *edges)
    if not panel.log_y:
        return _padded(everything.min(), everything.max(), 0.05) if everything.size else (0.0, 1.0)
    curves, everything = curves[curves > 0], everything[everything > 0]
    if not everything.size:
        return 0.1, 1.0
    floor = curves.min() / 10 if curves.size else 0.0
    bottom, top = _padded(math.log10(max(everything.min(), floor)), math.log10(everything.max()), 0.05)
    return 10**bottom, 10**top


def x_ticks(panel: LinePanel) -> list[float] | None:
    """Where a logarithmic horizontal axis has ticks: at the coordinates if they are few; None leaves it to the axis."""
    values = np.unique(_finite(*(line.x for line in panel.lines)))
    return [float(value) for value in values] if panel.log_x and 0 < values.size <= _MOST_TICKS else None


def band_edges(line: Line, panel: LinePanel) -> tuple[Array, Array] | None:
    """Lower and upper edge of the band of a line, `[points]` each, or None; cut at the bottom of a logarithmic axis."""
    if line.low is None or line.high is None:
        return None
    if not panel.log_y:
        return line.low, line.high
    bottom = y_range(panel)[0]
    return np.maximum(line.low, bottom), np.maximum(line.high, bottom)


def drawing_order(panel: LinePanel) -> list[Line]:
    """The lines from bottom to top: hypotheses over references over models."""
    return sorted(panel.lines, key=lambda line: ROLES[line.role].order)


def colour_limit(panel: HeatmapPanel) -> float:
    """The end of the colour scale, which runs from minus to plus it.

    Raises:
        InputError: the panel's own limit is not positive.
    """
    if panel.limit is not None:
        require(panel.limit > 0, "limit", panel.limit, "positive")
        return panel.limit
    magnitudes = np.abs(_finite(panel.matrix))
    # a matrix of zeros is drawn in the middle colour of any scale
    return float(magnitudes.max()) if magnitudes.size and magnitudes.max() > 0 else 1.0


def block_edges(size: int, block: int | None) -> list[float]:
    """Where blocks meet along an axis of `size` entries, in entries; entry i extends from i - 0.5 to i + 0.5."""
    return [] if block is None else [start - 0.5 for start in range(block, size, block)]


def block_ticks(panel: HeatmapPanel, size: int) -> tuple[list[float], list[str]]:
    """Centres and names of the blocks along an axis of `size` entries; nothing without names."""
    if panel.block is None or not panel.block_labels:
        return [], []
    starts = range(0, size, panel.block)[: len(panel.block_labels)]
    centres = [(start + min(start + panel.block, size) - 1) / 2 for start in starts]
    return centres, list(panel.block_labels[: len(centres)])


def _finite(*arrays: Array) -> Array:
    values = np.concatenate([np.ravel(array) for array in arrays]) if arrays else np.empty(0)
    return values[np.isfinite(values)]


def _padded(low: float, high: float, share: float) -> Range:
    margin = share * (high - low)
    if margin == 0:  # a single value: any range around it will do
        margin = 0.05 * abs(low) or 0.5
    return float(low - margin), float(high + margin)
