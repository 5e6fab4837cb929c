import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.learners import SoftmaxKernelRegression, Window
from mesascope.tasks import Sequences, partially_observed_linear

from .conftest import draw


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.9, 20.0])
def test_equals_the_explicit_loop(few: Sequences, beta: float) -> None:
    predictions = SoftmaxKernelRegression(beta).predict(few)
    s = few.observations.numpy()
    for b in range(7):
        for t in range(30):
            expected = np.zeros(10)
            if t > 0:
                logits = np.array([beta * s[b, i] @ s[b, t] for i in range(t)])
                weights = np.exp(logits - logits.max())
                expected = sum(w * s[b, i + 1] for i, w in enumerate(weights / weights.sum()))
            np.testing.assert_allclose(predictions[b, t], expected, rtol=1e-11, atol=1e-12)


def test_infinite_beta_copies_the_successor_of_the_best_match(few: Sequences) -> None:
    predictions = SoftmaxKernelRegression(1e7).predict(few)
    s = few.observations.numpy()
    for b in range(7):
        for t in range(1, 30):
            match = int(np.argmax(s[b, :t] @ s[b, t]))
            np.testing.assert_allclose(predictions[b, t], s[b, match + 1], rtol=0, atol=1e-12)


def test_beta_zero_is_the_mean_of_the_past(few: Sequences) -> None:
    predictions = SoftmaxKernelRegression(0.0).predict(few)
    torch.testing.assert_close(predictions[:, 6], few.observations[:, 1:7].mean(1), rtol=1e-12, atol=1e-13)
    assert not predictions[:, 0].any()


def test_windows_compare_longer_pasts() -> None:
    sequences = draw(partially_observed_linear(length=8), 2, 0)
    predictions = SoftmaxKernelRegression(0.5, Window(2)).predict(sequences)
    s = sequences.observations.numpy()
    before = np.concatenate([np.zeros((2, 1, 5)), s[:, :-1]], axis=1)
    for b in range(2):
        logits = np.array([0.5 * (s[b, i] @ s[b, 7] + before[b, i] @ before[b, 7]) for i in range(7)])
        weights = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(predictions[b, 7], weights @ s[b, 1:8], rtol=1e-11, atol=1e-12)


def test_message_names_the_argument() -> None:
    with pytest.raises(InputError, match=r"beta: got -1.0, but it must be at least 0"):
        SoftmaxKernelRegression(-1.0)
