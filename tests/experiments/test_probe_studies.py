"""Studies of what layers hold: their claims hold for planted layers and fail for others; all run from trainings."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mesascope.claims import MeasuredClaim
from mesascope.errors import InputError
from mesascope.experiments import experiment
from mesascope.experiments.base import ClaimSheet, Experiment, Findings, Settings, Study, Trained
from mesascope.experiments.studies import diagonal_products, evaluation, preconditioning
from mesascope.experiments.studies.diagonal_products import DiagonalProducts
from mesascope.experiments.studies.evaluation import CONSTRUCTED, evaluation_sequences, tuning_sequences
from mesascope.experiments.studies.layers_as_steps import LayersAsSteps
from mesascope.experiments.studies.preconditioning import Preconditioning, WeakPreconditioning
from mesascope.experiments.studies.replicates import Replicates, Streams, figure_name
from mesascope.experiments.studies.target_probes import TargetProbes
from mesascope.learners import Features, RidgeRegression, Window, Zero, polynomial_moments, tune_chebyshev
from mesascope.nn import architectures
from mesascope.predictor import Predictor
from mesascope.runs import RunStore
from mesascope.tasks import ConstructedTokens, fully_observed_linear, nonlinear, partially_observed_linear
from mesascope.training.config import ConstantRate, TrainingConfig
from mesascope.training.loop import train
from mesascope.training.presets import on_constructed_tokens
from mesascope.uncover import ProbeFit, ResidualStream, WeightProducts, preconditioned_inputs

CACHED = (evaluation_sequences, tuning_sequences, evaluation.proposition_2_curves, evaluation.tuned_preconditioner)
RATE = ConstantRate(1e-3)
COUNT = 120
"""Sequences instead of 4,096: half of them, without outliers, must be more than the coordinates of a layer."""


@pytest.fixture(autouse=True)
def _few_sequences(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        for function in (evaluation_sequences, tuning_sequences):
            patch.setattr(inspect.unwrap(function), "__defaults__", (CONSTRUCTED, COUNT))
        patch.setattr(preconditioning, "_FIT", ProbeFit(resamples=5))
        patch.setattr(evaluation, "tune_chebyshev", functools.partial(tune_chebyshev, steps=50))
        _forget()
        yield
    _forget()


def _forget() -> None:
    for function in CACHED:
        function.cache_clear()


def constructed(layers: int, seed: int = 0) -> TrainingConfig:
    return replace(
        on_constructed_tokens(architectures.constructed_linear(layers, n_s=4), schedule=RATE, steps=2, seed=seed),
        batch_size=8,
        evaluation_batches=1,
    )


def plain(layers: int, seed: int = 0) -> TrainingConfig:
    return TrainingConfig(
        fully_observed_linear(),
        architectures.full_softmax(layers),
        RATE,
        2,
        batch_size=8,
        evaluation_batches=1,
        seed=seed,
    )


LINEAR = Replicates.of("6 linear layers", lambda seed: constructed(6, seed), 1)
PAIR = Replicates.of("6 linear layers", lambda seed: constructed(6, seed), 2)


def measured(study: Study, tmp_path: Path) -> tuple[dict[str, MeasuredClaim], Findings]:
    """What a study measures when its trainings are never read."""
    plan = Experiment("small", "Small", ("Small.",), lambda *_: Settings((study,), (), 1.0)).plan("quick")
    sheet = ClaimSheet(plan)
    findings = study.measure(Trained(plan, RunStore(tmp_path)), sheet)
    return {claim.claim.id: claim for claim in sheet.finish()}, findings


def plant(monkeypatch: pytest.MonkeyPatch, held: Callable[[Replicates, float], list[Tensor]]) -> None:
    """Every model's layers hold what `held` says; a second seed has ten times the noise of the first."""

    def streams(models: Replicates, _: Trained) -> Iterator[Streams]:
        sequences = evaluation_sequences(models.task)
        for noise in (0.01, 0.1)[: len(models.by_label)]:
            values = torch.stack([torch.cat([sequences.tokens, layer], -1) for layer in held(models, noise)])
            labels = ("Inp.", *(str(layer) for layer in range(1, len(values))))
            stream = ResidualStream(labels, values, tuple(range(1, sequences.length + 1)))
            blank = replace(stream, values=torch.randn(values.shape, generator=torch.Generator().manual_seed(1)))
            yield Streams(sequences, stream, blank)

    monkeypatch.setattr(Replicates, "streams", streams)


def fading(target: Tensor, sizes: list[float]) -> list[Tensor]:
    """The target with noise of the given relative sizes, layer by layer."""
    generator, unit = torch.Generator().manual_seed(2), target.std(0)
    return [target + size * unit * torch.randn(target.shape, generator=generator) for size in sizes]


def targets(models: Replicates) -> Tensor:
    return evaluation_sequences(models.task).targets


def test_layers_that_approach_the_target_fulfil_the_claims(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # layer 3 adds nothing, which one layer may
    plant(monkeypatch, lambda models, noise: fading(targets(models), [9.0, 3.0, 1.0, 1.0, 0.5, 0.3, noise]))
    claims, findings = measured(TargetProbes("fig4e", PAIR), tmp_path)
    assert claims["fig4e.descends"].passed
    assert claims["fig4e.last_layer"].passed
    first, second = claims["fig4e.last_layer"].values
    assert claims["fig4e.last_layer"].measured == second > 50 * first > 0
    assert claims["fig4e.learns_in_context"].measured == pytest.approx(1.0, abs=0.3)
    assert findings.figures[0].id == "fig4e_target_probes"
    assert "Fig. 4E" in findings.figures[0].title


def test_layers_that_do_not_approach_the_target_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(monkeypatch, lambda models, noise: fading(targets(models), [3.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0]))
    claims, _ = measured(TargetProbes("fig4e", LINEAR), tmp_path)
    assert claims["fig4e.descends"].measured == 3
    assert not claims["fig4e.descends"].passed
    assert not claims["fig4e.last_layer"].passed


@pytest.mark.parametrize(("late", "passed"), [(0.1, True), (10.0, False)])
def test_learning_in_context_is_about_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, late: float, passed: bool
) -> None:
    def held(models: Replicates, noise: float) -> list[Tensor]:
        over_time = torch.linspace(1.0, late, 50)[:, None]
        return [over_time * layer + (1 - over_time) * targets(models) for layer in fading(targets(models), [0.5] * 7)]

    plant(monkeypatch, held)
    claims, _ = measured(TargetProbes("fig4e", LINEAR), tmp_path)
    assert claims["fig4e.learns_in_context"].passed is passed


def preconditioned(models: Replicates, study: Preconditioning) -> Tensor:
    learner = evaluation.tuned_preconditioner("frobenius", 6, models.task, study.regressors)
    return preconditioned_inputs(evaluation_sequences(models.task), learner)


def test_layers_that_hold_the_preconditioned_input_fulfil_the_claims(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = Preconditioning("fig4f", PAIR)
    plant(
        monkeypatch,
        lambda models, noise: fading(preconditioned(models, study), [9.0, 3.0, 4.0, 1.0, 0.5, 0.3, noise]),
    )
    claims, findings = measured(study, tmp_path)
    assert claims["fig4f.last_layer"].passed
    assert claims["fig4f.most_layers"].measured == 5
    forms, details = findings.tables
    assert len(forms.rows) == 2 * 3 * 2
    columns = forms.columns
    cleaned = [row for row in forms.rows if row[1] == "scaled by its norm" and row[2] == "without outliers"]
    ratios = [row[columns.index("last / input")] for row in cleaned]
    assert tuple(ratios) == claims["fig4f.last_layer"].values
    for row in cleaned:
        assert 0 < row[columns.index("share dropped")] < 0.2
        assert row[columns.index("R² of the next observation")] < 0.1
        assert row[columns.index("layer 6")] < row[columns.index("untrained, best layer")]
        assert row[columns.index("layer 6")] < row[columns.index("shuffled targets, best layer")]
    assert details.id == "fig4f_preconditioning"
    assert [panel.title for panel in findings.figures[0].panels] == [
        "Preconditioned input, scaled by its norm",
        "Preconditioned input, shared coefficients",
        "Preconditioned inputs of several degrees, t = 40",
    ]
    for line in findings.figures[0].panels[2].lines:
        assert line.y.shape == (7,)
        # what was planted resembles all of them
        assert line.y[6] > line.y[0]


def test_layers_that_hold_something_else_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    study = Preconditioning("fig4f", LINEAR)
    plant(
        monkeypatch, lambda models, noise: fading(preconditioned(models, study), [0.3, 0.6, 0.3, 0.6, 1.0, 2.0, 0.28])
    )
    claims, _ = measured(study, tmp_path)
    assert not claims["fig4f.last_layer"].passed
    assert claims["fig4f.most_layers"].measured == 2
    assert not claims["fig4f.most_layers"].passed


def test_the_copying_layer_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    study = Preconditioning("fig6b", LINEAR, copying_layers=1)
    plant(monkeypatch, lambda models, noise: fading(preconditioned(models, study), [9.0, 3.0, 2.0, 1.0, 2.0, 1.0, 2.0]))
    claims, _ = measured(study, tmp_path)
    assert claims["fig6b.most_layers"].measured == 3
    assert claims["fig6b.most_layers"].claim.threshold.low == 3
    assert "of the 5 after the copying layer" in claims["fig6b.most_layers"].claim.statement


def test_weak_preconditioning_is_weak_beside_a_strong_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weak_models = Replicates.of("others", lambda seed: constructed(6, seed + 2), 1)
    strong, weak = Preconditioning("fig4f", LINEAR), Preconditioning("fig12b", weak_models)
    study = WeakPreconditioning(weak, strong)
    assert [claim.id for claim in study.claims] == ["fig12b.barely_preconditions"]
    assert study.trainings() == {**LINEAR.by_label, **weak_models.by_label}

    def held(size: float) -> Callable[[Replicates, float], list[Tensor]]:
        def layers(models: Replicates, noise: float) -> list[Tensor]:
            last = size if models is weak_models else noise
            return fading(preconditioned(models, weak), [9.0, 3.0, 2.0, 1.0, 1.0, 1.0, last])

        return layers

    for size, passed in ((0.05, True), (0.015, False)):
        plant(monkeypatch, held(size))
        claims, findings = measured(study, tmp_path)
        assert claims["fig12b.barely_preconditions"].passed is passed
        assert findings.figures[0].id == "fig12b_preconditioning"


def stand_ins(monkeypatch: pytest.MonkeyPatch, by_layers: dict[int, Predictor]) -> None:
    monkeypatch.setattr(Replicates, "models", lambda models, _: [by_layers[models.num_layers]])


@pytest.mark.parametrize(
    ("figure", "task", "regressors"),
    [("fig24c", partially_observed_linear(), Window(5)), ("fig25c", nonlinear(), Features())],
)
def test_layers_are_steps_of_the_regression_they_should_solve(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, figure: str, task: object, regressors: object
) -> None:
    model = architectures.partial_softmax() if figure == "fig24c" else architectures.nonlinear_softmax()
    models = Replicates({"seven": TrainingConfig(task, model, RATE, 1)})  # type: ignore[arg-type]
    zero_loss = float(0.5 * evaluation_sequences(models.task).targets[:, 0].square().sum(-1).mean())
    study = LayersAsSteps(figure, (models,), 0.15, regressors, zero_loss)  # type: ignore[arg-type]
    assert [claim.id for claim in study.claims] == [f"{figure}.7_layers_are_steps", f"{figure}.starts_from_nothing"]
    steps = polynomial_moments(evaluation_sequences(models.task), 6, "frobenius", 1e-3, study.regressors).fit(6)
    stand_ins(monkeypatch, {7: steps})
    claims, findings = measured(study, tmp_path)
    assert claims[f"{figure}.7_layers_are_steps"].measured == pytest.approx(1.0, abs=1e-9)
    assert claims[f"{figure}.starts_from_nothing"].passed
    assert any("on observations" in line.label for line in findings.figures[0].panels[0].lines)
    plain_steps = polynomial_moments(evaluation_sequences(models.task), 6, "frobenius").fit(6)
    stand_ins(monkeypatch, {7: plain_steps})
    claims, _ = measured(study, tmp_path)
    assert not claims[f"{figure}.7_layers_are_steps"].passed


def test_three_and_seven_layers_are_as_many_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    three, seven = (Replicates({f"{layers}": plain(layers)}) for layers in (3, 7))
    study = LayersAsSteps("fig6c", (three, seven), 0.15)
    assert len(study.claims) == 3
    moments = polynomial_moments(evaluation_sequences(three.task), 6, "frobenius")
    stand_ins(monkeypatch, {3: moments.fit(2), 7: moments.fit(6)})
    claims, findings = measured(study, tmp_path)
    assert claims["fig6c.3_layers_are_steps"].measured == pytest.approx(1.0, abs=1e-9)
    assert claims["fig6c.7_layers_are_steps"].measured == pytest.approx(1.0, abs=1e-9)
    assert claims["fig6c.depth_helps"].passed
    assert [row[1] for row in findings.tables[0].rows] == pytest.approx([0.286, 0.205], rel=0.15)
    stand_ins(monkeypatch, {3: RidgeRegression(), 7: Zero()})
    claims, _ = measured(study, tmp_path)
    assert not any(claim.passed for claim in claims.values())


def test_models_of_layers_must_go_together() -> None:
    three, seven = (Replicates({f"{layers}": plain(layers)}) for layers in (3, 7))
    with pytest.raises(InputError, match=r"models: got \[7, 3\], but it must be at least one, with numbers of layers"):
        LayersAsSteps("fig6c", (seven, three), 0.15)
    with pytest.raises(InputError, match="models: got '2 tasks', but it must be models of one task"):
        LayersAsSteps("fig6c", (Replicates({"2": constructed(2)}), seven), 0.15)
    with pytest.raises(InputError, match="trainings of one task"):
        Replicates({"a": plain(2), "b": replace(constructed(2), model=architectures.full_softmax(2), task=nonlinear())})
    with pytest.raises(InputError, match="trainings of one architecture"):
        Replicates({"a": constructed(2), "b": constructed(3)})
    with pytest.raises(InputError, match="at least one training"):
        Replicates({})
    with pytest.raises(InputError, match="copying_layers: got 6, but it must be between 0 and 5"):
        Preconditioning("fig6b", LINEAR, copying_layers=6)
    with pytest.raises(InputError, match=r"layers: got \(1, 2\), but it must be between 2 and 3"):
        DiagonalProducts("fig10", three, (1, 2))


def test_figures_are_named_as_in_the_paper() -> None:
    assert figure_name("fig4e") == "Fig. 4E"
    assert figure_name("fig10") == "Fig. 10"


def test_every_study_runs_from_its_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesascope.training.loop.EVALUATION_BATCH", 16)
    linear = Replicates.of("linear", lambda seed: constructed(2, seed), 2)
    three = Replicates.of("softmax", lambda seed: plain(3, seed), 1)
    studies: tuple[Study, ...] = (
        TargetProbes("fig4e", linear),
        Preconditioning("fig4f", linear),
        LayersAsSteps("fig6c", (three,), 0.15),
        DiagonalProducts("fig10", three, (2, 3)),
    )
    small = Experiment("small", "Small", ("Small.",), lambda *_: Settings(studies, (), 1.0))
    plan, store = small.plan("quick"), RunStore(tmp_path)
    for config in plan.trainings.values():
        train(config, store.folder(config))
    findings = small.measure(Trained(plan, store))
    by_id = {claim.claim.id: claim for claim in findings.claims}
    assert set(by_id) == {claim.id for study in studies for claim in study.claims}
    assert all(math.isfinite(claim.measured) for claim in findings.claims)
    # after two steps nothing is known of the next observation, and Gaussian weights have no diagonal
    assert by_id["fig4e.last_layer"].measured == pytest.approx(1.0, abs=0.1)
    assert by_id["fig10.diagonal"].measured == pytest.approx(1.0, abs=0.3)
    assert [table.id for table in findings.tables] == [
        *("fig4e_target_probes", "fig4f_forms", "fig4f_preconditioning", "fig6c_losses", "fig10_diagonals"),
    ]
    assert [figure.id for figure in findings.figures] == [
        *("fig4e_target_probes", "fig4f_preconditioning", "fig6c_curves", "fig10_products"),
    ]


def test_products_with_a_diagonal_have_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    models = Replicates({"three": plain(3)})
    generator = torch.Generator().manual_seed(0)
    faint = torch.randn(4, 40, 40, generator=generator)
    strong = faint + 3 * torch.eye(40)
    stand_ins(monkeypatch, {3: Zero()})
    for matrices, passed in (((strong, strong), True), ((strong, faint), False)):
        layers = tuple(WeightProducts(layer, *matrices) for layer in range(3))
        monkeypatch.setattr(diagonal_products, "weight_products", lambda _, layers=layers: layers)
        claims, findings = measured(DiagonalProducts("fig10", models, (2, 3)), tmp_path)
        assert claims["fig10.diagonal"].passed is passed
        sizes = np.concatenate([matrix.abs().numpy() for matrix in matrices])
        on = np.eye(40, dtype=bool)
        expected = sizes[:, on].mean() / sizes[:, ~on].mean()
        assert claims["fig10.diagonal"].measured == pytest.approx(expected, rel=1e-6)
        assert [row[1] for row in findings.tables[0].rows] == [2, 3]


@pytest.mark.parametrize("name", ["fig6", "fig24", "fig25"])
def test_figures_of_softmax_models_share_their_models(name: str) -> None:
    quick, paper = (experiment(name).plan(profile) for profile in ("quick", "paper"))
    assert {config.model for config in quick.trainings.values()} == {
        config.model for config in paper.trainings.values()
    }
    assert quick.claims == paper.claims
    assert len(paper.trainings) == 5 * len(quick.trainings)
    assert quick.reductions
    assert not paper.reductions


def test_figure_4_probes_the_six_layers_whose_curve_it_shows() -> None:
    plan = experiment("fig4").plan("paper")
    probed = [study for study in plan.studies if isinstance(study, (TargetProbes, Preconditioning))]
    assert [study.figure for study in probed] == ["fig4e", "fig4f"]
    for study in probed:
        assert len(study.models.by_label) == 5
        for config in study.models.by_label.values():
            assert config.task == fully_observed_linear(tokens=ConstructedTokens())
            assert (config.model.num_layers, config.model.key_dim) == (6, 20)
