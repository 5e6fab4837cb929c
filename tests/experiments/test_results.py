"""Results under version control belong to the claims as they stand in the code."""

import json
from pathlib import Path

import pytest

from mesascope.claims import Threshold
from mesascope.experiments import experiment

RESULTS = Path(__file__).parents[2] / "results"


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
