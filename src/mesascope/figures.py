"""Figures as data: what is plotted, apart from how it is drawn.

Experiments and analyses build these; `mesascope.report` draws the same figure once for files and once for the page.
The colours of meaning are the paper's: a model is a solid line, a hypothesis about it dashed.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mesascope.errors import require

Array = NDArray[np.float64]

Role = Literal["model", "hypothesis", "reference"]
"""Solid line: a trained model. Dashed: a hypothesis about it. Dotted: a point of reference, such as a stored curve."""


@dataclass(frozen=True)
class Line:
    """A curve, with a band where several seeds were measured.

    Attributes:
        label: entry in the legend.
        x, y: coordinates, `[points]`.
        role: decides solid, dashed or dotted.
        colour: index into the colour-blind safe palette; curves that belong together share it.
        low, high: edges of the band, `[points]`, or None.
    """

    label: str
    x: Array
    y: Array
    role: Role = "model"
    colour: int = 0
    low: Array | None = None
    high: Array | None = None

    def __post_init__(self) -> None:
        require(self.x.shape == self.y.shape, "y", self.y.shape, f"of the shape of x {self.x.shape}")
        for name, edge in (("low", self.low), ("high", self.high)):
            require(edge is None or edge.shape == self.x.shape, name, edge, f"of the shape of x {self.x.shape}")

    @classmethod
    def over_seeds(cls, label: str, x: Array, ys: Array, role: Role = "model", colour: int = 0) -> "Line":
        """Mean over seeds with a band of one standard deviation (n - 1); `ys` is `[seeds, points]`.

        A single seed has no band: its spread is unknown, not zero.
        """
        mean = ys.mean(0)
        if ys.shape[0] == 1:
            return cls(label, x, mean, role, colour)
        spread = ys.std(0, ddof=1)
        return cls(label, x, mean, role, colour, mean - spread, mean + spread)


@dataclass(frozen=True)
class LinePanel:
    """Curves over common axes.

    Attributes:
        title, x_label, y_label: texts; labels carry the unit where there is one.
        lines: what is drawn, in legend order.
        log_y: logarithmic vertical axis.
        y_limits: range of the vertical axis, or None to fit.
        log_x: logarithmic horizontal axis.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log_y: bool = False
    y_limits: tuple[float, float] | None = None
    log_x: bool = False


@dataclass(frozen=True)
class HeatmapPanel:
    """A matrix on a diverging colour scale symmetric about zero.

    Attributes:
        title, x_label, y_label: texts.
        matrix: `[rows, columns]`, row 0 on top.
        limit: end of the colour scale, or None for the largest absolute entry.
        block: size of the blocks to separate by thin lines, or None.
        block_labels: names of the blocks along both axes; empty for none.
    """

    title: str
    x_label: str
    y_label: str
    matrix: Array
    limit: float | None = None
    block: int | None = None
    block_labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """Panels under one caption.

    Attributes:
        id: file name and anchor, `"learning_curves"`.
        title: heading.
        caption: what is shown and how to read it, in plain text.
        panels: left to right, top to bottom.
        columns: panels per row.
    """

    id: str
    title: str
    caption: str
    panels: tuple[LinePanel | HeatmapPanel, ...]
    columns: int = 2


@dataclass(frozen=True)
class Table:
    """Named columns of numbers or texts, written as CSV.

    Attributes:
        id: file name.
        title: heading.
        columns: names, with units where there are any.
        rows: one tuple per row, as long as `columns`.
    """

    id: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int, ...], ...]

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.rows} - {len(self.columns)}
        require(not widths, "rows", sorted(widths), f"of {len(self.columns)} entries, one per column")
