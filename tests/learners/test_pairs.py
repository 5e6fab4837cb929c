"""Least squares on the true pairs of few-shot regression, against numpy."""

import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.learners import PairRegression
from mesascope.tasks import EOSLayout, FewShotRegression, PairLayout, PrefixLayout, fully_observed_linear

N, RIDGE = 3, 0.2


@pytest.mark.parametrize(
    "layout", [PairLayout(), EOSLayout(), PrefixLayout(4)], ids=lambda layout: type(layout).__name__
)
def test_predictions_use_true_pairs_only(layout, generator: torch.Generator) -> None:
    task = FewShotRegression(N, (5, 3), layout)
    learned = {"eos": torch.randn(N, generator=generator)} if layout.group == 3 else {}
    if layout.prefix:
        learned["prefix"] = torch.randn(4, N, generator=generator)
    sequences = task.sample(4, generator, dtype=torch.float64, **learned)
    predicted = PairRegression(RIDGE).predict(sequences).numpy()
    tokens, positions = sequences.tokens.numpy(), sequences.scored.tolist()
    for b in range(4):
        gram, association = RIDGE * np.eye(N), np.zeros((N, N))
        for position in positions:
            x, y = tokens[b, position], tokens[b, position + 1]
            expected = association @ np.linalg.solve(gram, x)
            np.testing.assert_allclose(predicted[b, position], expected, rtol=1e-9, atol=1e-12)
            gram, association = gram + np.outer(x, x), association + np.outer(y, x)
    others = sorted(set(range(task.length)) - set(positions))
    assert not predicted[:, others].any()


def test_a_noiseless_problem_is_solved_after_n_pairs(generator: torch.Generator) -> None:
    sequences = FewShotRegression(N, (8,)).sample(20, generator, dtype=torch.float64)
    error = (PairRegression(1e-9).predict(sequences) - sequences.targets)[:, sequences.scored]
    assert float(error[:, N:].abs().amax(-1).quantile(0.9)) < 1e-6
    assert float(error[:, : N - 1].abs().amax((0, 2)).min()) > 0.1


def test_bad_input_is_named(generator: torch.Generator) -> None:
    with pytest.raises(InputError, match=r"ridge: got 0\.0, but it must be greater than 0"):
        PairRegression(0.0)
    with pytest.raises(InputError, match=r"sequences\.scored: got None, but it must be the positions of the x_i"):
        PairRegression().predict(fully_observed_linear(N, 5).sample(2, generator))
