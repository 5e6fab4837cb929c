"""Learners over the size of observations, against a search and losses computed here."""

import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.figures import LinePanel
from mesascope.learners import RidgeRegression, Zero, mean_loss
from mesascope.tasks import Dynamics, fully_observed_linear
from mesascope.uncover import LEAST_SQUARES, SOFTMAX_KERNEL, Family, losses_by_dimension
from oracles import learners

SIZES = (2, 3)


def task(n_s: int) -> Dynamics:
    return fully_observed_linear(n_s, 4 * n_s)


def generators(seed: int) -> tuple[torch.Generator, torch.Generator]:
    return torch.Generator().manual_seed(seed), torch.Generator().manual_seed(1000 + seed)


@pytest.fixture(scope="module")
def measured():
    return losses_by_dimension(task, SIZES, [generators(seed) for seed in (0, 1)], tuning_sequences=64, sequences=50)


def test_losses_are_those_of_the_tuned_learner_on_the_other_sequences(measured):
    for seed in (0, 1):
        tuning, measuring = generators(seed)
        for column, n_s in enumerate(SIZES):
            task(n_s).sample(64, tuning)
            sequences = task(n_s).sample(50, measuring).to(torch.float64)
            s, targets = sequences.observations.numpy(), sequences.targets.numpy()
            for family, name in ((LEAST_SQUARES, "ridge"), (SOFTMAX_KERNEL, "beta")):
                number = measured.tuned[measured.families.index(family.name), seed, column]
                predict = learners.streaming_ridge if name == "ridge" else softmax_kernel
                predictions = predict(s, float(number))
                expected = 0.5 * ((predictions - targets) ** 2).sum(-1).mean()
                assert measured.of(family.name)[seed, column] == pytest.approx(expected, rel=1e-5)
                per_dimension = measured.of(family.name, "per dimension")[seed, column]
                assert per_dimension == pytest.approx(expected / n_s, rel=1e-5)


def softmax_kernel(observations, beta):
    predictions = np.zeros_like(observations)
    for b, s in enumerate(observations):
        for t in range(1, len(s)):
            weights = np.exp(beta * s[:t] @ s[t])
            predictions[b, t] = weights @ s[1 : t + 1] / weights.sum()
    return predictions


def test_tuned_numbers_are_best_on_the_tuning_sequences(measured):
    tuning, _ = generators(0)
    sequences = task(SIZES[0]).sample(64, tuning)
    for family, tuned in zip((LEAST_SQUARES, SOFTMAX_KERNEL), measured.tuned[:, 0, 0], strict=True):
        numbers = (float(tuned), 0.7 * float(tuned), 1.4 * float(tuned))
        losses = [mean_loss(family.make(number), sequences) for number in numbers]
        assert losses[0] == min(losses)


def test_tables_and_panels_show_means_over_seeds(measured):
    table = measured.table("t", "T", "per dimension")
    assert table.columns == (
        "n_s",
        "least squares: loss, per dimension",
        "least squares: ridge",
        "softmax kernel: loss, per dimension",
        "softmax kernel: beta",
    )
    for column, row in enumerate(table.rows):
        losses = [measured.losses[family, :, column].mean() / SIZES[column] for family in (0, 1)]
        numbers = measured.tuned[:, :, column].mean(1)
        np.testing.assert_allclose(row, [SIZES[column], losses[0], numbers[0], losses[1], numbers[1]], rtol=1e-12)
    (panel,) = measured.figure("f", "F", "caption").panels
    assert isinstance(panel, LinePanel)
    for line, family in zip(panel.lines, measured.families, strict=True):
        assert (line.label, line.role) == (family, "hypothesis")
        np.testing.assert_allclose(line.y, measured.of(family).mean(0), rtol=1e-12)
        assert line.high is not None
        np.testing.assert_allclose(line.high - line.y, measured.of(family).std(0, ddof=1), rtol=1e-9)


def test_an_optimum_at_the_edge_is_an_error():
    stuck = Family("stuck", "ridge", RidgeRegression, (1e3, 1e4, 1e5))
    with pytest.raises(InputError, match="is an end of the grid"):
        losses_by_dimension(task, (2,), [generators(0)], families=(stuck,), tuning_sequences=8, sequences=8)


def test_errors_name_the_argument(measured):
    with pytest.raises(InputError, match=r"sizes: got .*, but it must be not empty"):
        losses_by_dimension(task, (), [generators(0)])
    with pytest.raises(InputError, match=r"streams: got .*, but it must be not empty"):
        losses_by_dimension(task, (2,), [])
    with pytest.raises(InputError, match=r"families: got .*, but it must be not empty"):
        losses_by_dimension(task, (2,), [generators(0)], families=())
    with pytest.raises(InputError, match=r"sizes: got \(3, 2\), but it must be ascending"):
        losses_by_dimension(task, (3, 2), [generators(0)])
    with pytest.raises(InputError, match=f"family: got '{Zero().name}', but it must be one of 'least squares'"):
        measured.of(Zero().name)
