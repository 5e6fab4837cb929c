import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mesascope.errors import StorageError
from mesascope.figures import Figure, HeatmapPanel, Line, LinePanel, Table
from mesascope.report import write_report
from report import demo

X = np.array([1.0, 2.0])
PANELS = (
    LinePanel("loss", "x", "y", (Line("model", X, X / 3, low=X - 1, high=X + 1), Line("guess", X, -X, "hypothesis"))),
    HeatmapPanel("product", "c", "r", np.array([[0.1, -0.2]])),
)
REPORT = replace(
    demo.report(),
    figures=(Figure("both", "Both", "Caption.", PANELS),),
    tables=(Table("table", "Table", ("name", "loss, in nats"), (('a "quoted", name', 1 / 3), ("line\nbreak", 2))),),
)


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_all_files_are_written(tmp_path: Path) -> None:
    assert write_report(REPORT, tmp_path) == tmp_path / "index.html"
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    figures = {f"figures/both.{suffix}" for suffix in ("png", "svg", "csv")}
    assert files == {"index.html", "claims.json", "result.json", "tables/table.csv"} | figures


def test_claims_as_json(tmp_path: Path) -> None:
    write_report(replace(REPORT, figures=()), tmp_path)
    stored = json.loads((tmp_path / "claims.json").read_text())
    assert stored == [claim.to_json() for claim in REPORT.claims]
    by_id = {claim["id"]: claim for claim in stored}
    assert by_id["fig4.depth_helps"]["passed"] is False
    assert by_id["fig4.depth_helps"]["threshold"] == {"low": 0.1, "high": 0.5}
    assert by_id["fig4.probe"]["passed"] is False
    assert by_id["fig4.probe"]["measured"] is None
    assert by_id["fig4.probe"]["values"] == [None, 0.3]


def test_tables_as_csv(tmp_path: Path) -> None:
    write_report(replace(REPORT, figures=()), tmp_path)
    header, first, second = rows(tmp_path / "tables" / "table.csv")
    assert header == ["name", "loss, in nats"]
    assert first[0] == 'a "quoted", name'
    assert float(first[1]) == 1 / 3, "no digit is lost"
    assert second == ["line\nbreak", "2"]


def test_figures_as_csv(tmp_path: Path) -> None:
    write_report(REPORT, tmp_path)
    assert rows(tmp_path / "figures" / "both.csv") == [
        ["panel", "series", "role", "x", "y", "value", "low", "high"],
        ["loss", "model", "model", "1.0", repr(1 / 3), "", "0.0", "2.0"],
        ["loss", "model", "model", "2.0", repr(2 / 3), "", "1.0", "3.0"],
        ["loss", "guess", "hypothesis", "1.0", "-1.0", "", "", ""],
        ["loss", "guess", "hypothesis", "2.0", "-2.0", "", "", ""],
        ["product", "", "", "0", "0", "0.1", "", ""],
        ["product", "", "", "1", "0", "-0.2", "", ""],
    ]


def test_the_same_report_gives_the_same_files(tmp_path: Path) -> None:
    write_report(REPORT, tmp_path / "first")
    write_report(REPORT, tmp_path / "second")
    for path in (tmp_path / "first").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()


def test_an_earlier_page_survives_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("earlier")
    (tmp_path / "tables").write_text("not a folder")
    with pytest.raises(StorageError, match=r"table\.csv: cannot be written"):
        write_report(replace(REPORT, figures=()), tmp_path)
    assert (tmp_path / "index.html").read_text() == "earlier"
