"""Studies of single layers and of the dimension judge what their claims name, and measure real trainings."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mesascope.experiments.base import ClaimSheet, Experiment, Settings, Study, Trained
from mesascope.experiments.studies import copying, dimension, sensitivity_over_training
from mesascope.experiments.studies.copying import Copying
from mesascope.experiments.studies.dimension import CurseOfDimension, Noise, task_of_size
from mesascope.experiments.studies.evaluation import evaluation_sequences
from mesascope.experiments.studies.linearised_layers import LinearisedLayers
from mesascope.experiments.studies.plain_models import plain_models, plain_reductions
from mesascope.experiments.studies.predicted_blocks import PredictedBlocks
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.sensitivity_over_training import SensitivityOverTraining
from mesascope.experiments.studies.similar_products import SimilarProducts
from mesascope.experiments.studies.trainings import (
    Architecture,
    linearisation_training,
    plain_training,
    two_softmax_training,
)
from mesascope.nn import architectures
from mesascope.runs import RunStore, train_all
from mesascope.training.config import ConstantRate, TrainingConfig
from mesascope.training.presets import on_constructed_tokens
from mesascope.uncover import AttentionMaps, Distillation, Linearisation, LossesByDimension, Sensitivity

KINDS: tuple[Architecture, ...] = ("softmax-7", "hybrid", "full-mesa")
QUICK = Distillation(steps=2, batch_size=4, final_batches=2)


def shortened(config: TrainingConfig, **model: Any) -> TrainingConfig:
    """Two steps of a smaller model on sequences of nine tokens."""
    return replace(
        config,
        task=replace(config.task, n_s=3, n_h=3, length=9),
        model=replace(config.model, prediction_dim=3, key_dim=4, **model),
        schedule=ConstantRate(1e-3),
        steps=2,
        batch_size=4,
        evaluation_batches=1,
        snapshot_every=1,
    )


def plain(kind: Architecture, seed: int) -> TrainingConfig:
    config = plain_training("linear", kind, "quick", seed)
    return shortened(config, token_dim=3, embed_dim=6, mlp_dim=5, position_dim=6, attention=config.model.attention[:3])


def replicates(kind: Architecture, seeds: int = 2) -> Replicates:
    return Replicates.of(kind, lambda seed: plain(kind, seed), seeds)


def sized(n_s: int, seeds: int = 2) -> Replicates:
    """Two softmax layers instead of seven; their real size only in their label."""

    def training(seed: int) -> TrainingConfig:
        config = linearisation_training(n_s, "quick", seed)
        changes = {"embed_dim": 6, "mlp_dim": 5, "position_dim": 6, "attention": config.model.attention[:2]}
        return replace(shortened(config, token_dim=3, **changes), steps=n_s)

    return Replicates.of(f"size {n_s}", training, seeds)


def experiment_of(*parts: Study) -> Experiment:
    return Experiment("small", "Small", ("Small.",), lambda profile, seeds: Settings(parts, ("Small.",), 1.0))


def studies() -> tuple[Study, ...]:
    linear = on_constructed_tokens(architectures.constructed_linear(1))
    one_head = two_softmax_training("quick")
    bound = {kind: replicates(kind, seeds=2 if kind == "softmax-7" else 1) for kind in KINDS}
    return (
        Copying("fig14", "two layers", replicates("softmax-7"), sequences=6),
        SensitivityOverTraining("fig16", bound, 2, 5.0, "full-mesa", sequences=3),
        LinearisedLayers({4: sized(4, seeds=1), 20: sized(20, seeds=1)}, QUICK, sequences=6),
        SimilarProducts(
            Replicates.of("one head", lambda seed: replace(shortened(one_head, token_dim=12), seed=seed), 1), QUICK
        ),
        PredictedBlocks(Replicates.of("linear", lambda seed: replace(shortened(linear, token_dim=12), seed=seed), 1)),
        CurseOfDimension((4, 6), tuning_sequences=24, sequences=8),
        Noise(2, (0.1, 0.5), (2, 3), sequences=8, tuning_sequences=24),
    )


def test_every_study_finds_what_it_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesascope.training.loop.EVALUATION_BATCH", 16)
    experiment, store = experiment_of(*studies()), RunStore(tmp_path)
    plan = experiment.plan("quick")
    train_all(plan.trainings, store, workers=1)
    findings = experiment.measure(Trained(plan, store))
    evaluation_sequences.cache_clear()
    assert [claim.claim for claim in findings.claims] == list(plan.claims)
    assert all(math.isfinite(value) for claim in findings.claims for value in (claim.measured, *claim.values))
    assert [figure.id for figure in findings.figures] == [
        *("fig14_attention", "fig16_sensitivity", "linearised_layers", "softmax_products", "linear_products"),
        *("weight_products_1_layer", "loss_by_dimension", "noise"),
    ]
    assert [table.id for table in findings.tables] == [
        *("fig14_attention", "fig16_softmax", "fig16_hybrid", "fig16_full_mesa", "linearised_layers"),
        *("similar_products", "loss_by_dimension", "noise_0.1", "noise_0.5"),
    ]
    panels = {figure.id: len(figure.panels) for figure in findings.figures}
    assert panels == {
        **{"fig14_attention": 4, "fig16_sensitivity": 3, "linearised_layers": 1, "softmax_products": 4},
        **{"linear_products": 4, "weight_products_1_layer": 4, "loss_by_dimension": 1, "noise": 2},
    }


def measure(study: Study, tmp_path: Path) -> dict[str, tuple[float, bool]]:
    """Measured values and verdicts by claim."""
    sheet = ClaimSheet(experiment_of(study).plan("quick"))
    study.measure(Trained(sheet.plan, RunStore(tmp_path)), sheet)
    return {claim.claim.id: (claim.measured, claim.passed) for claim in sheet.finish()}


def in_turn(values: list[Any]) -> Callable[..., Any]:
    """A function that returns the next of `values` at every call."""
    remaining = iter(values)
    return lambda *args, **kwargs: next(remaining)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are their labels: analyses that are replaced do not look at them."""
    monkeypatch.setattr(Replicates, "models", lambda self, trained: list(self.by_label))
    monkeypatch.setattr(sensitivity_over_training, "_snapshots", lambda models, trained: iter(()))


def maps(share: float, spread: float) -> AttentionMaps:
    """Two heads: one attends uniformly, the other with `share` to t and t - 1, `spread` on t - 1 and 0.01 on t."""
    time = 50
    uniform = np.tril(np.ones((time, time))) / np.arange(1, time + 1)[:, None]
    copied = np.eye(time) + np.eye(time, k=-1)
    copying_head = share / 2 * copied + (1 - share) * uniform * (copied == 0)
    row_sums = copying_head.sum(-1, keepdims=True)
    other = copying_head * (copied == 0)
    others = other.sum(-1, keepdims=True)
    copying_head = np.where(copied > 0, share / 2, np.divide((1 - share) * other, others, where=others > 0, out=other))
    assert row_sums.shape == (time, 1)
    mean = np.stack([uniform, copying_head])[None]
    deviation = np.stack([np.full((time, time), 0.5), 0.01 * np.eye(time) + spread * np.eye(time, k=-1)])[None]
    return AttentionMaps(("map",), mean, mean, deviation, 10)


@pytest.mark.usefixtures("untrained")
def test_copying_judges_the_best_head_of_the_worst_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "mean_attention_maps", in_turn([maps(0.9, 0.02), maps(0.7, 0.2)]))
    found = measure(Copying("fig14", "models", replicates("softmax-7"), sequences=4), tmp_path)
    assert found["fig14.attends_to_two_tokens"] == (pytest.approx(0.7, rel=1e-12), False)
    assert found["fig14.whatever_they_contain"] == (pytest.approx(0.2, rel=1e-12), False)
    monkeypatch.setattr(copying, "mean_attention_maps", in_turn([maps(0.9, 0.02), maps(0.85, 0.05)]))
    found = measure(Copying("fig14", "models", replicates("softmax-7"), sequences=4), tmp_path)
    assert found["fig14.attends_to_two_tokens"] == (pytest.approx(0.85, rel=1e-12), True)
    assert found["fig14.whatever_they_contain"] == (pytest.approx(0.05, rel=1e-12), True)


def course(final: dict[int, float]) -> Sensitivity:
    """50 tokens, all with sensitivity 1 but those in `final` after the last of two steps."""
    values = np.ones((2, 50))
    for token, value in final.items():
        values[1, token - 1] = value
    return Sensitivity("a", 50, np.array([0.0, 10.0]), values)


@pytest.mark.usefixtures("untrained")
def test_sensitivity_judges_the_tokens_that_claims_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        *(course({50: 9.0, 49: 6.0, 48: 0.1}), course({50: 7.0, 49: 8.0})),
        *(course({50: 5.5, 49: 20.0}), course({50: 30.0, 49: 40.0})),
        *(course({50: 4.0, 49: 9.0}), course({50: 6.0, 49: 9.0})),
    ]
    monkeypatch.setattr(sensitivity_over_training, "sensitivity_over_training", in_turn(found))
    models = {
        kind: Replicates.of(kind, lambda seed, kind=kind: plain_training("linear", kind, "quick", seed), 2)  # type: ignore[misc]
        for kind in KINDS
    }
    judged = measure(SensitivityOverTraining("fig16", models, 2, 5.0, "full-mesa", sequences=2), tmp_path)
    assert judged == {
        "fig16.binding_softmax": (pytest.approx(6.0), True),
        "fig16.binding_hybrid": (pytest.approx(5.5), True),
        "fig16.binding_full_mesa": (pytest.approx(4.0), False),
        "fig16.less_clear": (pytest.approx(5.0 / 6.5), True),
    }


@pytest.mark.usefixtures("untrained")
def test_five_bound_tokens_are_judged_by_the_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"hybrid": Replicates.of("hybrid", lambda seed: plain_training("linear", "hybrid", "quick", seed), 1)}
    study = SensitivityOverTraining("fig22", models, bound=5, factor=2.0, sequences=2)  # type: ignore[arg-type]
    for bound, passed in ((1.9, False), (2.5, True)):
        values = {50: 9.0, 49: 9.0, 48: 9.0, 47: 9.0, 46: bound, 45: 0.5}
        monkeypatch.setattr(sensitivity_over_training, "sensitivity_over_training", in_turn([course(values)]))
        assert measure(study, tmp_path) == {"fig22.binding_hybrid": (pytest.approx(bound), passed)}


@pytest.mark.usefixtures("untrained")
def test_linearised_layers_judges_large_sizes_and_the_trend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def result(*ratios: float) -> Linearisation:
        return Linearisation(2.0, 2.0 * np.array(ratios), np.zeros(len(ratios)))

    models = {4: sized(4), 10: sized(10), 20: sized(20)}
    found = [
        *(result(1.1, 2.0, 1.6), result(1.1, 2.2, 1.8)),
        *(result(1.2, 1.5, 1.3), result(1.2, 1.5, 1.3)),
        *(result(1.9, 1.1, 1.0), result(1.7, 1.15, 1.05)),
    ]
    monkeypatch.setattr(LinearisedLayers, "_linearise", in_turn(found))
    judged = measure(LinearisedLayers(models, QUICK, sequences=2), tmp_path)
    assert judged["fig5a.later_layers_are_linear"] == (pytest.approx(1.15), True)
    assert judged["fig5a.first_layer_is_not"] == (pytest.approx(1.7), True)
    assert judged["fig5a.falls_with_dimension"] == (pytest.approx(max(1.4 / 1.9, 1.075 / 1.4)), True)


def test_curse_of_dimension_judges_losses_per_dimension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (4, 10, 60)
    per_dimension = np.array([[0.02, 0.025, 0.024], [0.07, 0.08, 0.112]])
    losses = LossesByDimension(
        ("least squares", "softmax kernel"),
        ("ridge", "beta"),
        np.array(sizes, float),
        (per_dimension * sizes)[:, None],
        np.ones((2, 1, 3)),
    )
    monkeypatch.setattr(dimension, "losses_by_dimension", in_turn([losses]))
    assert measure(CurseOfDimension(sizes), tmp_path) == {
        "fig5b.least_squares_is_flat": (pytest.approx(1.25), True),
        "fig5b.softmax_grows": (pytest.approx(1.6), True),
        "fig5b.least_squares_is_better": (pytest.approx(0.025 / 0.08), True),
    }


def test_noise_judges_the_worst_size_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(*ratios: tuple[float, float]) -> LossesByDimension:
        values = np.stack([np.array(ratios), np.ones((2, 2))])
        names = ("least squares", "softmax kernel")
        return LossesByDimension(names, ("ridge", "beta"), np.array([4.0, 6.0]), values, np.ones((2, 2, 2)))

    found = [losses((0.1, 0.9), (0.2, 0.3)), losses((0.1, 0.2), (1.1, 0.3))]
    monkeypatch.setattr(dimension, "losses_by_dimension", in_turn(found))
    assert measure(Noise(2, (0.1, 0.5), (4, 6)), tmp_path) == {
        "fig20.least_squares_is_better_0.1": (0.9, True),
        "fig20.least_squares_is_better_0.5": (1.1, False),
    }


def test_noise_is_a_variance_and_states_are_free() -> None:
    task = task_of_size(6, noise_variance=0.25)
    assert (task.n_s, task.length, task.clip, task.noise_std) == (6, 24, None, 0.5)
    sequences = task.sample(400, torch.Generator().manual_seed(0))
    transition = sequences.latents.transition
    noise = sequences.targets - torch.einsum("bij,btj->bti", transition, sequences.observations)
    assert float(noise.square().mean()) == pytest.approx(0.25, rel=0.02)
    assert task_of_size(6).noise_std == pytest.approx(0.01)


def test_snapshots_end_with_the_trained_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = replicates("hybrid", seeds=1)
    (label,) = models.by_label
    monkeypatch.setattr(Trained, "snapshot_steps", lambda self, label: [0, 1, 2])
    monkeypatch.setattr(Trained, "snapshot", lambda self, label, step, name: f"{label} after {step}")
    monkeypatch.setattr(Trained, "model", lambda self, label, name: f"{label} trained")
    trained = Trained(experiment_of(*studies()).plan("quick"), RunStore(tmp_path))
    found = list(sensitivity_over_training._snapshots(models, trained))
    assert found == [(0, f"{label} after 0"), (1, f"{label} after 1"), (2, f"{label} trained")]


def test_plain_models_are_the_shared_trainings() -> None:
    quick, paper = (plain_models("partial", "hybrid", profile, None) for profile in ("quick", "paper"))
    assert (len(quick.by_label), len(paper.by_label)) == (1, 5)
    assert quick.by_label == {"partial hybrid, seed 0": plain_training("partial", "hybrid", "quick", 0)}
    assert list(plain_models("linear", "hybrid", "quick", 2).by_label) == ["hybrid, seed 0", "hybrid, seed 1"]
    assert plain_reductions("paper") == ()
    assert len(plain_reductions("quick")) > 1
