"""Figures as files, drawn with matplotlib: PNG for slides, SVG for papers. The same figure gives the same bytes."""

import io
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mesascope.errors import require
from mesascope.figures import Figure, HeatmapPanel, LinePanel
from mesascope.files import write_atomically
from mesascope.report import geometry, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing
    from matplotlib.lines import Line2D

_RESOLUTION = 200  # dots per inch
_PANEL_WIDTH, _MATRIX_WIDTH, _PANEL_HEIGHT = 4.4, 3.8, 3.1  # inches
_LEGEND_ROW = 0.2  # inches
_METADATA: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}}
_MARKERS: dict[style.Marker, str] = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^"}
_SETTINGS: dict[str, Any] = {
    "svg.hashsalt": "mesascope",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": style.INK,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.labelcolor": style.INK,
    "axes.edgecolor": style.AXIS,
    "axes.linewidth": 0.8,
    "xtick.color": style.AXIS,
    "ytick.color": style.AXIS,
    "xtick.labelcolor": style.MUTED,
    "ytick.labelcolor": style.MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
}


def save_figure(figure: Figure, folder: Path) -> list[Path]:
    """Write `<id>.png` (200 dots per inch) and `<id>.svg` into `folder`, atomically; the same bytes every time.

    Raises:
        InputError: a panel has limits that cannot be drawn.
        StorageError: the folder cannot be written.
    """
    paths = [folder / f"{figure.id}.{suffix}" for suffix in _METADATA]
    _write(figure, paths)
    return paths


def write_figure(figure: Figure, path: Path) -> None:
    """Write one file, `.png` or `.svg`; otherwise as `save_figure`."""
    suffixes = [f".{suffix}" for suffix in _METADATA]
    require(path.suffix in suffixes, "path", str(path), f"a file that ends in {' or '.join(suffixes)}")
    _write(figure, [path])


def _write(figure: Figure, paths: Sequence[Path]) -> None:
    """Draw once, and write that in the format of every path."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):  # type: ignore[arg-type]  # its keys are a Literal of 330 names
        drawing = draw_figure(figure)
        # everything is put in its place once, the same for all formats
        drawing.draw_without_rendering()
        drawing.set_layout_engine(None)
        for path in paths:
            buffer, suffix = io.BytesIO(), path.suffix.removeprefix(".")
            drawing.savefig(buffer, format=suffix, dpi="figure", metadata=_METADATA[suffix])
            write_atomically(path, buffer.getvalue())


def draw_figure(figure: Figure) -> "Drawing":
    """The figure as a matplotlib figure that no window and no global state knows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = max(1, min(figure.columns, len(figure.panels)))
    rows = max(1, math.ceil(len(figure.panels) / columns))
    shared = _shares_legend(figure)
    legend_rows = 0.0 if shared else sum(_legend_rows(figure, columns))
    width = _PANEL_WIDTH if any(isinstance(panel, LinePanel) for panel in figure.panels) else _MATRIX_WIDTH
    size = (width * columns, _PANEL_HEIGHT * rows + 0.5 + _LEGEND_ROW * legend_rows)
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1, wspace=0.03, hspace=0.03)
    drawing = Drawing(figsize=size, dpi=_RESOLUTION, layout=layout)
    FigureCanvasAgg(drawing)
    drawing.suptitle(_text(figure.title, 42 * columns), fontsize=11.5, fontweight="bold")
    for index, panel in enumerate(figure.panels):
        axes = drawing.add_subplot(rows, columns, index + 1)
        axes.set_title(_text(panel.title, 52), pad=8)
        axes.set_xlabel(_text(panel.x_label, 56))
        axes.set_ylabel(_text(panel.y_label, 40))
        if isinstance(panel, HeatmapPanel):
            _draw_matrix(axes, panel)
        else:
            handles = _draw_lines(axes, panel)
            if handles and not shared:
                across = _legend_columns(panel, 1)
                axes.legend(handles=handles, ncols=across, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    if shared and isinstance(panel, LinePanel):
        drawing.legend(handles=handles, ncols=_legend_columns(panel, columns), loc="outside lower center")
    return drawing


def _draw_lines(axes: "Axes", panel: LinePanel) -> list["Line2D"]:
    """Draw curves and bands; returns the legend's handles in the order of the panel."""
    axes.set_xscale("log" if panel.log_x else "linear")
    axes.set_yscale("log" if panel.log_y else "linear")
    ticks = geometry.x_ticks(panel)
    if ticks is not None:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    axes.set_xlim(geometry.x_range(panel))
    axes.set_ylim(geometry.y_range(panel))
    axes.grid(color=style.GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3)
    axes.tick_params(which="minor", length=0)
    handles = {}
    for line in geometry.drawing_order(panel):
        edges = geometry.band_edges(line, panel)
        if edges is not None:
            shown = np.isfinite(line.x) & np.isfinite(edges[0]) & np.isfinite(edges[1])
            colour = style.base_colour(line)
            axes.fill_between(line.x, *edges, where=shown, color=colour, alpha=style.BAND_OPACITY, linewidth=0)
    for line in geometry.drawing_order(panel):
        role, marker = style.ROLES[line.role], style.marker(line)
        dashes = tuple(length / role.width for length in role.dash)  # matplotlib counts in line widths
        (handles[id(line)],) = axes.plot(
            line.x,
            line.y,
            color=style.stroke_colour(line),
            linewidth=role.width,
            linestyle=(0, dashes) if dashes else "solid",
            marker=_MARKERS[marker] if marker else None,
            markersize=4,
            markevery=max(1, line.x.size // style.SPARSE),
            label=_text(line.label, 60),
        )
    return [handles[id(line)] for line in panel.lines]


def _draw_matrix(axes: "Axes", panel: HeatmapPanel) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    limit = geometry.colour_limit(panel)
    # an odd number of colours has one in the middle, for zero
    colours = LinearSegmentedColormap.from_list("diverging", style.DIVERGING, N=257).with_extremes(bad=style.MISSING)
    # without resampling, the SVG holds one pixel per entry and stays sharp at any size
    image = axes.imshow(panel.matrix, cmap=colours, vmin=-limit, vmax=limit, interpolation="none")
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=3)
    axes.tick_params(length=3)
    rows, columns = panel.matrix.shape
    for edge in geometry.block_edges(rows, panel.block):
        axes.axhline(edge, color=style.SEPARATOR, linewidth=0.7)
    for edge in geometry.block_edges(columns, panel.block):
        axes.axvline(edge, color=style.SEPARATOR, linewidth=0.7)
    for axis, size in ((axes.xaxis, columns), (axes.yaxis, rows)):
        centres, names = geometry.block_ticks(panel, size)
        if centres:
            axis.set_ticks(centres, [_text(name, 30) for name in names])
            axis.set_tick_params(length=0)


def _shares_legend(figure: Figure) -> bool:
    """Whether several panels, all of lines, have the same entries, so that one legend serves them all."""
    if not all(isinstance(panel, LinePanel) and panel.lines for panel in figure.panels) or len(figure.panels) < 2:
        return False
    panels = [panel for panel in figure.panels if isinstance(panel, LinePanel)]
    return len({tuple((line.label, line.role, line.colour) for line in panel.lines) for panel in panels}) == 1


def _legend_columns(panel: LinePanel, panels: int) -> int:
    """Entries that fit side by side under `panels` panels, at 4.6 points a character and 34 for the sample."""
    longest = max(min(60, len(line.label)) for line in panel.lines)
    return max(1, min(len(panel.lines), int(0.95 * panels * _PANEL_WIDTH * 72 / (34 + 4.6 * longest))))


def _legend_rows(figure: Figure, columns: int) -> list[float]:
    """Rows of the tallest legend in every row of panels."""
    heights = [
        math.ceil(len(panel.lines) / _legend_columns(panel, 1)) if isinstance(panel, LinePanel) and panel.lines else 0
        for panel in figure.panels
    ]
    return [max(heights[start : start + columns]) for start in range(0, len(heights), columns)]


def _text(text: str, width: int) -> str:
    """Text in lines of at most `width` characters, its dollar signs not taken for formulas."""
    text = re.sub(r"\b(Figs?\.) ", "\\1\N{NO-BREAK SPACE}", text)  # the number stays in its line
    return "\n".join(textwrap.wrap(text, width)).replace("$", r"\$")
