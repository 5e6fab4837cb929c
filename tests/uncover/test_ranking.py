"""Constructions are recognised as the learner they equal, at its depth; what is not on the list is said not to be."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from mesascope.constructions import proposition_1, proposition_2
from mesascope.errors import InputError
from mesascope.figures import LinePanel
from mesascope.learners import (
    GradientDescent,
    Observations,
    RidgeRegression,
    SoftmaxKernelRegression,
    TrueTransition,
    TunedChebyshevRegression,
    Window,
    Zero,
    best_step_size,
)
from mesascope.predictor import Predictor, TokenPredictor
from mesascope.tasks import ConstructedTokens, Sequences, fully_observed_linear
from mesascope.uncover import Candidate, LearnerRanking, learner_candidates, which_learner

TASK = fully_observed_linear(4, 20, ConstructedTokens())
ALPHAS, BETAS, RIDGE = (0.25, 0.2, 0.15, 0.1), (0.0, 0.1, 0.2, 0.15), 0.3


def draw(count: int, seed: int) -> Sequences:
    return TASK.sample(count, torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def candidates() -> tuple[Candidate, ...]:
    return learner_candidates(draw(1500, 1), max_steps=4)


@pytest.fixture
def rank() -> Callable[..., LearnerRanking]:
    def ranking(model: Predictor, learners: tuple[Candidate, ...], **settings: float) -> LearnerRanking:
        batches = [draw(300, seed) for seed in (2, 3)]
        return which_learner(model, learners, batches, torch.Generator().manual_seed(4), resamples=200, **settings)

    return ranking


def chebyshev(degree: int) -> Candidate:
    """The learner of Proposition 2: the iteration starts at the query, which is a first step of size 1 from zero."""
    steps, momenta = (1.0, *ALPHAS[:degree]), (0.0, 0.0, *BETAS[1:degree])
    learner = TunedChebyshevRegression(steps, momenta[: degree + 1], "none", RIDGE)
    return Candidate(learner, "preconditioning and a gradient step", degree + 1)


def test_proposition_1_is_one_gradient_step(candidates, rank) -> None:
    model = proposition_1(4, best_step_size(draw(1500, 5)), dtype=torch.float64)
    ranking = rank(model, candidates)
    (answer,) = ranking.answer
    assert (answer.family, answer.steps) == ("steps, shared coefficients", 1)
    assert ranking.distances[0] < 1e-3
    assert ranking.gap_low[1] > 0.1
    assert "behaves like best polynomial, degree 0, global:" in ranking.verdict


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_proposition_2_is_recognised_at_its_depth(rank, degree: int) -> None:
    model = proposition_2(4, ALPHAS[:degree], BETAS[:degree], RIDGE, dtype=torch.float64)
    others = (Candidate(Zero(), "zero"), Candidate(RidgeRegression(RIDGE), "ridge regression"))
    ranking = rank(model, (*(chebyshev(other) for other in range(5)), *others))
    assert [answer.steps for answer in ranking.answer] == [degree + 1]
    assert ranking.distances[0] < 1e-18
    assert ranking.gap_low[1] > 1e-3


def test_a_learner_outside_the_list_is_none_of_these(candidates, rank) -> None:
    for model in (SoftmaxKernelRegression(8.0), RidgeRegression(0.01, lag=1)):
        without = tuple(candidate for candidate in candidates if candidate.family != "softmax kernel")
        ranking = rank(model, without)
        assert ranking.answer == ()
        assert "none of these: the nearest" in ranking.verdict
        assert ranking.low[0] > ranking.closeness


def test_the_oracle_and_zero_are_found(candidates, rank) -> None:
    for learner in (TrueTransition(), Zero()):
        ranking = rank(TokenPredictor("a model", lambda tokens: tokens[..., 4:8]), candidates)
        assert ranking.answer == ()
        ranking = rank(learner, candidates)
        assert [answer.name for answer in ranking.answer] == [learner.name]


def test_distances_losses_and_gaps_agree_with_numpy(rank) -> None:
    model = GradientDescent((0.1,))
    learners = tuple(Candidate(item, item.name) for item in (Zero(), RidgeRegression(0.1), GradientDescent((0.11,))))
    ranking = rank(model, learners)
    batches = [draw(300, seed) for seed in (2, 3)]

    def mean(a: Predictor, b: Predictor | None) -> float:
        differences = [a.predict(batch) - (batch.targets if b is None else b.predict(batch)) for batch in batches]
        return float(0.5 * (np.concatenate(differences) ** 2).sum(-1).mean())

    own = mean(model, None)
    assert ranking.own_loss == pytest.approx(own, rel=1e-12)
    distances = {learner.name: mean(model, learner.predictor) / own for learner in learners}
    ordered = sorted(distances, key=lambda name: distances[name])
    assert [candidate.name for candidate in ranking.candidates] == ordered
    np.testing.assert_allclose(ranking.distances, [distances[name] for name in ordered], rtol=1e-10)
    np.testing.assert_allclose(ranking.gaps, ranking.distances - ranking.distances[0], rtol=1e-10)
    expected = [mean(candidate.predictor, None) for candidate in ranking.candidates]
    np.testing.assert_allclose(ranking.losses, expected, rtol=1e-12)
    assert (ranking.low <= ranking.distances).all()
    assert (ranking.distances <= ranking.high).all()
    assert ranking.num_sequences == 600


def test_interval_is_that_of_the_mean_over_sequences(rank) -> None:
    model = RidgeRegression(0.1)
    ranking = rank(model, (Candidate(Zero(), "zero"),), closeness=0.5)
    batches = [draw(300, seed) for seed in (2, 3)]
    difference = np.concatenate([(0.5 * model.predict(b).square().sum(-1)).mean(-1) for b in batches])
    loss = np.concatenate([(0.5 * (model.predict(b) - b.targets).square().sum(-1)).mean(-1) for b in batches])
    # delta method for the ratio of two means
    influence = (difference - difference.mean() / loss.mean() * (loss - loss.mean()) - difference.mean()) / loss.mean()
    error = influence.std() / np.sqrt(600)
    assert ranking.high[0] - ranking.low[0] == pytest.approx(2 * 1.96 * error, rel=0.2)


@dataclass(frozen=True)
class Midway:
    """Predicts the mean of two learners: exactly as far from one as from the other."""

    first: Predictor
    second: Predictor
    name: str = "midway"

    def predict(self, sequences: Sequences) -> torch.Tensor:
        return 0.5 * (self.first.predict(sequences) + self.second.predict(sequences))


def test_learners_that_cannot_be_told_apart_share_the_answer(rank) -> None:
    first, second, third = (Candidate(RidgeRegression(ridge), f"{ridge}") for ridge in (0.05, 0.2, 0.8))
    ranking = rank(Midway(first.predictor, second.predictor), (first, second, third))
    assert set(ranking.answer) == {first, second}
    assert "which are not told apart here" in ranking.verdict


def test_only_scored_time_steps_count(rank) -> None:
    batch = draw(50, 7)
    scored = replace(batch, scored=torch.tensor([3, 9]))
    learners = (Candidate(Zero(), "zero"),)
    ranking = which_learner(RidgeRegression(0.1), learners, [scored], torch.Generator().manual_seed(0))
    error = (RidgeRegression(0.1).predict(batch) - batch.targets)[:, [3, 9]]
    assert ranking.own_loss == pytest.approx(float(0.5 * error.square().sum(-1).mean()), rel=1e-12)


def test_candidates_cover_every_family_and_depth(candidates) -> None:
    depths = [(candidate.family, candidate.steps) for candidate in candidates]
    assert depths == [
        *((f"steps, {family}", steps) for family in ("shared coefficients", "scaled matrix") for steps in (1, 2, 3, 4)),
        *((family, None) for family in ("ridge regression", "softmax kernel", "zero", "true W*")),
    ]
    both = learner_candidates(draw(200, 1), 2, (Observations(), Window(2)))
    assert len({candidate.name for candidate in both}) == len(both) == 2 * 6 + 2
    assert ("steps, scaled matrix, last 2 observations", 2) in {(item.family, item.steps) for item in both}


def test_table_and_figure_show_all_candidates(candidates, rank) -> None:
    ranking = rank(RidgeRegression(0.01), candidates)
    table = ranking.table("ranking", "Ranking")
    assert len(table.rows) == len(candidates)
    assert [row[0] for row in table.rows] == list(range(1, len(candidates) + 1))
    assert [row[-1] for row in table.rows].count("yes") == len(ranking.answer) >= 1
    assert [row[4] for row in table.rows] == sorted(ranking.distances)
    (panel,) = ranking.figure("ranking", "Ranking", "caption").panels
    assert isinstance(panel, LinePanel)
    assert panel.log_y
    lines = {line.label: line for line in panel.lines}
    np.testing.assert_array_equal(lines["steps, scaled matrix"].x, [1, 2, 3, 4])
    np.testing.assert_array_equal(lines["ridge regression"].x, [1, 4])
    place = [candidate.family for candidate in ranking.candidates].index("ridge regression")
    np.testing.assert_array_equal(lines["ridge regression"].y, [ranking.distances[place]] * 2)
    np.testing.assert_array_equal(lines["close: 0.1 of its own loss"].y, [0.1, 0.1])


def test_bad_input_is_named(generator: torch.Generator) -> None:
    batch, zero = draw(4, 8), Candidate(Zero(), "zero")
    with pytest.raises(InputError, match=r"learners: got .*, but it must be at least one candidate"):
        which_learner(Zero(), (), [batch], generator)
    with pytest.raises(InputError, match=r"learners: got .* with distinct names"):
        which_learner(Zero(), (zero, zero), [batch], generator)
    same_depth = (Candidate(Zero(), "family", 1), Candidate(TrueTransition(), "family", 1))
    with pytest.raises(InputError, match=r"learners: got .* distinct steps in a family"):
        which_learner(Zero(), same_depth, [batch], generator)
    with pytest.raises(InputError, match="a family in which all have steps"):
        which_learner(Zero(), (zero, Candidate(TrueTransition(), "zero", 1)), [batch], generator)
    with pytest.raises(InputError, match=r"batches: got .* at least one batch"):
        which_learner(Zero(), (zero,), [], generator)
    with pytest.raises(InputError, match="closeness: got 0"):
        which_learner(Zero(), (zero,), [batch], generator, closeness=0.0)
    perfect = TokenPredictor("perfect", lambda tokens: batch.targets)
    with pytest.raises(InputError, match=r"model: got 0\.0, but it must be one with a loss above 0"):
        which_learner(perfect, (zero,), [batch], generator)
    with pytest.raises(InputError, match="max_steps: got 0"):
        learner_candidates(batch, 0)
