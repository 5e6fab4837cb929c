import math
from dataclasses import replace

import pytest
import torch

from mesascope.errors import DivergenceError, InputError
from mesascope.learners import (
    GradientDescent,
    Scale,
    SoftmaxKernelRegression,
    best_step_size,
    line_search,
    mean_loss,
    polynomial_moments,
    refined_line_search,
    tune_chebyshev,
    tune_step_sizes,
)
from mesascope.tasks import FewShotRegression, Sequences, fully_observed_linear

from .conftest import draw


@pytest.fixture(scope="module")
def sequences() -> Sequences:
    return draw(fully_observed_linear(), 300, 1)


def one_step(step_size: float) -> GradientDescent:
    return GradientDescent((step_size,))


def test_line_search_finds_the_closed_form_step_size(sequences: Sequences) -> None:
    best = best_step_size(sequences)
    grid = [best * factor for factor in (1.3, 0.7, 1.0, 0.99, 1.01)]
    result = line_search(one_step, grid, sequences)
    assert result.value == best
    assert result.predictor == one_step(best)
    assert result.grid == tuple(sorted(grid))
    assert result.losses == tuple(mean_loss(one_step(value), sequences) for value in sorted(grid))
    assert not result.on_edge


def test_line_search_closes_in_on_an_optimum_between_grid_points(sequences: Sequences) -> None:
    best = best_step_size(sequences)
    grid = torch.linspace(0.01, 0.06, 24, dtype=torch.float64).tolist()
    assert abs(line_search(one_step, grid, sequences).value - best) <= (grid[1] - grid[0]) / 2


@pytest.mark.parametrize("factors", [(1.1, 1.5, 2.0), (0.1, 0.5, 0.9)], ids=["lower edge", "upper edge"])
def test_line_search_refuses_an_edge_unless_told(sequences: Sequences, factors: tuple[float, ...]) -> None:
    grid = [best_step_size(sequences) * factor for factor in factors]
    with pytest.raises(InputError, match=r"grid: the best of 3 values, .* is an end of the grid .*widen the grid"):
        line_search(one_step, grid, sequences)
    allowed = line_search(one_step, grid, sequences, edge="allow")
    assert allowed.on_edge
    assert allowed.value == (grid[0] if factors[0] > 1 else grid[-1])


def test_line_search_passes_over_losses_that_are_not_finite(sequences: Sequences) -> None:
    best = best_step_size(sequences)
    result = line_search(one_step, [best / 2, best, 1e200], sequences)
    assert result.value == best
    assert not result.losses[-1] < float("inf")
    with pytest.raises(InputError, match=r"grid: .*at least one loss is finite"):
        line_search(one_step, [1e200, 2e200, 3e200], sequences)


def test_line_search_needs_three_different_values(sequences: Sequences) -> None:
    with pytest.raises(InputError, match=r"grid: got .*at least three different values"):
        line_search(one_step, [0.1, 0.2, 0.2], sequences)


def test_line_search_over_the_temperature_of_the_softmax_kernel(sequences: Sequences) -> None:
    result = line_search(SoftmaxKernelRegression, [0.01, 0.1, 1.0, 10.0, 100.0], sequences)
    assert result.losses[result.grid.index(result.value)] == min(result.losses)


def test_mean_loss_counts_scored_positions_only() -> None:
    few_shot = draw(FewShotRegression(n=4, pairs=(12,)), 5, 0)
    assert few_shot.scored is not None
    learner = one_step(0.02)
    error = (learner.predict(few_shot) - few_shot.targets)[:, few_shot.scored]
    assert mean_loss(learner, few_shot) == pytest.approx(0.5 * float(error.square().sum(-1).mean()), rel=1e-12)
    unscored = replace(few_shot, scored=None)
    assert mean_loss(learner, unscored) != pytest.approx(mean_loss(learner, few_shot), rel=1e-3)


@pytest.mark.parametrize("scale", ["none", "frobenius"])
@pytest.mark.parametrize("degree", [0, 2])
def test_tuned_chebyshev_reaches_the_best_polynomial(sequences: Sequences, scale: Scale, degree: int) -> None:
    result = tune_chebyshev(degree, scale, sequences, steps=1000)
    assert result.optimum == polynomial_moments(sequences, degree, scale).optimum(degree)
    assert result.optimum * (1 - 1e-12) <= result.loss <= 1.01 * result.optimum
    assert result.loss == pytest.approx(mean_loss(result.predictor, sequences), rel=1e-9)
    assert result.predictor.degree == degree
    assert result.losses[0] > result.loss == min(result.losses)
    assert len(result.losses) == 1000


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_tuned_step_sizes_are_no_better_than_the_best_polynomial(sequences: Sequences, num_steps: int) -> None:
    result = tune_step_sizes(num_steps, sequences, steps=1000)
    step_sizes = result.predictor.step_sizes
    assert len(step_sizes) == num_steps
    assert list(step_sizes) == sorted(step_sizes, reverse=True)
    assert min(step_sizes) > 0
    assert result.loss == pytest.approx(mean_loss(result.predictor, sequences), rel=1e-9)
    assert result.optimum * (1 - 1e-12) <= result.loss <= 1.01 * result.optimum


def test_one_tuned_step_is_the_closed_form(sequences: Sequences) -> None:
    (step_size,) = tune_step_sizes(1, sequences, steps=1000).predictor.step_sizes
    assert step_size == pytest.approx(best_step_size(sequences), rel=1e-5)


def test_tuned_on_one_sample_serves_another(sequences: Sequences) -> None:
    other = draw(fully_observed_linear(), 300, 2)
    tuned = tune_chebyshev(2, "frobenius", sequences, steps=1000)
    assert mean_loss(tuned.predictor, other) < 1.1 * polynomial_moments(other, 2, "frobenius").optimum(2)


def test_tuning_is_a_function_of_the_sequences_alone(sequences: Sequences) -> None:
    before = torch.get_rng_state()
    first = tune_chebyshev(2, "none", sequences, steps=50), tune_step_sizes(2, sequences, steps=50)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert first == (tune_chebyshev(2, "none", sequences, steps=50), tune_step_sizes(2, sequences, steps=50))
    assert tune_chebyshev(2, "none", sequences.select(slice(0, 200)), steps=50) != first[0]


def test_tuning_needs_no_gradients_of_its_caller(sequences: Sequences) -> None:
    with torch.no_grad():
        inside = tune_step_sizes(2, sequences, steps=20)
    assert inside == tune_step_sizes(2, sequences, steps=20)


def test_messages_name_the_argument(sequences: Sequences) -> None:
    with pytest.raises(InputError, match="num_steps: got 0"):
        tune_step_sizes(0, sequences)
    with pytest.raises(InputError, match="steps: got 0"):
        tune_chebyshev(1, "none", sequences, steps=0)
    with pytest.raises(InputError, match=r"learning_rate: got 0.0"):
        tune_chebyshev(1, "none", sequences, learning_rate=0.0)
    with pytest.raises(InputError, match="degree: got -1"):
        tune_chebyshev(-1, "none", sequences)
    with pytest.raises(DivergenceError, match=r"at step 1 of the tuning; use a learning_rate below 1e\+200"):
        tune_chebyshev(1, "none", sequences, steps=5, learning_rate=1e200)


@pytest.mark.parametrize("rounds", [0, 1, 4])
def test_refined_search_closes_in_on_the_closed_form_step_size(sequences: Sequences, rounds: int) -> None:
    best = best_step_size(sequences)
    grid = [best * 2**exponent for exponent in (-3.3, -1.3, 0.7, 2.7)]
    result = refined_line_search(one_step, grid, sequences, rounds)
    assert len(result.grid) == 4 + 2 * rounds
    assert result.grid == tuple(sorted(result.grid))
    assert result.losses == tuple(mean_loss(one_step(value), sequences) for value in result.grid)
    assert result.losses[result.grid.index(result.value)] == min(result.losses)
    assert result.predictor == one_step(result.value)
    assert abs(math.log(result.value / best)) <= math.log(4) * 2**-rounds


def test_refined_search_needs_positive_values_and_an_optimum_inside(sequences: Sequences) -> None:
    with pytest.raises(InputError, match=r"grid: got .*, but it must be positive"):
        refined_line_search(one_step, [0.0, 0.1, 0.2], sequences)
    with pytest.raises(InputError, match="is an end of the grid"):
        refined_line_search(one_step, [1e-6, 2e-6, 3e-6], sequences)
    with pytest.raises(InputError, match=r"rounds: got -1, but it must be at least 0"):
        refined_line_search(one_step, [0.01, 0.03, 0.1], sequences, rounds=-1)
