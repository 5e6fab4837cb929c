"""A report as a folder of files."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path

from mesascope.figures import Figure, HeatmapPanel
from mesascope.files import write_atomically, write_json
from mesascope.report.model import Report
from mesascope.report.page import render_page
from mesascope.report.result import result_json
from mesascope.report.static import save_figure


def write_report(report: Report, folder: Path) -> Path:
    """Write `claims.json`, `figures/<id>.{png,svg,csv}`, `tables/<id>.csv`, `result.json` and `index.html`.

    `result.json` holds claims, curves and tables in one small file. Returns the path of `index.html`.

    Every file is written atomically, and the page last, so it never refers to a file that is not there.

    Raises:
        InputError: a panel has limits that cannot be drawn.
        StorageError: a file cannot be written.
    """
    write_json(folder / "claims.json", [claim.to_json() for claim in report.claims])
    drawings = {}
    for figure in report.figures:
        _, svg = save_figure(figure, folder / "figures")
        drawings[figure.id] = svg.read_bytes()
        _write_csv(folder / "figures" / f"{figure.id}.csv", _FIGURE_COLUMNS, _figure_rows(figure))
    for table in report.tables:
        _write_csv(folder / "tables" / f"{table.id}.csv", table.columns, table.rows)
    # compact: indented numbers would make it ten times as long
    write_atomically(folder / "result.json", json.dumps(result_json(report), allow_nan=False) + "\n")
    index = folder / "index.html"
    write_atomically(index, render_page(report, drawings))
    return index


_FIGURE_COLUMNS = ("panel", "series", "role", "x", "y", "value", "low", "high")


def _figure_rows(figure: Figure) -> Iterable[tuple[str | float | int, ...]]:
    """One row per point of a curve (`y` and the edges of its band), or per entry of a matrix (`x` column, `y` row)."""
    for panel in figure.panels:
        if isinstance(panel, HeatmapPanel):
            for row, values in enumerate(panel.matrix.tolist()):
                for column, value in enumerate(values):
                    yield panel.title, "", "", column, row, value, "", ""
            continue
        for line in panel.lines:
            blank = [""] * line.x.size
            low = blank if line.low is None else line.low.tolist()
            high = blank if line.high is None else line.high.tolist()
            for x, y, bottom, top in zip(line.x.tolist(), line.y.tolist(), low, high, strict=True):
                yield panel.title, line.label, line.role, x, y, "", bottom, top


def _write_csv(path: Path, columns: Iterable[str], rows: Iterable[tuple[str | float | int, ...]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue())
