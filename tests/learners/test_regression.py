import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.learners import CausalGram, Features, Observations, Window, in_context_data
from mesascope.learners.regression import chunks
from mesascope.tasks import MLPFeatures, Sequences, fully_observed_linear, nonlinear, partially_observed_linear

from .conftest import draw


def test_pairs_and_queries_written_out(few: Sequences) -> None:
    s = few.observations.numpy()
    data = in_context_data(few)
    for t in range(30):
        np.testing.assert_array_equal(data.queries[:, t], s[:, t])
        np.testing.assert_array_equal(data.keys[:, t], s[:, t - 1] if t else 0 * s[:, 0])
    for t in range(1, 30):
        np.testing.assert_array_equal(data.values[:, t], s[:, t])


def test_lag_withholds_the_newest_pairs(few: Sequences) -> None:
    s = few.observations.numpy()
    data = in_context_data(few, lag=2)
    for t in range(3, 30):
        np.testing.assert_array_equal(data.keys[:, t], s[:, t - 3])
        np.testing.assert_array_equal(data.values[:, t], s[:, t - 2])
    assert not data.keys[:, :3].any()


def test_window_is_newest_first_with_zeros_before_the_start() -> None:
    sequences = draw(partially_observed_linear(length=9), 2, 0)
    s = sequences.observations.numpy()
    x = Window(3)(sequences).numpy()
    assert x.shape == (2, 9, 15)
    for t in range(9):
        for age in range(3):
            expected = s[:, t - age] if t >= age else np.zeros((2, 5))
            np.testing.assert_array_equal(x[:, t, 5 * age : 5 * age + 5], expected)


def test_features_are_those_that_generated_the_sequence() -> None:
    task = nonlinear()
    sequences = draw(task, 3, 0)
    assert task.features is not None
    x = Features(task.features)(sequences)
    torch.testing.assert_close(x, sequences.latents.features, rtol=1e-12, atol=1e-14)
    assert (Features(MLPFeatures(seed=1))(sequences) - x).abs().max() > 0.1


def test_data_are_float64_whatever_the_sequences() -> None:
    sequences = fully_observed_linear().sample(2, torch.Generator().manual_seed(0))
    assert sequences.observations.dtype == torch.float32
    assert in_context_data(sequences).keys.dtype == torch.float64


def test_chunks_cover_the_batch_in_order_and_are_small() -> None:
    sequences = draw(fully_observed_linear(3, 600), 20, 0)
    parts = chunks(sequences)
    assert len(parts) == 4
    assert all(part.batch_size * 600**2 <= 2**21 for part in parts)
    torch.testing.assert_close(torch.cat([part.observations for part in parts]), sequences.observations, rtol=0, atol=0)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_gram_against_dense_matrices(few: Sequences, ridge: float) -> None:
    data = in_context_data(few)
    gram = CausalGram(data.keys, ridge)
    x = torch.randn(7, 30, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    applied, norm, trace = gram.apply(x), gram.frobenius_norm(), gram.trace()
    low, high = gram.bounds()
    smallest, largest = gram.extreme_eigenvalues()
    keys = data.keys.numpy()
    for b in range(7):
        dense = ridge * np.eye(10)
        for t in range(30):
            dense = dense + np.outer(keys[b, t], keys[b, t])
            spectrum = np.linalg.eigvalsh(dense)
            np.testing.assert_allclose(applied[b, t], dense @ x[b, t].numpy(), rtol=1e-11, atol=1e-11)
            np.testing.assert_allclose(norm[b, t], np.linalg.norm(dense), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(trace[b, t], np.trace(dense), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(smallest[b, t], spectrum[0], rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(largest[b, t], spectrum[-1], rtol=1e-11, atol=1e-12)
            np.testing.assert_allclose(low[b, t], ridge)
            np.testing.assert_allclose(high[b, t], np.trace(dense) - 9 * ridge, rtol=1e-12, atol=1e-12)
            assert low[b, t] <= spectrum[0] + 1e-11
            assert high[b, t] >= spectrum[-1] - 1e-11


def test_association_against_dense_matrices(few: Sequences) -> None:
    data = in_context_data(few)
    s = few.observations.numpy()
    associated = data.associate(data.queries)
    for b in range(7):
        dense = np.zeros((10, 10))
        for t in range(30):
            if t:
                dense += np.outer(s[b, t], s[b, t - 1])
            np.testing.assert_allclose(associated[b, t], dense @ s[b, t], rtol=1e-11, atol=1e-11)


def test_messages_name_the_argument() -> None:
    with pytest.raises(InputError, match=r"size: got 0, but it must be at least 1"):
        Window(0)
    with pytest.raises(InputError, match=r"ridge: got -1.0, but it must be at least 0"):
        CausalGram(torch.zeros(1, 2, 3), -1.0)
    with pytest.raises(InputError, match=r"lag: got -1, but it must be at least 0"):
        in_context_data(draw(fully_observed_linear(), 1, 0), Observations(), lag=-1)
