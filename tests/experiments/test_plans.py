"""What an experiment decides beforehand is complete, and each claim is measured exactly once."""

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from experiments.fake import FAILS, HOLDS, LABEL, TRAINING, FakeStudy, fake_experiment
from mesascope.config import config_hash, from_json, to_json
from mesascope.errors import InputError
from mesascope.experiments import experiment, experiments
from mesascope.experiments.base import ClaimSheet, Experiment, Findings, Profile, Trained
from mesascope.figures import Table
from mesascope.runs import RunStore
from mesascope.training.config import TrainingConfig

PROFILES = get_args(Profile)
TRAINING_FREE = {"fig20"}
"""Experiments that compare learners only."""
EVERY_PLAN = [(found, profile) for _, found in sorted(experiments().items()) for profile in PROFILES]


def name(value: Experiment | str) -> str:
    return value if isinstance(value, str) else value.name


def test_the_package_is_searched() -> None:
    assert {"fig4", "quickstart"} <= set(experiments())
    for known, found in experiments().items():
        assert found.name == known
        assert experiment(known) is found
        assert found.title
        assert all(found.introduction)


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"experiment: got 'quickstrat'; did you mean 'quickstart'\?"):
        experiment("quickstrat")


@pytest.mark.parametrize(("found", "profile"), EVERY_PLAN, ids=name)
def test_every_plan_is_complete(found: Experiment, profile: Profile) -> None:
    plan = found.plan(profile)
    assert plan.expected_minutes > 0
    assert len({claim.id for claim in plan.claims}) == len(plan.claims) > 0
    for claim in plan.claims:
        sides = [side for side in (claim.threshold.low, claim.threshold.high) if side is not None]
        assert sides, claim.id
        assert all(math.isfinite(side) for side in sides), claim.id
        assert claim.statement, claim.id
        assert claim.source, claim.id
        assert claim.paper_value, claim.id
    hashes = {config_hash(config) for config in plan.trainings.values()}
    assert len(hashes) == len(plan.trainings)
    assert plan.trainings or found.name in TRAINING_FREE
    for config in plan.trainings.values():
        assert from_json(TrainingConfig, to_json(config)) == config
        assert hash(config) == hash(replace(config))
    assert all(reduction.endswith(".") for reduction in plan.reductions)


@pytest.mark.parametrize(("found", "profile"), EVERY_PLAN, ids=name)
def test_more_seeds_mean_more_trainings_of_the_same_kind(found: Experiment, profile: Profile) -> None:
    few, many = found.plan(profile, 2), found.plan(profile, 3)
    assert set(few.trainings) < set(many.trainings) or found.name in TRAINING_FREE
    assert all(many.trainings[label] == config for label, config in few.trainings.items())
    assert few.claims == many.claims


@pytest.mark.parametrize("seeds", [0, -1])
def test_seeds_must_be_positive(seeds: int) -> None:
    with pytest.raises(InputError, match=f"seeds: got {seeds}, but it must be at least 1"):
        fake_experiment().plan("quick", seeds)


def test_only_the_paper_profile_has_nothing_to_admit() -> None:
    fig4 = experiment("fig4")
    assert fig4.plan("paper").reductions == ()
    assert len(fig4.plan("quick").reductions) > 0
    assert fig4.plan("paper").trainings.keys() > fig4.plan("quick", 5).trainings.keys()


def test_studies_may_share_a_training() -> None:
    plan = fake_experiment(FakeStudy(), FakeStudy()).plan("quick")
    assert plan.trainings == {LABEL: TRAINING}


def test_studies_may_not_disagree_about_a_label() -> None:
    shared = fake_experiment(FakeStudy(), FakeStudy(replace(TRAINING, seed=1)))
    with pytest.raises(ValueError, match="two studies train different models under the label '1 linear layer, seed 0'"):
        shared.plan("quick")


def test_sheet_orders_claims_as_planned() -> None:
    sheet = ClaimSheet(fake_experiment().plan("quick"))
    sheet.record(FAILS.id, 2.0, (1.0, 2.0))
    sheet.record(HOLDS.id, 3)
    holds, fails = sheet.finish()
    assert (holds.claim, holds.measured, holds.passed) == (HOLDS, 3.0, True)
    assert (fails.claim, fails.measured, fails.values, fails.passed) == (FAILS, 2.0, (1.0, 2.0), False)


def test_sheet_refuses_unknown_repeated_and_missing_claims() -> None:
    sheet = ClaimSheet(fake_experiment().plan("quick"))
    with pytest.raises(ValueError, match=r"claim fake\.other is not in the plan"):
        sheet.record("fake.other", 1.0)
    with pytest.raises(ValueError, match=r"claims were not measured: fake\.holds, fake\.fails"):
        sheet.finish()
    sheet.record(HOLDS.id, 1.0)
    with pytest.raises(ValueError, match=r"claim fake\.holds is measured twice"):
        sheet.record(HOLDS.id, 2.0)
    with pytest.raises(ValueError, match=r"claims were not measured: fake\.fails"):
        sheet.finish()


def test_a_study_that_forgets_a_claim_is_found_out(tmp_path: Path) -> None:
    class Forgetful(FakeStudy):
        def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
            sheet.record(HOLDS.id, 3)
            return Findings()

    forgetful = fake_experiment(Forgetful())
    with pytest.raises(ValueError, match=r"claims were not measured: fake\.fails"):
        forgetful.measure(Trained(forgetful.plan("quick"), RunStore(tmp_path)))


def test_findings_add_up() -> None:
    tables = [Table(id, id, ("a",), ()) for id in ("first", "second")]
    one, other = Findings(tables=(tables[0],), notes=("a",)), Findings(tables=(tables[1],), notes=("b",))
    assert one + other == Findings(tables=tuple(tables), notes=("a", "b"))
