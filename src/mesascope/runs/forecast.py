"""How long trainings will take on this machine: a step of each kind is timed before any of them starts.

The steps are timed in as many processes at once as will train, since processes slow each other down. What is not
counted: starting processes, and whatever else the machine will do meanwhile.
"""

import heapq
import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from mesascope.runs.store import RunStore
from mesascope.training.config import EVALUATION_BATCH, ConstantRate, TrainingConfig
from mesascope.training.loop import TrainingState

Result = TypeVar("Result")

_ROUNDS = 3
_FIRST_SEQUENCES = 8
_LONGEST = 1.0
"""Seconds that one timed step may take; of larger ones a part is timed."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimiser step and of one evaluation of a training."""

    step: float
    evaluation: float


def expected_seconds(configs: Mapping[str, TrainingConfig], store: RunStore, workers: int) -> dict[str, float]:
    """Seconds until each training that is not finished will be, by its label in `configs`, the longest first.

    Args:
        configs: trainings by label; of each kind of step one is timed, which takes a second or two.
        store: where run folders lie; steps before a checkpoint are not counted.
        workers: how many will train at once.

    Raises:
        CheckpointError: a checkpoint is corrupted.
    """
    left = {label: steps for label, config in configs.items() if (steps := store.steps_left(config)) > 0}
    kinds = list({_kind(configs[label]) for label in left})
    times = dict(zip(kinds, _time_all(kinds, workers), strict=True))
    seconds = {}
    for label, steps in left.items():
        time_of = times[_kind(configs[label])]
        evaluations = steps // configs[label].evaluate_every + 1
        seconds[label] = steps * time_of.step + evaluations * time_of.evaluation
    return dict(sorted(seconds.items(), key=lambda item: item[1], reverse=True))


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Seconds until all is done when each of `workers` takes the longest that is left as soon as it is free."""
    free = [0.0] * workers
    for length in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def time_step(config: TrainingConfig) -> StepTime:
    """Time one step and one evaluation of a training, on fresh weights that do not change."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        passed = min(config.micro_batch, config.batch_size)
        first = _state(config, min(_FIRST_SEQUENCES, passed))
        part = first.config.batch_size
        first.update(first.draw())
        _, estimate = _timed(lambda: first.update(first.draw()))
        if estimate * passed / part > _LONGEST:
            passed = max(part, int(_LONGEST / estimate * part))
        state = _state(config, passed)
        step = statistics.median(_timed(lambda: state.update(state.draw()))[1] for _ in range(_ROUNDS))
        sequences, _ = _timed(state.draw)
        with torch.no_grad():
            test = statistics.median(_timed(lambda: state.loss(sequences))[1] for _ in range(_ROUNDS))
    finally:
        torch.set_num_threads(threads)
    tested = EVALUATION_BATCH * config.evaluation_batches
    return StepTime(step * config.batch_size / passed, test * tested / passed)


def _kind(config: TrainingConfig) -> TrainingConfig:
    """The configuration without what does not change the time of a step."""
    return replace(
        config,
        schedule=ConstantRate(1e-30),
        weight_decay=0.0,
        steps=1,
        seed=0,
        evaluate_every=1,
        checkpoint_every=1,
        snapshot_every=None,
    )


def _state(config: TrainingConfig, batch_size: int) -> TrainingState:
    return TrainingState(replace(_kind(config), batch_size=batch_size))


def _time_all(kinds: list[TrainingConfig], workers: int) -> list[StepTime]:
    if workers == 1 or len(kinds) <= 1:
        return [time_step(kind) for kind in kinds]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(kinds)), context, _ignore_interrupts) as pool:
        return list(pool.map(time_step, kinds))


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _timed(action: Callable[[], Result]) -> tuple[Result, float]:
    begin = time.perf_counter()
    result = action()
    return result, time.perf_counter() - begin
