"""Studies of how models behave: claims judge the numbers they name, and reports are filled from real trainings."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.experiments import experiment
from mesascope.experiments.base import ClaimSheet, Experiment, Findings, Plan, Settings, Study, Trained
from mesascope.experiments.studies import evaluation
from mesascope.experiments.studies.evaluation import evaluation_sequences, tuning_sequences
from mesascope.experiments.studies.few_shot import FewShot
from mesascope.experiments.studies.hybrid_and_controls import HybridAndControls, windows
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.trainings import Architecture, Setting, few_shot_training, plain_training
from mesascope.learners import Features, Observations, Window, mean_loss, polynomial_moments, tune_chebyshev
from mesascope.nn import Transformer
from mesascope.runs import RunStore, train_all
from mesascope.tasks import EOSLayout, FewShotRegression, PairLayout, PrefixLayout
from mesascope.training.config import ConstantRate, TrainingConfig
from mesascope.uncover import FewShotCurve, FewShotResult, PromptTuning

CACHED = (
    evaluation_sequences,
    tuning_sequences,
    evaluation.proposition_2_curves,
    evaluation.tuned_preconditioner,
)
LAYOUTS = (PairLayout(), EOSLayout(), PrefixLayout())
LENGTH, STEPS = 66, 30


def tiny(config: TrainingConfig, length: int) -> TrainingConfig:
    """Two steps on a small task."""
    n_s, n_h = (2, 4) if config.task.emission is not None else (3, 3)
    model = replace(config.model, token_dim=n_s, prediction_dim=n_s, attention=config.model.attention[-2:], num_heads=1)
    return replace(
        config,
        task=replace(config.task, n_s=n_s, n_h=n_h, length=length),
        model=replace(model, key_dim=3, embed_dim=6, mlp_dim=5, position_dim=6),
        schedule=ConstantRate(1e-3),
        steps=2,
        batch_size=4,
        evaluation_batches=1,
        snapshot_every=None,
    )


def replicates(setting: Setting, architecture: Architecture, seeds: int = 1) -> Replicates:
    name = f"{setting} {architecture}"
    return Replicates.of(name, lambda seed: tiny(plain_training(setting, architecture, "quick", seed), 12), seeds)


def panels(seeds: int = 1) -> tuple[HybridAndControls, ...]:
    linear, partial, nonlinear = (
        (replicates(setting, "softmax-7", seeds), replicates(setting, "hybrid", seeds))
        for setting in ("linear", "partial", "nonlinear")
    )
    mlp = nonlinear[0].task.features
    assert mlp is not None
    return (
        HybridAndControls("fig7a", *linear),
        HybridAndControls("fig7b", *partial, windows(4), linear_to_richer=1.5),
        HybridAndControls("fig7c", *nonlinear, (Features(mlp),)),
    )


def few_shot(seeds: int = 1) -> FewShot:
    models = Replicates.of("few-shot", lambda seed: tiny(few_shot_training("hybrid", "quick", seed), LENGTH), seeds)
    return FewShot("fig18", models, PromptTuning(2, 4, 0.03), sequences=24)


@pytest.fixture
def few_sequences(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Studies measure and tune on a few sequences."""
    for function in CACHED:
        function.cache_clear()
    few = {"evaluation_sequences": 64, "tuning_sequences": 65}
    for name, count in few.items():
        sample = _sampler(count)
        for module in ("evaluation", "hybrid_and_controls"):
            monkeypatch.setattr(f"mesascope.experiments.studies.{module}.{name}", sample)
    monkeypatch.setattr("mesascope.experiments.studies.few_shot._TUNING", 16)
    monkeypatch.setattr(evaluation, "tune_chebyshev", partial(tune_chebyshev, steps=STEPS))
    monkeypatch.setattr("mesascope.training.loop.EVALUATION_BATCH", 16)
    yield
    for function in CACHED:
        function.cache_clear()


def _sampler(count: int):
    return lambda task: task.sample(count, torch.Generator().manual_seed(count))


def measured(studies: tuple[Study, ...], folder: Path) -> tuple[Plan, Findings]:
    experiment = Experiment("small", "Small", ("Small.",), lambda profile, seeds: Settings(studies, ("Small.",), 1.0))
    plan, store = experiment.plan("quick"), RunStore(folder)
    train_all(plan.trainings, store, workers=1)
    return plan, experiment.measure(Trained(plan, store))


@pytest.mark.usefixtures("few_sequences")
def test_every_study_finds_what_it_planned(tmp_path: Path) -> None:
    plan, findings = measured((*panels(), few_shot()), tmp_path)
    assert [claim.claim for claim in findings.claims] == list(plan.claims)
    assert all(math.isfinite(value) for claim in findings.claims for value in (claim.measured, *claim.values))
    assert {figure.id: len(figure.panels) for figure in findings.figures} == {
        **{f"fig7{panel}_curves": 1 for panel in "abc"},
        **{f"fig7{panel}_learners": 2 for panel in "abc"},
        **{"fig18a": 1, "fig18b": 2},
    }
    assert {table.id: len(table.rows) for table in findings.tables} == {
        **{"fig7a_losses": 1 + 2 + 2, "fig7b_losses": 1 + 4 + 2, "fig7c_losses": 1 + 4 + 2},
        **{f"fig7{panel}_learners": 2 * 5 for panel in "abc"},
        **{"fig18a": 33, "fig18b": 2 * 16},
    }
    assert sum("behaves like" in note for note in findings.notes) == 6
    assert sum("early ascent" in note for note in findings.notes) == 1


@pytest.mark.usefixtures("few_sequences")
def test_losses_are_compared_on_the_same_sequences(tmp_path: Path) -> None:
    studies = panels(seeds=2)
    _, findings = measured(studies, tmp_path)
    claims = {claim.claim.id: claim for claim in findings.claims}
    store = RunStore(tmp_path)
    for study in studies:
        sequences, tuning = (_sampler(count)(study.task) for count in (64, 65))
        softmax, hybrid = (
            np.array([mean_loss(store.model(config, "model"), sequences) for config in models.by_label.values()])
            for models in (study.softmax, study.hybrid)
        )
        found = claims[f"{study.figure}.hybrid_is_as_good"]
        np.testing.assert_allclose(found.values, hybrid / softmax, rtol=1e-6)
        assert found.measured == pytest.approx((hybrid / softmax).max(), rel=1e-6)
        if not study.richer:
            continue
        fits = [polynomial_moments(tuning, 6, "frobenius", regressors=x) for x in study.richer]
        best = min(fits, key=lambda moments: moments.optimum(6)).regressors
        linear, richer = (
            mean_loss(tune_chebyshev(6, "frobenius", tuning, STEPS, regressors=x).predictor, sequences)
            for x in (Observations(), best)
        )
        expected = abs(softmax - richer) / abs(softmax - linear)
        found = claims[f"{study.figure}.richer_regressors_describe_it"]
        np.testing.assert_allclose(found.values, expected, rtol=1e-5)
        assert found.measured == max(found.values)
        assert best.label in found.note
        if study.linear_to_richer:
            found = claims[f"{study.figure}.richer_regressors_are_needed"]
            assert found.measured == pytest.approx(linear / richer, rel=1e-5)
            assert found.claim.threshold.low == 1.5


def few_shot_results(curves: Sequence[dict[str, Sequence[float]]], pairs: tuple[int, ...]) -> list[FewShotResult]:
    """Results of seeds, with the same losses for every one of eight sequences."""

    def curve(label: str, losses: Sequence[float]) -> FewShotCurve:
        return FewShotCurve(label, FewShotRegression(2, pairs), np.tile(np.array(losses), (8, 1)))

    return [FewShotResult(tuple(curve(label, losses) for label, losses in seed.items())) for seed in curves]


def sheet_of(study: FewShot) -> ClaimSheet:
    return ClaimSheet(Plan((study,), {}, study.claims, (), 1.0))


def test_claims_about_one_task_judge_the_pairs_they_name() -> None:
    study, sheet = few_shot(), None
    falling = np.linspace(1.0, 0.4, 33)
    model = falling.copy()
    model[4], model[12] = 1.25, 3.0
    least_squares = falling.copy()
    least_squares[29] = falling[29] / 1.15
    least_squares[20] = 100.0
    eos, prefix = 0.9 * model, 0.8 * model
    prefix[9], prefix[10] = 0.95 * model[9], 5.0
    worse = {"model": model * 2, "model + EOS": eos * 4, "model + EOS + prefix": prefix, "least squares": model * 2}
    results = few_shot_results(
        [{"model": model, "model + EOS": eos, "model + EOS + prefix": prefix, "least squares": least_squares}, worse],
        (33,),
    )
    sheet = sheet_of(study)
    study._judge_one_task(results, sheet)
    values = {id.removeprefix("fig18a."): claim for id, claim in sheet.measured.items()}
    assert values["learns"].values == pytest.approx((0.4, 0.4))
    assert values["early_ascent"].values == pytest.approx((1.25, 1.25))
    assert values["eos_helps"].values == pytest.approx((0.9, 1.8))
    assert values["eos_helps"].measured == pytest.approx(1.8)
    assert values["prefix_helps"].values == pytest.approx((0.95 / 0.9, 0.95 / 3.6))
    assert values["like_least_squares"].values == pytest.approx((1.15, 1.0))
    assert not values["prefix_helps"].passed
    assert values["like_least_squares"].passed
    assert "peak at pair 5" in values["early_ascent"].note


def test_mean_over_pairs_is_over_those_both_layouts_have() -> None:
    study = few_shot()
    model = np.concatenate([np.full(20, 2.0), np.full(13, 100.0)])
    curves = {"model": model, "model + EOS": model[:20] / 2, "model + EOS + prefix": model[:15], "least squares": model}
    task = {label: FewShotRegression(2, (len(losses),)) for label, losses in curves.items()}
    result = FewShotResult(tuple(FewShotCurve(k, task[k], np.tile(v, (4, 1))) for k, v in curves.items()))
    sheet = sheet_of(study)
    study._judge_one_task([result], sheet)
    assert sheet.measured["fig18a.eos_helps"].measured == pytest.approx(0.5)


def test_claims_about_two_tasks_judge_the_switch() -> None:
    study = few_shot()
    first, second = [1.0, 0.9, 0.5], [2.0, 1.4, 1.0]
    others = dict.fromkeys(("model + EOS", "model + EOS + prefix", "least squares"), first + second)
    results = few_shot_results(
        [{"model": first + second, **others}, {"model": [*first, 1.0, 0.9, 0.9], **others}], (3, 3)
    )
    sheet = sheet_of(study)
    study._judge_two_tasks(results, sheet)
    jump, learned = (sheet.measured[f"fig18b.{id}"] for id in ("jumps_at_the_switch", "learns_the_second_task"))
    assert jump.values == pytest.approx((4.0, 2.0))
    assert jump.measured == pytest.approx(2.0)
    assert learned.values == pytest.approx((0.5, 0.9))
    assert learned.measured == pytest.approx(0.9)
    assert not learned.passed


def test_tokens_are_tuned_with_the_seed_of_the_training() -> None:
    study = few_shot()
    config = next(iter(study.models.by_label.values()))
    first, again, other = (study._tune(Transformer(config.model), seed) for seed in (0, 0, 1))
    assert torch.equal(first.prefix, again.prefix)
    assert not torch.equal(first.eos, other.eos)
    assert first.prefix.shape == (20, 3)


def test_layouts_fill_the_context() -> None:
    quick, paper = (experiment("fig8").plan(profile).studies[0] for profile in ("quick", "paper"))
    assert isinstance(quick, FewShot)
    assert isinstance(paper, FewShot)
    layouts = [study._task(layout, tasks) for study in (quick, paper) for tasks in (1, 2) for layout in LAYOUTS]
    assert [task.pairs for task in layouts[:6]] == [(60,), (42,), (36,), (30, 30), (21, 21), (14, 14)]
    assert all(sum(task.pairs) == 60 for task in layouts[6:])
    assert "42 pairs with EOS and 36 with a prefix" in " ".join(experiment("fig8").plan("quick").reductions)


def test_windows_start_at_two() -> None:
    assert windows(4) == (Window(2), Window(3), Window(4))


def test_bad_studies_are_refused() -> None:
    linear, partial = replicates("linear", "softmax-7"), replicates("partial", "hybrid")
    with pytest.raises(InputError, match=r"hybrid: got .* on the task of softmax"):
        HybridAndControls("fig7a", linear, partial)
    with pytest.raises(InputError, match=r"hybrid: got 2, but it must be as many trainings as softmax \(1\)"):
        HybridAndControls("fig7a", linear, replicates("linear", "hybrid", 2))
    with pytest.raises(InputError, match=r"linear_to_richer: got 1\.5, but it must be None without richer regressors"):
        HybridAndControls("fig7a", linear, replicates("linear", "hybrid"), linear_to_richer=1.5)
    with pytest.raises(InputError, match="models: got 12, but it must be of a context for 30 pairs"):
        FewShot("fig8", linear)
