"""Results under version control belong to the claims as they stand in the code."""

import json
import re
from pathlib import Path

import pytest

from mesascope.claims import Threshold
from mesascope.experiments import experiment
from mesascope.report.documents import render_documents
from mesascope.report.keep import IMAGE_BYTES

ROOT = Path(__file__).parents[2]
RESULTS, DOCS = ROOT / "results", ROOT / "docs" / "results"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*.json")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_committed_results_match_the_claims(path: Path) -> None:
    stored = json.loads(path.read_text())
    profile = path.parent.name
    assert stored["profile"] == profile
    plan = experiment(path.stem).plan(profile)  # type: ignore[arg-type]
    assert stored["reductions"] == list(plan.reductions)
    assert [entry["id"] for entry in stored["claims"]] == [claim.id for claim in plan.claims]
    for entry, claim in zip(stored["claims"], plan.claims, strict=True):
        threshold = Threshold(**entry["threshold"])
        assert (entry["statement"], threshold) == (claim.statement, claim.threshold)
        assert entry["passed"] == threshold.accepts(entry["measured"])


def test_pages_are_those_of_the_committed_results() -> None:
    """`mesascope document` writes them again."""
    rendered = render_documents(RESULTS, DOCS)
    assert {path: path.read_text() for path in DOCS.glob("*.md")} == rendered
    shown = {image for page in rendered.values() for image in re.findall(r"\]\((images/[^)]+)\)", page)}
    images = {f"images/{path.name}": path.stat().st_size for path in (DOCS / "images").iterdir()}
    assert set(images) == shown
    assert max(images.values()) <= IMAGE_BYTES


def test_every_claim_that_does_not_hold_is_explained() -> None:
    for path in RESULTS.glob("*/*.json"):
        for entry in json.loads(path.read_text())["claims"]:
            assert entry["passed"] or (DOCS / "why" / f"{entry['id']}.md").exists(), f"{path.stem}: {entry['id']}"
