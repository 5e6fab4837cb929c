"""Figures for the page, drawn with plotly: the look of the files, with values under the pointer."""

import math
import textwrap
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from mesascope.figures import Array, Figure, HeatmapPanel, Line, LinePanel
from mesascope.report import geometry, style

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure  # type: ignore[import-untyped]

_PIXELS = 4 / 3  # per point
_PLOT_HEIGHT = 300  # pixels, as all lengths below
_TITLE_SPACE = 52  # the tool bar fits above the title
_AXIS_SPACE = 62
_LEGEND_ROW = 20
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def to_plotly(figure: Figure) -> "PlotlyFigure":
    """The figure as a plotly figure that takes the width of its container.

    Raises:
        InputError: a panel has limits that cannot be drawn.
    """
    from plotly.graph_objects import Figure as PlotlyFigure
    from plotly.subplots import make_subplots  # type: ignore[import-untyped]

    columns = max(1, min(figure.columns, len(figure.panels)))
    rows = max(1, math.ceil(len(figure.panels) / columns))
    gap = _AXIS_SPACE + _TITLE_SPACE + max((_legend_height(panel, columns) for panel in figure.panels), default=0)
    inner = rows * _PLOT_HEIGHT + (rows - 1) * gap
    drawing: PlotlyFigure = make_subplots(
        rows,
        columns,
        subplot_titles=[_text(panel.title, 60) for panel in figure.panels],
        vertical_spacing=gap / inner if rows > 1 else 0,
        horizontal_spacing=0.22 / columns,
    )
    for index, panel in enumerate(figure.panels):
        suffix = "" if index == 0 else str(index + 1)
        traces, layout = _matrix(panel, suffix) if isinstance(panel, HeatmapPanel) else _lines(panel, suffix)
        domains = [drawing.layout[f"{axis}axis{suffix}"].domain for axis in "xy"]
        _place(traces, layout, domains, suffix, inner)
        # plotly wraps entries at the width of the whole figure, so columns of panels need columns of entries
        layout[f"legend{suffix}"]["orientation"] = "h" if columns == 1 else "v"
        drawing.add_traces(traces)
        drawing.update_layout(layout)
        if isinstance(panel, HeatmapPanel):
            for separator in _separators(panel, suffix):
                drawing.add_shape(separator)
    drawing.update_annotations(font={"size": 14, "color": style.INK}, yshift=8)
    drawing.update_layout(
        template="none",
        autosize=True,
        height=inner + gap + 6,
        margin={"l": 64, "r": 16, "t": _TITLE_SPACE, "b": gap - _TITLE_SPACE},
        font={"family": _FONT, "size": 12.5, "color": style.INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        hovermode="x unified",
        hoverlabel={"bgcolor": "white", "bordercolor": style.AXIS, "font": {"size": 12}},
    )
    return drawing


def _lines(panel: LinePanel, suffix: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Traces, all bands below all curves, and the layout of the axes."""
    bands, curves = [], []
    for line in geometry.drawing_order(panel):
        rank = next(rank for rank, other in enumerate(panel.lines) if other is line)
        common = {
            "type": "scatter",
            "xaxis": f"x{suffix}",
            "yaxis": f"y{suffix}",
            "legend": f"legend{suffix}",
            "name": _text(line.label, 48),
            "legendgroup": f"{suffix or 1}-{rank}",  # one entry shows and hides a curve together with its band
        }
        edges = geometry.band_edges(line, panel)
        if edges is not None:
            bands.append(common | _band(line, *edges))
        curves.append(common | _curve(line, rank))
    ticks = geometry.x_ticks(panel)
    layout = {
        f"xaxis{suffix}": _axis(panel.x_label) | _scale(geometry.x_range(panel), panel.log_x),
        f"yaxis{suffix}": _axis(panel.y_label) | _scale(geometry.y_range(panel), panel.log_y),
    }
    if ticks is not None:
        layout[f"xaxis{suffix}"] |= {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return bands + curves, layout


def _scale(limits: geometry.Range, logarithmic: bool) -> dict[str, Any]:
    """Kind, range and ticks of an axis."""
    if not logarithmic:
        return {"type": "linear", "range": limits}
    low, high = (math.log10(value) for value in limits)
    # labels at powers of ten, and at 2 and 5 where the axis spans less than two of them
    minor = {"ticks": "outside", "ticklen": 2, "tickcolor": style.AXIS, "showgrid": False}
    return {"type": "log", "range": (low, high), "dtick": 1 if high - low > 1.5 else "D2", "minor": minor}


def _curve(line: Line, rank: int) -> dict[str, Any]:
    role, symbol = style.ROLES[line.role], style.marker(line)
    colour, width = style.stroke_colour(line), role.width * _PIXELS
    return {
        "x": line.x,
        "y": line.y,
        "mode": "lines+markers" if symbol else "lines",
        "line": {"color": colour, "width": width, "dash": dash(line)},
        "marker": {"symbol": symbol or "circle", "size": 6, "color": colour, "maxdisplayed": style.SPARSE},
        "legendrank": rank + 1,
        "hovertemplate": "%{y:.4g}",
    }


def _band(line: Line, low: Array, high: Array) -> dict[str, Any]:
    """A closed outline for every run of finite points, with gaps between them."""
    shown = np.isfinite(line.x) & np.isfinite(low) & np.isfinite(high)
    changes = np.flatnonzero(np.diff(shown)) + 1
    runs = [slice(start, stop) for start, stop in pairwise((0, *changes, shown.size)) if shown[start : start + 1].any()]
    outline_x: list[Array] = []
    outline_y: list[Array] = []
    gap = np.array([np.nan])
    for run in runs:
        outline_x += [line.x[run], line.x[run][::-1], gap]
        outline_y += [high[run], low[run][::-1], gap]
    return {
        "x": np.concatenate(outline_x)[:-1] if runs else [],
        "y": np.concatenate(outline_y)[:-1] if runs else [],
        "mode": "lines",
        "line": {"width": 0},
        "fill": "toself",
        "fillcolor": style.rgba(style.base_colour(line), style.BAND_OPACITY),
        "hoverinfo": "skip",
        "showlegend": False,
    }


def dash(line: Line) -> str:
    """The dashes of a line as plotly writes them: `"solid"` or lengths in pixels."""
    return ",".join(f"{length * _PIXELS:.3g}px" for length in style.ROLES[line.role].dash) or "solid"


def _matrix(panel: HeatmapPanel, suffix: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    limit = geometry.colour_limit(panel)
    rows, columns = panel.matrix.shape
    steps = np.linspace(0, 1, len(style.DIVERGING))
    trace = {
        "type": "heatmap",
        "z": panel.matrix,
        "zmin": -limit,
        "zmax": limit,
        "colorscale": [[float(step), colour] for step, colour in zip(steps, style.DIVERGING, strict=True)],
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
        "hovertemplate": "row %{y}, column %{x}: %{z:.4g}<extra></extra>",
        "hoverongaps": False,
    }
    square = {"constrain": "domain", "showgrid": False, "zeroline": False, "showline": False}
    layout = {}
    for letter, label, size in (("x", panel.x_label, columns), ("y", panel.y_label, rows)):
        centres, names = geometry.block_ticks(panel, size)
        layout[f"{letter}axis{suffix}"] = _axis(label) | square
        if centres:
            ticks = {"tickmode": "array", "tickvals": centres, "ticktext": [_text(name, 30) for name in names]}
            layout[f"{letter}axis{suffix}"] |= ticks | {"ticks": "", "ticklabelstandoff": 4}
    layout[f"xaxis{suffix}"] |= {"range": (-0.5, columns - 0.5)}
    layout[f"yaxis{suffix}"] |= {"range": (rows - 0.5, -0.5), "scaleanchor": f"x{suffix}"}
    return [trace], layout


def _separators(panel: HeatmapPanel, suffix: str) -> list[dict[str, Any]]:
    """Thin lines where blocks meet."""
    rows, columns = panel.matrix.shape
    pen = {"color": style.SEPARATOR, "width": 1}
    common = {"type": "line", "xref": f"x{suffix}", "yref": f"y{suffix}", "line": pen}
    across = [
        common | {"x0": -0.5, "x1": columns - 0.5, "y0": edge, "y1": edge}
        for edge in geometry.block_edges(rows, panel.block)
    ]
    down = [
        common | {"x0": edge, "x1": edge, "y0": -0.5, "y1": rows - 0.5}
        for edge in geometry.block_edges(columns, panel.block)
    ]
    return across + down


def _place(
    traces: list[dict[str, Any]], layout: dict[str, Any], domains: list[tuple[float, float]], suffix: str, inner: float
) -> None:
    """Put beside its own panel what plotly would put beside the whole figure: the legend below, the bar right."""
    (left, right), (bottom, top) = domains
    layout[f"legend{suffix}"] = {
        "x": left,
        "xanchor": "left",
        "y": bottom - _AXIS_SPACE / inner,
        "yanchor": "top",
        "font": {"size": 12},
        "itemwidth": 34,
        "tracegroupgap": 0,
    }
    for trace in traces:
        if trace["type"] == "heatmap":
            place = {"x": right, "xanchor": "left", "xpad": 6, "y": (bottom + top) / 2, "len": top - bottom}
            trace["colorbar"] = {**place, "thickness": 12, "outlinewidth": 0, "tickfont": {"size": 11}}


def _axis(label: str) -> dict[str, Any]:
    return {
        "title": {"text": _text(label, 56), "standoff": 8, "font": {"size": 12.5}},
        "gridcolor": style.GRID,
        "linecolor": style.AXIS,
        "showline": True,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": style.AXIS,
        "tickfont": {"size": 11.5, "color": style.MUTED},
        "automargin": True,
    }


def _legend_height(panel: LinePanel | HeatmapPanel, columns: int) -> int:
    """Room for a legend: entries below each other, or side by side on 480 pixels at 6.5 a character and 48 a sample."""
    if isinstance(panel, HeatmapPanel) or not panel.lines:
        return 0
    longest = max(min(48, len(line.label)) for line in panel.lines)
    across = max(1, int(480 / (48 + 6.5 * longest))) if columns == 1 else 1
    return _LEGEND_ROW * math.ceil(len(panel.lines) / across)


def _text(text: str, width: int) -> str:
    """Text in lines of at most `width` characters, its angle brackets not taken for markup."""
    return "<br>".join(escape(line, quote=False) for line in textwrap.wrap(text, width))
