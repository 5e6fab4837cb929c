"""Targets of preconditioning probes against an explicit loop, and probes that find what was planted."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mesascope.constructions import proposition_2
from mesascope.errors import InputError
from mesascope.learners import (
    ConjugateGradientRegression,
    Features,
    Observations,
    PolynomialRegression,
    Preconditioner,
    Regressors,
    RichardsonRegression,
    RidgeRegression,
    TunedChebyshevRegression,
    Window,
    polynomial_moments,
    tune_chebyshev,
)
from mesascope.tasks import (
    ConstructedTokens,
    Dynamics,
    Sequences,
    fully_observed_linear,
    nonlinear,
    partially_observed_linear,
)
from mesascope.uncover import (
    ResidualStream,
    ordinary,
    preconditioned_inputs,
    preconditioning_probes,
    residual_stream,
)

Array = NDArray[np.float64]

TASKS: list[tuple[Dynamics, Regressors]] = [
    (fully_observed_linear(4, 12), Observations()),
    (partially_observed_linear(2, 4, 12), Window(3)),
    (nonlinear(4, 12), Features()),
]


def draw(task: Dynamics, count: int, seed: int = 0) -> Sequences:
    return task.sample(count, torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(regressors: Array, ridge: float, solve: Callable[[Array, Array], Array]) -> Array:
    """x~_t, with only the rows before t in the matrix."""
    result = np.zeros_like(regressors)
    for b, rows in enumerate(regressors):
        for t, row in enumerate(rows):
            matrix = ridge * np.eye(rows.shape[1])
            for earlier in rows[:t]:
                matrix += np.outer(earlier, earlier)
            result[b, t] = solve(matrix, row)
    return result


@pytest.mark.parametrize(("task", "regressors"), TASKS, ids=["observations", "windows", "features"])
@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_exact_inverse_is_a_solve_with_the_rows_before(task: Dynamics, regressors: Regressors, ridge: float) -> None:
    sequences = draw(task, 3)
    rows = regressors(sequences).numpy()
    expected = by_hand(rows, ridge, np.linalg.solve)
    found = preconditioned_inputs(sequences, RidgeRegression(ridge, regressors)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())
    np.testing.assert_allclose(found[:, 0], rows[:, 0] / ridge, rtol=1e-12)
    late = preconditioned_inputs(sequences, RidgeRegression(ridge, regressors, lag=1)).numpy()
    assert np.abs(late - expected).max() > 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("scale", ["none", "frobenius"])
def test_approximations_are_polynomials_of_the_same_matrix(scale: str) -> None:
    sequences = draw(fully_observed_linear(4, 12), 3)
    coefficients = (0.7, -0.4, 0.1)

    def polynomial(matrix: Array, row: Array) -> Array:
        unit = np.sqrt((matrix**2).sum()) if scale == "frobenius" else 1.0
        matrix, row = matrix / unit, row / unit
        return coefficients[0] * row + coefficients[1] * matrix @ row + coefficients[2] * matrix @ matrix @ row

    learner = PolynomialRegression(coefficients, scale, ridge=0.5)  # type: ignore[arg-type]
    expected = by_hand(sequences.observations.numpy(), 0.5, polynomial)
    np.testing.assert_allclose(preconditioned_inputs(sequences, learner).numpy(), expected, rtol=1e-10, atol=1e-12)


def test_the_learner_predicts_with_its_preconditioned_input() -> None:
    """C_t x~_t with C_t = sum_{i<t} s_{i+1} x_i^T, whatever the solver."""
    sequences = draw(fully_observed_linear(4, 12), 3)
    observed = sequences.observations.numpy()
    learners = (
        RidgeRegression(0.1),
        RichardsonRegression((0.2, 0.1)),
        ConjugateGradientRegression(3, ridge=0.1),
        tune_chebyshev(2, "frobenius", draw(fully_observed_linear(4, 12), 50, 1), steps=20).predictor,
    )
    for learner in learners:
        inner = preconditioned_inputs(sequences, learner).numpy()
        expected = np.zeros_like(observed)
        for b in range(3):
            for t in range(12):
                for i in range(t):
                    expected[b, t] += observed[b, i + 1] * (observed[b, i] @ inner[b, t])
        np.testing.assert_allclose(learner.predict(sequences).numpy(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scale", ["none", "frobenius"])
def test_tuned_chebyshev_is_close_to_the_best_polynomial(scale: str) -> None:
    """On the targets of probes, not on the loss alone (that is tested with the tuning)."""
    task = fully_observed_linear(5, 25)
    tuning, sequences = draw(task, 400, 1), draw(task, 50, 2)
    tuned = tune_chebyshev(3, scale, tuning, steps=3000).predictor  # type: ignore[arg-type]
    best = polynomial_moments(tuning, 3, scale).fit(3)  # type: ignore[arg-type]
    found, expected = preconditioned_inputs(sequences, tuned), preconditioned_inputs(sequences, best)
    assert float((found - expected).norm() / expected.norm()) < 0.01


def test_more_steps_come_closer_to_the_exact_inverse() -> None:
    """For the typical sequence: the mean over sequences belongs to the few whose matrix is nearly singular."""
    task = fully_observed_linear(5, 25)
    tuning, sequences = draw(task, 400, 1), draw(task, 200, 2)
    exact = preconditioned_inputs(sequences, RidgeRegression())[:, -1]
    moments = polynomial_moments(tuning, 6, "frobenius")
    found = (preconditioned_inputs(sequences, moments.fit(degree))[:, -1] for degree in (0, 2, 6))
    first, second, third = (float(((x - exact).norm(dim=-1) / exact.norm(dim=-1)).median()) for x in found)
    assert first > 1.2 * second > 1.5 * third


def test_float32_sequences_give_float64_targets_and_parts_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = draw(fully_observed_linear(4, 12), 7).to(torch.float32)
    whole = preconditioned_inputs(sequences)
    assert whole.dtype == torch.float64
    monkeypatch.setattr("mesascope.learners.regression._CHUNK_NUMBERS", 2 * 12**2)
    torch.testing.assert_close(preconditioned_inputs(sequences), whole, rtol=1e-9, atol=1e-9)


def test_learners_are_preconditioners() -> None:
    for learner in (RidgeRegression(), RichardsonRegression((0.1,)), PolynomialRegression((1.0,))):
        assert isinstance(learner, Preconditioner)
    assert not isinstance(Observations(), Preconditioner)


def test_outliers_are_large_norms_of_their_own_time_step() -> None:
    targets = torch.ones(20, 2, 3)
    targets[4, 1] = -5.0
    targets[7, 0] = 0.0
    kept = ordinary(targets)
    assert kept.sum() == 39
    assert not kept[4, 1]
    # a time step at which all norms are alike has none
    assert ordinary(torch.ones(5, 2, 3)).all()
    # twenty norms of which one differs: its z-score is sqrt(19)
    assert ordinary(targets, 4.35)[:, 1].sum() == 19
    assert ordinary(targets, 4.37).all()


def test_outliers_need_a_positive_threshold() -> None:
    with pytest.raises(InputError, match=r"z_score: got 0\.0, but it must be greater than 0"):
        ordinary(torch.ones(2, 2, 2), 0.0)


def test_a_ridge_that_is_too_small_is_an_error() -> None:
    sequences = draw(fully_observed_linear(4, 12), 3)
    large = replace(sequences, observations=1e4 * sequences.observations)
    with pytest.raises(InputError, match="ridge"):
        preconditioned_inputs(large, RidgeRegression(1e-9))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_probes_find_the_algorithm_of_a_constructed_model() -> None:
    """Three layers of Proposition 2 hold exactly their own preconditioned input, and only after the third."""
    alphas, momenta, ridge = (0.3, 0.2, 0.1), (0.0, 0.4, 0.2), 0.1
    sequences = draw(fully_observed_linear(4, 12, ConstructedTokens()), 200)
    model = residual_stream(proposition_2(4, alphas, momenta, ridge, dtype=torch.float64), sequences)
    untrained = replace(model, values=torch.randn(model.values.shape, generator=generator(), dtype=torch.float64))
    # the construction starts at x = s_t, which a first step of size 1 reaches from zero
    own = TunedChebyshevRegression((1.0, *alphas), (0.0, *momenta), "none", ridge)
    found = preconditioning_probes(model, untrained, sequences, own, generator=generator())
    losses = found.cleaned.model.loss.value
    late = slice(5, None)
    # the fourth layer takes the gradient step and leaves the preconditioned input where it is
    assert (losses[3:] < 1e-9).all()
    assert (losses[:3, late] > 1e-3).all()
    assert (found.uncleaned.loss.value[3:] < 1e-9).all()
    for control in (found.cleaned.untrained, found.cleaned.shuffled):
        assert (control.loss.value[:, late] > 1e-3).all()
    shifted = replace(sequences, observations=torch.roll(sequences.observations, 1, dims=1))
    wrong = preconditioning_probes(model, untrained, shifted, own, generator=generator())
    assert (wrong.cleaned.model.loss.value[3, late] > 1e-4).all()


def test_probes_find_a_planted_input_at_chosen_time_steps() -> None:
    sequences = draw(fully_observed_linear(4, 12), 300)
    learner = RidgeRegression(0.1)
    inner, seen = preconditioned_inputs(sequences, learner), sequences.observations
    mix = torch.randn(8, 8, generator=generator(), dtype=torch.float64)
    noise = torch.randn(inner.shape, generator=generator(), dtype=torch.float64)
    planted = (torch.cat([seen, noise], -1) @ mix, torch.cat([seen, inner], -1) @ mix)
    steps = (3, 7, 12)
    at = [step - 1 for step in steps]
    stream = ResidualStream(("Inp.", "1"), torch.stack(planted)[:, :, at], steps)
    untrained = replace(stream, values=stream.values.flip(1))
    found = preconditioning_probes(stream, untrained, sequences, learner, generator=generator(), z_score=1.5)
    kept = ordinary(inner, 1.5)[:, at]
    np.testing.assert_allclose(found.dropped, 1 - kept.double().mean(0).numpy())
    assert (found.dropped > 0).all()
    assert (found.cleaned.model.loss.value[1] < 1e-12).all()
    assert (found.cleaned.model.loss.value[0] > 1e-3).all()
    counts = found.cleaned.model.num_fitted + found.cleaned.model.num_held_out
    np.testing.assert_array_equal(counts, kept.sum(0).numpy())
    np.testing.assert_array_equal(found.uncleaned.num_held_out, 150)
    for control in (found.cleaned.untrained, found.cleaned.shuffled):
        assert (control.loss.value > 1e-3).all()
    # one map cannot predict with the W* of every sequence
    assert found.next_observation.r2.value.shape == (1, 3)
    assert (found.next_observation.r2.value < 0.05).all()
    np.testing.assert_array_equal(found.next_observation.time_steps, steps)
