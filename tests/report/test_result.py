"""The small JSON of a report."""

import json
from pathlib import Path

from mesascope.report import write_report
from mesascope.report.result import result_json
from report import demo


def test_holds_claims_and_curves_and_fits_into_version_control(tmp_path: Path) -> None:
    report = demo.report()
    write_report(report, tmp_path)
    text = (tmp_path / "result.json").read_text()
    stored = json.loads(text)
    assert stored == json.loads(json.dumps(result_json(report)))
    assert [claim["id"] for claim in stored["claims"]] == [claim.claim.id for claim in report.claims]
    assert len(text) < 200_000
    figure = next(figure for figure in report.figures if figure.id in stored["curves"])
    line, kept = figure.panels[0].lines[0], stored["curves"][figure.id][0]  # type: ignore[union-attr]
    assert kept["label"] == line.label
    assert max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(kept["y"], line.y.tolist(), strict=True)) < 1e-4


def test_matrices_are_left_out() -> None:
    assert "matrix" not in json.dumps(result_json(demo.report())["curves"])
