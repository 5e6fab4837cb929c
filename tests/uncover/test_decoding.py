"""What was written into a stream by hand is read off it where it was written, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mesascope.errors import InputError
from mesascope.tasks import Sequences, fully_observed_linear, nonlinear
from mesascope.tasks.sequences import shift_right
from mesascope.uncover import (
    ControlledProbe,
    ResidualStream,
    hidden_state_probes,
    probe_with_controls,
    target_probes,
    token_probes,
)

N_S, LENGTH = 3, 9
STEPS = tuple(range(1, LENGTH + 1))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.fixture
def sequences(generator: torch.Generator) -> Sequences:
    return nonlinear(n_s=N_S, length=LENGTH).sample(300, generator)


def mixed(values: Tensor, seed: int) -> Tensor:
    """The same information in other coordinates, as a trained model would hold it."""
    return values @ torch.randn(values.shape[-1], values.shape[-1], generator=torch.Generator().manual_seed(seed))


def stream_of(*depths: Tensor) -> ResidualStream:
    values = torch.stack([mixed(depth, seed) for seed, depth in enumerate(depths)])
    return ResidualStream(("Inp.", *(str(layer) for layer in range(1, len(depths)))), values, STEPS)


@pytest.fixture
def bound(sequences: Sequences) -> ResidualStream:
    """Depth 0 holds s_t and noise, depth 1 holds s_t and s_{t-1}."""
    now, noise = sequences.observations, torch.randn(sequences.observations.shape, generator=generator())
    return stream_of(torch.cat([now, noise], -1), torch.cat([now, shift_right(now)], -1))


@pytest.fixture
def blank(bound: ResidualStream) -> ResidualStream:
    return replace(bound, values=torch.randn(bound.values.shape, generator=torch.Generator().manual_seed(6)))


def share(found: ControlledProbe) -> np.ndarray:
    """Squared error of the model's probes as a share of the variance."""
    return found.model.mse.value / found.model.variance


@pytest.mark.parametrize("at", [LENGTH, 6])
def test_tokens_are_read_where_they_are_bound(
    sequences: Sequences, bound: ResidualStream, blank: ResidualStream, at: int
) -> None:
    found = token_probes(bound, blank, sequences, generator=generator(), at=at, reach=3)
    assert found.model.labels == ("1",)
    np.testing.assert_array_equal(found.model.time_steps, [at - 3, at - 2, at - 1, at])
    assert (share(found)[0, 2:] < 1e-6).all()
    assert (share(found)[0, :2] > 0.3).all()
    assert found.axis == f"time step t' of what is read at t = {at}"
    embedded = token_probes(bound, blank, sequences, generator=generator(), layer=0, at=at, reach=3)
    assert embedded.model.labels == ("Inp.",)
    assert share(embedded)[0, 3] < 1e-6
    assert (share(embedded)[0, :3] > 0.3).all()
    for control in (found.untrained, found.shuffled):
        assert (control.r2.value < 0.2).all()


def test_the_last_time_step_is_the_default(sequences: Sequences, bound: ResidualStream, blank: ResidualStream) -> None:
    default = token_probes(bound, blank, sequences, generator=generator())
    np.testing.assert_array_equal(default.model.time_steps, np.arange(2, 10))
    explicit = token_probes(bound, blank, sequences, generator=generator(), layer=1, at=LENGTH, reach=7)
    np.testing.assert_array_equal(default.model.mse.value, explicit.model.mse.value)


def test_hidden_features_are_read_from_the_depth_that_computes_them(sequences: Sequences) -> None:
    features = replace(nonlinear(n_s=N_S).features, normalise=False)
    now, computed = sequences.observations, features(sequences.observations)
    zero = torch.zeros_like(now)
    stream = stream_of(torch.cat([now, zero], -1), torch.cat([now, computed], -1), torch.cat([computed, zero], -1))
    blank = replace(stream, values=torch.randn(stream.values.shape, generator=generator()))
    found = hidden_state_probes(stream, blank, sequences, features, generator=generator(), reach=1)
    assert found.model.labels == ("Inp.", "1", "2")
    np.testing.assert_array_equal(found.model.time_steps, [LENGTH - 1, LENGTH])
    assert (share(found)[1:, 1] < 1e-6).all()
    assert share(found)[0, 1] > 1e-2
    assert (share(found)[:, 0] > 0.3).all()


def test_targets_are_read_at_every_time_step(sequences: Sequences) -> None:
    now, after = sequences.observations, sequences.targets
    stream = stream_of(now, 0.5 * now + 0.5 * after, after)
    blank = replace(stream, values=torch.randn(stream.values.shape, generator=generator()))
    found = target_probes(stream, blank, sequences, generator=generator())
    np.testing.assert_array_equal(found.model.time_steps, STEPS)
    assert (found.model.loss.value[2] < 1e-6).all()
    assert (found.model.loss.value[0] > found.model.loss.value[1]).all()
    assert (found.model.loss.value[1] > 1e-2).all()
    expected = probe_with_controls(stream, blank, after, generator=generator())
    np.testing.assert_array_equal(found.model.loss.value, expected.model.loss.value)


def test_large_targets_of_either_sign_are_left_out(generator: torch.Generator) -> None:
    sequences = fully_observed_linear(n_s=N_S, length=LENGTH).sample(200, generator)
    stream = stream_of(sequences.observations, sequences.targets)
    found = target_probes(stream, stream, sequences, generator=generator, largest=0.8)
    expected = (sequences.targets.abs() <= 0.8).all(-1).sum(0).numpy()
    np.testing.assert_array_equal(found.model.num_fitted + found.model.num_held_out, expected)
    assert (expected < 200).all()
    with pytest.raises(InputError, match="largest: got 0, but it must be greater than 0, or None"):
        target_probes(stream, stream, sequences, generator=generator, largest=0)


def test_errors(sequences: Sequences, bound: ResidualStream, blank: ResidualStream) -> None:
    for arguments, message in (
        ({"at": 10}, "at: got 10, but it must be between 1 and 9"),
        ({"at": 0}, "at: got 0, but it must be between 1 and 9"),
        ({"at": 5, "reach": 5}, "reach: got 5, but it must be at least 0 and less than the time step 5"),
        ({"reach": -1}, "reach: got -1, but it must be at least 0"),
        ({"layer": 2}, r"layer: got 2, but it must be at one of the depths Inp\., 1"),
    ):
        with pytest.raises(InputError, match=message):
            token_probes(bound, blank, sequences, generator=generator(), **arguments)
