"""Schedules and the settings a training refuses."""

import math
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesascope.errors import InputError
from mesascope.tasks import WindowTokens, fully_observed_linear, partially_observed_linear
from mesascope.training.config import ClipGradNorm, ClipGradValue, ConstantRate, WarmupCosine
from mesascope.training.seeds import stream


def test_constant_rate() -> None:
    assert [ConstantRate(0.1)(step) for step in (0, 1, 10**6)] == [0.1, 0.1, 0.1]


def test_warm_up_and_cosine() -> None:
    schedule = WarmupCosine(peak=1.0, warmup_steps=100, decay_steps=300, final=0.2)
    assert schedule(0) == 0
    assert schedule(1) == pytest.approx(0.01)
    assert schedule(50) == pytest.approx(0.5)
    assert schedule(100) == pytest.approx(1.0)
    # a quarter of the way cos(pi / 4), half of it the mean of both ends
    assert schedule(150) == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)))
    assert schedule(200) == pytest.approx(0.6)
    assert schedule(300) == pytest.approx(0.2)
    assert schedule(10**6) == pytest.approx(0.2)


def test_no_warm_up() -> None:
    assert WarmupCosine(peak=1.0, warmup_steps=0, decay_steps=10)(0) == 1.0


@given(st.integers(0, 50), st.integers(51, 200), st.floats(0, 0.5))
def test_the_rate_rises_to_the_peak_and_then_falls(warmup: int, decay: int, final: float) -> None:
    schedule = WarmupCosine(peak=0.5, warmup_steps=warmup, decay_steps=decay, final=final)
    rates = [schedule(step) for step in range(decay + 10)]
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert all(later <= rate + 1e-15 for rate, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert max(rates) == pytest.approx(0.5)
    assert min(rates[warmup:]) == pytest.approx(final)


BAD: dict[str, dict[str, Any]] = {
    "steps: got 0, but it must be at least 1": {"steps": 0},
    "batch_size: got 0": {"batch_size": 0},
    "micro_batch: got 0": {"micro_batch": 0},
    "evaluate_every: got 0": {"evaluate_every": 0},
    "evaluation_batches: got 0": {"evaluation_batches": 0},
    "checkpoint_every: got -5": {"checkpoint_every": -5},
    "threads: got 0": {"threads": 0},
    "snapshot_every: got 0, but it must be at least 1, or None": {"snapshot_every": 0},
    "weight_decay: got -0.1, but it must be at least 0": {"weight_decay": -0.1},
    "betas: got (0.9, 1.0), but it must be in [0, 1)": {"betas": (0.9, 1.0)},
    "epsilon: got 0.0, but it must be greater than 0": {"epsilon": 0.0},
    "seed: got -1, but it must be between 0 and 2^32 - 1": {"seed": -1},
    "seed: got 4294967296": {"seed": 2**32},
    "model.token_dim: got 3, but the tokens of the task have size 4": {"task": fully_observed_linear(n_s=4)},
    "model.prediction_dim: got 3, but the task has n_s = 1": {
        "task": partially_observed_linear(n_s=1, n_h=4, tokens=WindowTokens(3))
    },
}


@pytest.mark.parametrize("message", BAD)
def test_settings_that_are_not_allowed(message: str) -> None:
    with pytest.raises(InputError) as error:
        tiny.varied(tiny.HYBRID, **BAD[message])
    assert str(error.value).startswith(message)


def test_schedules_and_clips_refuse_values_out_of_range() -> None:
    for build, message in (
        (lambda: ConstantRate(0.0), "rate: got 0.0, but it must be greater than 0"),
        (lambda: WarmupCosine(peak=0.0), "peak: got 0.0, but it must be greater than 0"),
        (lambda: WarmupCosine(0.1, final=0.2), "final: got 0.2, but it must be between 0 and peak (0.1)"),
        (lambda: WarmupCosine(0.1, warmup_steps=-1), "warmup_steps: got -1, but it must be at least 0"),
        (lambda: WarmupCosine(0.1, 10, 10), "decay_steps: got 10, but it must be greater than warmup_steps"),
        (lambda: ClipGradValue(0.0), "bound: got 0.0, but it must be greater than 0"),
        (lambda: ClipGradNorm(-1.0), "bound: got -1.0, but it must be greater than 0"),
    ):
        with pytest.raises(InputError) as error:
            build()
        assert str(error.value) == message


def test_streams_depend_on_seed_and_purpose() -> None:
    draws = {
        (seed, purpose): tuple(torch.rand(4, generator=stream(seed, purpose)).tolist())
        for seed in (0, 1, 2**32 - 1)
        for purpose in ("weights", "train", "test")
    }
    assert len(set(draws.values())) == len(draws)
    assert tuple(torch.rand(4, generator=stream(1, "train")).tolist()) == draws[1, "train"]
