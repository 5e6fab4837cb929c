from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.learners import TrueTransition, Zero, mean_loss
from mesascope.tasks import (
    Dynamics,
    FewShotRegression,
    Sequences,
    fully_observed_linear,
    nonlinear,
    partially_observed_linear,
)

from .conftest import draw

TASKS = {"fully observed": fully_observed_linear(), "partially": partially_observed_linear(), "nonlinear": nonlinear()}


def transition_written_out(task: Dynamics, sequences: Sequences) -> np.ndarray:
    """C* W* g(h_t), one sequence and one time step at a time."""
    latents = sequences.latents
    assert latents.states is not None
    predictions = np.zeros(sequences.observations.shape)
    for b in range(sequences.batch_size):
        emission = np.eye(task.n_h) if latents.emission is None else latents.emission[b].numpy()
        for t in range(sequences.length):
            state = latents.states[b, t]
            known = state if task.features is None else task.features(state)
            predictions[b, t] = emission @ (latents.transition[b].numpy() @ known.numpy())
    return predictions


@pytest.mark.parametrize("name", TASKS)
def test_true_transition_equals_the_dynamics_written_out(name: str) -> None:
    sequences = draw(TASKS[name], 4, 0)
    expected = transition_written_out(TASKS[name], sequences)
    np.testing.assert_allclose(TrueTransition().predict(sequences), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", TASKS)
def test_true_transition_is_exact_without_noise(name: str) -> None:
    sequences = draw(replace(TASKS[name], noise_std=0.0), 20, 0)
    torch.testing.assert_close(TrueTransition().predict(sequences), sequences.targets, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("noise_std", [0.01, 0.3])
def test_what_remains_of_the_true_transition_is_noise(name: str, noise_std: float) -> None:
    """Half the summed variance of the noise; seen through C*, that is noise_std^2 ||C*||_F^2 / 2."""
    task = replace(TASKS[name], noise_std=noise_std, clip=None)
    sequences = draw(task, 400, 0)
    latents = sequences.latents
    emission = torch.eye(task.n_h).double().expand(400, -1, -1) if latents.emission is None else latents.emission
    spectra = torch.linalg.svdvals(emission).square()
    # z^T D z of standard normal z has mean tr D and variance 2 tr D^2; 400 sequences of 50 steps
    error = (2 * float(spectra.square().sum()) / 50) ** 0.5 / float(spectra.sum())
    expected = 0.5 * float(spectra.sum(1).mean()) * noise_std**2
    assert mean_loss(TrueTransition(), sequences) == pytest.approx(expected, rel=4 * error)


def test_no_transition_beats_the_true_one(few: Sequences) -> None:
    scale = torch.tensor(1.02, dtype=torch.float64)
    other = replace(few, latents=replace(few.latents, transition=scale * few.latents.transition))
    assert mean_loss(TrueTransition(), few) < mean_loss(TrueTransition(), other)


def test_loss_of_zero_is_that_of_the_uniform_start_plus_the_noise(test_sequences: Sequences) -> None:
    """E ||h_1||^2 / 2 = n / 6, to which step t adds n noise_std^2 / 2."""
    expected = 10 / 6 + 0.5 * 10 * 0.01**2 * np.arange(1, 51).mean()
    error = (10 * 4 / 45 / 4 / 20_000) ** 0.5
    assert mean_loss(Zero(), test_sequences) == pytest.approx(expected, abs=4 * error)
    assert not Zero().predict(test_sequences).any()


def test_predictions_have_the_dtype_of_the_observations() -> None:
    sequences = partially_observed_linear().sample(3, torch.Generator().manual_seed(0))
    for predictor in (Zero(), TrueTransition()):
        predictions = predictor.predict(sequences)
        assert predictions.dtype == torch.float32
        assert predictions.shape == sequences.targets.shape


def test_few_shot_regression_has_no_single_transition() -> None:
    with pytest.raises(InputError, match=r"sequences.latents: got transition of shape .*no states"):
        TrueTransition().predict(draw(FewShotRegression(n=4, pairs=(12,)), 2, 0))
