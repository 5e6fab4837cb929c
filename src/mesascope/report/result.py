"""A report as one small JSON file, to keep under version control: claims, curves and tables, but no matrices."""

import math
from typing import Any

from mesascope.config import SCHEMA
from mesascope.figures import Array, Figure, LinePanel
from mesascope.report.model import Report

_DIGITS = 5


def result_json(report: Report) -> dict[str, Any]:
    """Texts, claims, curves (to five significant digits), tables and machine of a report, as JSON values."""
    return {
        "schema": SCHEMA,
        "title": report.title,
        "introduction": list(report.introduction),
        "command": report.command,
        "profile": report.profile,
        "reductions": list(report.reductions),
        "seconds": round(report.seconds),
        "environment": report.environment,
        "claims": [claim.to_json() for claim in report.claims],
        "notes": list(report.notes),
        "figures": [{"id": figure.id, "title": figure.title, "caption": figure.caption} for figure in report.figures],
        "curves": {figure.id: _curves(figure) for figure in report.figures if _curves(figure)},
        "tables": {
            table.id: {
                "title": table.title,
                "columns": list(table.columns),
                "rows": [[_rounded(cell) for cell in row] for row in table.rows],
            }
            for table in report.tables
        },
    }


def _curves(figure: Figure) -> list[dict[str, Any]]:
    curves = []
    for panel in figure.panels:
        if isinstance(panel, LinePanel):
            for line in panel.lines:
                curve = {"panel": panel.title, "label": line.label, "role": line.role}
                arrays = {"x": line.x, "y": line.y, "low": line.low, "high": line.high}
                curves.append(
                    {**curve, **{name: _numbers(array) for name, array in arrays.items() if array is not None}}
                )
    return curves


def _numbers(array: Array) -> list[Any]:
    return [_rounded(value) for value in array.tolist()]


def _rounded(value: str | float | int) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
