"""Forecasts count what is missing and know how work is shared among workers; how fast a machine is, no test says."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesascope.errors import CheckpointError
from mesascope.runs import RunStore, expected_seconds, forecast, makespan, train_all
from mesascope.runs.forecast import StepTime, time_step
from mesascope.training.loop import TrainingState
from training.tiny import HYBRID, LINEAR, varied


def shortest(lengths: list[int], workers: int) -> int:
    """The shortest possible time, by trying every distribution."""
    ways = itertools.product(range(workers), repeat=len(lengths))
    return min(
        max(sum(length for length, at in zip(lengths, way, strict=True) if at == worker) for worker in range(workers))
        for way in ways
    )


@given(st.lists(st.integers(0, 20), max_size=6), st.integers(1, 3))
def test_makespan_is_that_of_the_longest_first(lengths: list[int], workers: int) -> None:
    best, found = shortest(lengths, workers), makespan(lengths, workers)
    # Graham's bound for this rule
    assert best <= found <= (4 / 3 - 1 / (3 * workers)) * best + 1e-9


def test_makespan_of_known_cases() -> None:
    assert makespan([], 2) == 0
    assert makespan([3.0, 1.0, 2.0], 1) == 6.0
    assert makespan([3.0, 3.0, 2.0, 2.0, 2.0], 2) == 7.0


@pytest.fixture
def known_times(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A step takes 2 seconds and an evaluation 5; returns the configurations that were timed."""
    timed: list[object] = []

    def time(config: object) -> StepTime:
        timed.append(config)
        return StepTime(2.0, 5.0)

    monkeypatch.setattr(forecast, "time_step", time)
    return timed


def test_expected_seconds(tmp_path: Path, known_times: list[object]) -> None:
    store = RunStore(tmp_path)
    finished = varied(LINEAR, steps=4)
    train_all({"finished": finished}, store, 1)
    configs = {
        "finished": finished,
        "short": varied(LINEAR, steps=100),
        "long": varied(LINEAR, steps=300, seed=2, weight_decay=0.3),
        "hybrid": varied(HYBRID, steps=200),
    }
    found = expected_seconds(configs, store, 1)
    assert list(found.items()) == [
        ("long", 300 * 2.0 + 7 * 5.0),
        ("hybrid", 200 * 2.0 + 21 * 5.0),
        ("short", 100 * 2.0 + 3 * 5.0),
    ]
    assert len(known_times) == 2


def test_steps_before_a_checkpoint_are_not_expected(tmp_path: Path, known_times: list[object]) -> None:
    config, store = varied(HYBRID, steps=60, checkpoint_every=15), RunStore(tmp_path)

    def interrupt(label: str, progress: object) -> None:
        if progress.step == 40:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_all({"hybrid": config}, store, 1, interrupt)
    assert store.steps_left(config) == 30
    assert expected_seconds({"hybrid": config}, store, 1) == {"hybrid": 30 * 2.0 + 4 * 5.0}
    (store.folder(config) / "checkpoint.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="corrupted checkpoint"):
        expected_seconds({"hybrid": config}, store, 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_timing_leaves_no_trace(tmp_path: Path, workers: int) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    found = expected_seconds({"linear": LINEAR, "hybrid": HYBRID}, RunStore(tmp_path / "runs"), workers)
    assert set(found) == {"linear", "hybrid"}
    assert all(seconds > 0 for seconds in found.values())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert not (tmp_path / "runs").exists()


def test_a_part_of_a_long_step_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sequence takes a second by a clock that counts them, so a step of 4,000 is known from a few."""
    clock, largest = [0.0], [0]
    update, loss = TrainingState.update, TrainingState.loss

    def counted(state: TrainingState, sequences: object) -> float:
        clock[0] += state.config.batch_size
        largest[0] = max(largest[0], state.config.batch_size)
        return update(state, sequences)  # type: ignore[arg-type]

    def counted_loss(state: TrainingState, sequences: object) -> torch.Tensor:
        if not torch.is_grad_enabled():
            clock[0] += 0.25 * state.config.batch_size
        return loss(state, sequences)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainingState, "update", counted)
    monkeypatch.setattr(TrainingState, "loss", counted_loss)
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: clock[0])
    times = time_step(varied(LINEAR, batch_size=4000, micro_batch=4000, evaluation_batches=2))
    assert times == StepTime(4000.0, 0.25 * 512)
    assert largest[0] == 8
