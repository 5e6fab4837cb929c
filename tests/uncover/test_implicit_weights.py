"""Implicit weights against the closed forms of learners that are linear in their query, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope.constructions import proposition_1
from mesascope.errors import InputError
from mesascope.learners import GradientDescent, RidgeRegression, SoftmaxKernelRegression, TrueTransition, Zero
from mesascope.predictor import TokenPredictor
from mesascope.tasks import ConstructedTokens, Sequences, fully_observed_linear, nonlinear, partially_observed_linear
from mesascope.uncover import implicit_weight_difference, query_probes

N, T, RIDGE, STEP = 4, 12, 0.3, 0.05


@pytest.fixture
def sequences(generator: torch.Generator) -> Sequences:
    return fully_observed_linear(N, T).sample(6, generator, dtype=torch.float64)


def moments(sequences: Sequences, time: int) -> tuple[np.ndarray, np.ndarray]:
    """A_t without ridge, and C_{t-1}: the association without the newest target, which is what is replaced."""
    s = sequences.observations.numpy()
    gram = np.array([sum(np.outer(row[i], row[i]) for i in range(time - 1)) for row in s])
    association = np.array([sum(np.outer(row[i + 1], row[i]) for i in range(time - 2)) for row in s])
    return gram, association


def ridge_weights(sequences: Sequences, time: int) -> np.ndarray:
    gram, association = moments(sequences, time)
    return np.array([c @ np.linalg.inv(a + RIDGE * np.eye(N)) for c, a in zip(association, gram, strict=True)])


@pytest.mark.parametrize("time", [3, 7, T])
def test_weights_of_linear_learners(sequences: Sequences, generator: torch.Generator, time: int) -> None:
    probes = query_probes(sequences, time, generator)
    _, association = moments(sequences, time)
    for learner, expected in (
        (RidgeRegression(RIDGE), ridge_weights(sequences, time)),
        (GradientDescent((STEP,)), STEP * association),
        (TrueTransition(), sequences.latents.transition.numpy()),
        (Zero(), np.zeros((6, N, N))),
        (TokenPredictor("triple", lambda tokens: 3 * tokens), np.tile(3 * np.eye(N), (6, 1, 1))),
    ):
        np.testing.assert_allclose(probes.weights(learner).weights, expected, rtol=1e-10, atol=1e-12)


def test_difference_is_the_closed_form(sequences: Sequences, generator: torch.Generator) -> None:
    batches = [sequences.select(slice(0, 2)), sequences.select(slice(2, 6))]
    first, second = RidgeRegression(RIDGE), GradientDescent((STEP,))
    curves = implicit_weight_difference(first, second, batches, (9, 4), generator)
    expected = np.stack(
        [((ridge_weights(sequences, t) - STEP * moments(sequences, t)[1]) ** 2).sum((1, 2)) for t in (4, 9)], axis=-1
    )
    np.testing.assert_array_equal(curves.time_steps, [4, 9])
    np.testing.assert_allclose(curves.mean[0], expected.mean(0), rtol=1e-10)
    np.testing.assert_allclose(curves.standard_error[0], expected.std(0, ddof=1) / np.sqrt(6), rtol=1e-10)
    assert curves.labels == (f"{first.name} - {second.name}",)


def test_a_construction_has_the_weights_of_its_learner(generator: torch.Generator) -> None:
    tokens = ConstructedTokens()
    sequences = fully_observed_linear(N, T, tokens).sample(5, generator, dtype=torch.float64)
    model = proposition_1(N, STEP, dtype=torch.float64)
    for learner, largest in ((GradientDescent((STEP,)), 1e-20), (GradientDescent((1.02 * STEP,)), None)):
        curves = implicit_weight_difference(model, learner, [sequences], (8,), generator, tokens)
        gap = float(curves.mean[0, 0])
        expected = ((0.02 * STEP * moments(sequences, 8)[1]) ** 2).sum((1, 2)).mean()
        assert gap < largest if largest is not None else gap == pytest.approx(expected, rel=1e-8)


def test_linearity_is_the_share_that_the_map_explains(sequences: Sequences, generator: torch.Generator) -> None:
    probes = query_probes(sequences, 8, generator)
    np.testing.assert_allclose(probes.weights(TrueTransition()).linearity, np.ones(6), rtol=1e-12)
    assert bool(probes.weights(Zero()).linearity.isnan().all())
    kernel = probes.weights(SoftmaxKernelRegression(3.0)).linearity
    assert bool((kernel < 0.95).all())
    found = probes.weights(RidgeRegression(RIDGE))
    u, weights = probes.inputs.numpy(), found.weights.numpy()
    predictions = RidgeRegression(RIDGE).predict(probes.sequences)[:, -1].reshape(u.shape).numpy()
    for b in range(6):
        solution, *_ = np.linalg.lstsq(u[b], predictions[b], rcond=None)
        np.testing.assert_allclose(weights[b], solution.T, rtol=1e-9, atol=1e-11)
        left = ((predictions[b] - u[b] @ solution) ** 2).sum() / (predictions[b] ** 2).sum()
        assert float(found.linearity[b]) == pytest.approx(1 - left, rel=1e-9)


def test_probes_keep_context_and_length(sequences: Sequences, generator: torch.Generator) -> None:
    probes = query_probes(sequences, 5, generator, frames=3)
    assert probes.inputs.shape == (6, 2 * 3 * N, N)
    observations = probes.sequences.observations.unflatten(0, (6, -1))
    for probe in range(observations.shape[1]):
        assert torch.equal(observations[:, probe, :4], sequences.observations[:, :4])
    assert torch.equal(observations[:, :, 4], probes.inputs)
    lengths = sequences.observations[:, 4].norm(dim=-1)[:, None].expand(-1, 24)
    torch.testing.assert_close(probes.inputs.norm(dim=-1), lengths)
    torch.testing.assert_close(probes.inputs[:, :12], -probes.inputs[:, 12:])


@pytest.mark.parametrize("task", [nonlinear(N, T), partially_observed_linear(2, N, T)], ids=["nonlinear", "partial"])
def test_an_oracle_is_refused_where_a_probe_has_no_state(task, generator: torch.Generator) -> None:
    sequences = task.sample(3, generator, dtype=torch.float64)
    with pytest.raises(InputError, match="no states"):
        query_probes(sequences, 5, generator).weights(TrueTransition())
    assert query_probes(sequences, 5, generator).weights(RidgeRegression(RIDGE)).weights.isfinite().all()


def test_bad_input_is_named(sequences: Sequences, generator: torch.Generator) -> None:
    for time in (0, T + 1):
        with pytest.raises(InputError, match=f"time: got {time}, but it must be between 1 and {T}"):
            query_probes(sequences, time, generator)
    with pytest.raises(InputError, match="frames: got 0"):
        query_probes(sequences, 3, generator, frames=0)
    with pytest.raises(InputError, match="tokens: got ConstructedTokens"):
        query_probes(sequences, 3, generator, ConstructedTokens())
    silent = replace(sequences, observations=torch.zeros_like(sequences.observations), tokens=sequences.tokens * 0)
    with pytest.raises(InputError, match="time: got 3, but it must be one at which no observation is zero"):
        query_probes(silent, 3, generator)
    with pytest.raises(InputError, match=r"times: got \(\), but it must be at least one time step"):
        implicit_weight_difference(Zero(), TrueTransition(), [sequences], (), generator)
    with pytest.raises(InputError, match="batches: got none"):
        implicit_weight_difference(Zero(), TrueTransition(), [], (3,), generator)
