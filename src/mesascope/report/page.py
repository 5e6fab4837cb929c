"""The page: one HTML file that opens from disk, needs no network and stays readable without scripts and on paper."""

import json
import math
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mesascope.figures import Figure, HeatmapPanel, LinePanel
from mesascope.files import write_atomically
from mesascope.report.interactive import to_plotly
from mesascope.report.model import Report, failed_first, format_duration, format_number, verdict
from mesascope.report.static import save_figure

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

TABLE_ROWS = 50
"""Rows of a table that the page shows; its CSV file holds all of them."""

_ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5}(?:v\d+)?)")


def write_page(report: Report, path: Path) -> None:
    """Write `report` as one self-contained HTML file, atomically. Links to figure and table files are relative.

    Raises:
        InputError: a panel has limits that cannot be drawn.
        StorageError: the file cannot be written.
    """
    with TemporaryDirectory() as folder:
        drawings = {figure.id: save_figure(figure, Path(folder))[1].read_bytes() for figure in report.figures}
    write_atomically(path, render_page(report, drawings))


def render_page(report: Report, drawings: Mapping[str, bytes]) -> str:
    """The HTML of `report`; `drawings` holds the SVG of every figure by its id."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

    return template("page.html.jinja").render(
        report=report,
        claims=failed_first(report.claims),
        failed=sum(not claim.passed for claim in report.claims),
        verdict=verdict(report.claims),
        duration=format_duration(report.seconds),
        figures=[(figure, _data_uri(drawings[figure.id]), _panels(figure)) for figure in report.figures],
        has_lines=any(isinstance(panel, LinePanel) for figure in report.figures for panel in figure.panels),
        has_matrices=any(isinstance(panel, HeatmapPanel) for figure in report.figures for panel in figure.panels),
        table_rows=TABLE_ROWS,
        # Markup marks text that is HTML already: plotly's own script
        plotly=Markup(get_plotlyjs()) if report.figures else "",
    )


def template(name: str) -> "Template":
    """A template of this package, which escapes whatever it is given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mesascope.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "finite": math.isfinite, "arxiv": link_arxiv, "pretty": _pretty}
    environment.filters["duration"] = format_duration
    return environment.get_template(name)


def link_arxiv(text: str) -> "Markup":
    """Escaped text in which every `arXiv 2309.05858` is a link to the abstract."""
    from markupsafe import Markup, escape

    link = Markup('<a href="https://arxiv.org/abs/{}">{}</a>')
    pieces, end = [], 0
    for match in _ARXIV.finditer(text):
        pieces += [escape(text[end : match.start()]), link.format(match[1], match[0])]
        end = match.end()
    return Markup("").join([*pieces, escape(text[end:])])


def safe_json(text: str) -> "Markup":
    """JSON that can stand inside a script element: no character in it can end the element or open another."""
    from markupsafe import Markup

    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _panels(figure: Figure) -> list[tuple[str, "Markup"]]:
    """Every panel as a description in words and a plot of its own, so that narrow screens stack them."""
    panels = []
    for panel in figure.panels:
        drawing = to_plotly(replace(figure, panels=(panel,), columns=1))
        panels.append((_description(panel), safe_json(drawing.to_json())))
    return panels


def _description(panel: LinePanel | HeatmapPanel) -> str:
    """What a reader who cannot see the panel is told."""
    axes = f"{panel.y_label} against {panel.x_label}"
    if isinstance(panel, HeatmapPanel):
        rows, columns = panel.matrix.shape
        return f"Heatmap, {panel.title}: {rows} by {columns} matrix, {axes}"
    scale = " on a logarithmic axis" if panel.log_y else ""
    lines = "; ".join(f"{line.label} ({line.role})" for line in panel.lines)
    return f"Line chart, {panel.title}: {axes}{scale}. Curves: {lines}"


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + b64encode(svg).decode()


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
