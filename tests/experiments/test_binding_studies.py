"""Studies of what layers hold judge the tokens that their claims name, and fill a report from real trainings."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.experiments import experiment
from mesascope.experiments.base import ClaimSheet, Experiment, Settings, Study, Trained
from mesascope.experiments.execute import execute
from mesascope.experiments.studies import binding_by_width, binding_over_training, hidden_features, token_binding
from mesascope.experiments.studies.binding_by_width import BindingByWidth
from mesascope.experiments.studies.binding_over_training import BindingOverTraining
from mesascope.experiments.studies.bound_tokens import probe_line, shares
from mesascope.experiments.studies.evaluation import evaluation_sequences
from mesascope.experiments.studies.hidden_features import HiddenFeatures
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.token_binding import TokenBinding
from mesascope.experiments.studies.trainings import Architecture, Setting, plain_training
from mesascope.figures import Array
from mesascope.runs import RunStore
from mesascope.training.config import ConstantRate, TrainingConfig
from mesascope.uncover import ControlledProbe, Estimate, ProbeResult

KINDS: tuple[Architecture, ...] = ("softmax-7", "hybrid", "full-mesa")
VARIANCE = 0.5


def tiny(setting: Setting, kind: Architecture, seed: int = 0, width: int = 80) -> TrainingConfig:
    """Two steps on a task with seven past tokens to probe; three layers at most, all narrow."""
    config = plain_training(setting, kind, "quick", seed, embed_dim=width)
    n_s, embed_dim = (2, 4 + width // 20) if setting == "partial" else (3, 6)
    n_h = 4 if setting == "partial" else 3
    model = replace(config.model, token_dim=n_s, prediction_dim=n_s, attention=config.model.attention[:3], num_heads=1)
    return replace(
        config,
        task=replace(config.task, n_s=n_s, n_h=n_h, length=9),
        model=replace(model, key_dim=3, embed_dim=embed_dim, mlp_dim=5, position_dim=embed_dim),
        schedule=ConstantRate(1e-3),
        steps=2,
        batch_size=4,
        evaluation_batches=1,
        snapshot_every=1,
    )


def replicates(setting: Setting, kind: Architecture, seeds: int = 1, width: int = 80) -> Replicates:
    return Replicates.of(f"{setting} {kind} {width}", lambda seed: tiny(setting, kind, seed, width), seeds)


def studies(seeds: int = 1) -> tuple[TokenBinding, HiddenFeatures, BindingOverTraining, BindingByWidth]:
    full = {kind: replicates("linear", kind, seeds) for kind in KINDS}
    partial = {kind: {width: replicates("partial", kind, seeds, width) for width in (5, 40, 80)} for kind in KINDS[:2]}
    return (
        TokenBinding({kind: full[kind] for kind in KINDS[:2]}, {kind: partial[kind][80] for kind in KINDS[:2]}),
        HiddenFeatures(replicates("nonlinear", "softmax-7", seeds)),
        BindingOverTraining(full),
        BindingByWidth(partial),
    )


@pytest.fixture
def few_sequences(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Studies probe on 64 sequences instead of thousands."""
    few = lambda task: task.sample(64, torch.Generator().manual_seed(1))  # noqa: E731
    for module in ("replicates", "binding_over_training"):
        monkeypatch.setattr(f"mesascope.experiments.studies.{module}.evaluation_sequences", few)
    monkeypatch.setattr("mesascope.training.loop.EVALUATION_BATCH", 16)
    yield
    evaluation_sequences.cache_clear()


@pytest.mark.usefixtures("few_sequences")
def test_every_study_fills_a_report(tmp_path: Path) -> None:
    all_studies = studies()
    small = Experiment("small", "Small", ("Small.",), lambda profile, seeds: Settings(all_studies, ("Small.",), 1.0))
    outcome = execute(small, tmp_path, workers=1)
    planned = {claim.id for study in all_studies for claim in study.claims}
    assert {claim.claim.id for claim in outcome.claims} == planned
    assert all(math.isfinite(claim.measured) for claim in outcome.claims)
    assert {claim["id"] for claim in json.loads((tmp_path / "claims.json").read_text())} == planned
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == {
        *("token_probes", "hidden_features", "token_probes_training_r2", "token_probes_training_mse"),
        "token_probes_width",
    }
    assert {path.stem for path in (tmp_path / "tables").glob("*.csv")} == {
        *("tokens_full_softmax", "tokens_full_hybrid", "tokens_partial_softmax", "tokens_partial_hybrid"),
        *("hidden_features", "token_probes_training", "bound_tokens"),
    }


def result(mse: Sequence[float] | Array, r2: Sequence[float] | Array | float = 0.0) -> ProbeResult:
    """Probes with given scores, `[t']` or `[depths, t']`, of targets with variance `VARIANCE`; t' ends at 50."""
    values = np.atleast_2d(np.array(mse, dtype=np.float64))
    time = values.shape[1]
    scores = [
        Estimate(value, value - 0.01, value + 0.01, value / 2)
        for value in (values, np.broadcast_to(np.array(r2, dtype=np.float64), values.shape))
    ]
    counts = np.full(time, 100.0)
    labels = ("Inp.", *map(str, range(1, len(values)))) if len(values) > 1 else ("1",)
    steps = np.arange(51.0 - time, 51.0)
    weights = torch.zeros(len(values), time, 1, 1)
    variance = np.full(time, VARIANCE)
    return ProbeResult(labels, steps, scores[1], scores[0], scores[0], variance, counts, counts, weights)


def controlled(model: ProbeResult, untrained: ProbeResult | None = None) -> ControlledProbe:
    nothing = result(np.full_like(model.mse.value, VARIANCE), np.zeros_like(model.mse.value))
    return ControlledProbe(model, untrained or nothing, nothing)


def measure(study: Study) -> dict[str, tuple[float, bool]]:
    """Numbers and verdicts by claim; the probes of the study must be replaced."""
    small = Experiment("small", "Small", ("Small.",), lambda profile, seeds: Settings((study,), (), 1.0))
    sheet = ClaimSheet(small.plan("quick"))
    study.measure(Trained(sheet.plan, RunStore(Path("nowhere"))), sheet)
    return {found.claim.id: (found.measured, found.passed) for found in sheet.finish()}


def test_binding_is_judged_by_the_tokens_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """t' = 43 .. 50: each number below is at one place only."""
    full = [
        controlled(result([0.5, 0.5, 0.5, 0.5, 0.5, 0.30, 0.010, 0.004])),
        controlled(result([0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.020, 0.002]), result([0.5] * 6 + [0.4, 0.0])),
    ]
    partial = [controlled(result([0.5, 0.5, 0.5, 0.11, 0.05, 0.05, 0.03, 0.4])) for _ in range(2)]
    study, *_ = studies(seeds=2)
    by_model = {id(models): full for models in study.full.values()} | {
        id(models): partial for models in study.partial.values()
    }
    monkeypatch.setattr(token_binding, "bound_tokens", lambda models, trained: by_model[id(models)])
    found = measure(study)
    for kind in ("softmax", "hybrid"):
        assert found[f"fig2a.binding_{kind}"] == (pytest.approx(0.04), True)
        assert found[f"fig2a.nothing_older_{kind}"] == (pytest.approx(12.5), True)
        assert found[f"fig2a.partial_{kind}"] == (pytest.approx(0.22), True)
    assert found["fig2a.untrained_models_bind_nothing"] == (pytest.approx(0.8), True)
    assert found["fig2a.shuffled_targets_are_not_found"] == (pytest.approx(1.0), True)


def test_claims_about_binding_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    study, *_ = studies()
    one_late = controlled(result([0.5, 0.5, 0.5, 0.5, 0.5, 0.001, 0.5, 0.001]), result([0.0] * 8))
    monkeypatch.setattr(token_binding, "bound_tokens", lambda models, trained: [one_late])
    passed = {name for name, (_, holds) in measure(study).items() if holds}
    assert passed == {"fig2a.shuffled_targets_are_not_found"}


def test_features_are_judged_by_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depths 0 .. 7 at t' = 49 and 50; columns are time steps."""
    errors = np.array([[4.0, 4.0, 3, 2, 1.5, 1.6, 2, 3], [2.0, 1.9, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]]).T
    untrained = result(np.full((8, 2), 4.0), np.zeros((8, 2)))
    probes = iter([controlled(result(errors), untrained), controlled(result(errors / 2), untrained)])
    monkeypatch.setattr(hidden_features, "hidden_state_probes", lambda *_, **__: next(probes))
    streams = [SimpleNamespace(model=None, untrained=None, sequences=None)] * 2
    monkeypatch.setattr(Replicates, "streams", lambda *_, **__: iter(streams))
    _, study, *_ = studies(seeds=2)
    found = measure(study)
    assert found["fig2b.computed_49"] == (pytest.approx(1.5 / 4), True)
    assert found["fig2b.computed_50"] == (pytest.approx(0.4 / 2), True)
    assert found["fig2b.early"] == (4, False)
    assert found["fig2b.learned"] == (pytest.approx(1.5 / 4), True)


def test_binding_over_training_is_judged_by_the_tokens_named(monkeypatch: pytest.MonkeyPatch) -> None:
    start = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.3, 1.0]
    ends = {
        "softmax-7": [0.1, 0.1, 0.1, 0.1, 0.4, 0.97, 0.95, 0.99],
        "hybrid": [0.1, 0.2, 0.1, 0.1, 0.1, 0.97, 0.99, 0.96],
        "full-mesa": [0.3, 0.3, 0.3, 0.3, 0.3, 0.97, 0.8, 0.99],
    }

    def along(label: str, steps: list[int], trained: Trained) -> list[ControlledProbe]:
        end = next(end for kind, end in ends.items() if kind in label)
        return [controlled(result(1 - np.array(r2), r2)) for r2 in (start, end)]

    monkeypatch.setattr(binding_over_training, "_along", along)
    monkeypatch.setattr(Trained, "snapshot_steps", lambda *_: [0, 100])
    *_, study, _ = studies(seeds=2)
    found = measure(study)
    assert found["fig17.bound_softmax"] == (pytest.approx(0.95), True)
    assert found["fig17.bound_hybrid"] == (pytest.approx(0.96), True)
    assert found["fig17.nothing_older_softmax"] == (pytest.approx(0.4), True)
    assert found["fig17.nothing_older_hybrid"] == (pytest.approx(0.2), True)
    assert found["fig17.full_mesa_less_clear"] == (pytest.approx(0.5 - 0.55), True)
    assert found["fig17.emerges"] == (pytest.approx(0.3), True)


def test_widths_are_judged_by_the_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(count: int) -> ControlledProbe:
        return controlled(result([0.126] * (8 - count) + [0.124] * count))

    *_, study = studies(seeds=2)
    counts = {"softmax-7": {5: (1, 2), 40: (3, 4), 80: (5, 4)}, "hybrid": {5: (3, 1), 40: (3, 5), 80: (5, 3)}}
    by_model = {
        id(study.models[kind][width]): [read(count) for count in seeds]
        for kind, by_width in counts.items()
        for width, seeds in by_width.items()
    }
    monkeypatch.setattr(binding_by_width, "bound_tokens", lambda models, trained: by_model[id(models)])
    assert measure(study) == {
        "fig21.grows_softmax": (0, True),
        "fig21.grows_hybrid": (-2, False),
        "fig21.narrow_softmax": (2, True),
        "fig21.narrow_hybrid": (3, False),
        "fig21.wide_softmax": (4, True),
        "fig21.wide_hybrid": (3, False),
    }


def test_widths_must_ascend_between_the_ends() -> None:
    by_width = {width: replicates("partial", "hybrid", width=width) for width in (5, 40, 80)}
    for wrong in ((5, 40), (40, 80), (5, 80, 40)):
        with pytest.raises(InputError, match=r"models: got .*, but it must be of ascending widths from 5 to 80"):
            BindingByWidth({"hybrid": {width: by_width[width] for width in wrong}})


def test_long_trainings_are_thinned() -> None:
    assert binding_over_training._thinned([0, 5, 10]) == [0, 5, 10]
    chosen = binding_over_training._thinned(list(range(0, 10_001, 100)))
    assert (len(chosen), chosen[0], chosen[-1]) == (26, 0, 10_000)
    assert len(set(np.diff(chosen))) == 1


def test_lines_have_the_interval_of_one_seed_or_the_spread_of_several() -> None:
    first, second = result([0.1, 0.2]), result([0.3, 0.2])
    one, both = probe_line("one", [first], "reference", 3), probe_line("both", [first, second])
    np.testing.assert_allclose(one.y, [0.1, 0.2])
    np.testing.assert_allclose(one.high, [0.11, 0.21])
    assert (one.role, one.colour, both.role) == ("reference", 3, "model")
    np.testing.assert_allclose(both.y, [0.2, 0.2])
    np.testing.assert_allclose(both.low, [0.2 - 0.2 / math.sqrt(2), 0.2])
    np.testing.assert_allclose(shares(first), [0.2, 0.4])


def test_trainings_are_shared_between_figures() -> None:
    trainings = {name: set(experiment(name).plan("quick").trainings.values()) for name in ("fig2", "fig17", "fig21")}
    for setting, kind in (("linear", "softmax-7"), ("linear", "hybrid")):
        assert plain_training(setting, kind, "quick") in trainings["fig2"] & trainings["fig17"]
    for kind in ("softmax-7", "hybrid"):
        assert plain_training("partial", kind, "quick") in trainings["fig2"] & trainings["fig21"]
