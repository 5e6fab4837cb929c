"""Timing runs against each other: neighbours in one process, so that whatever slows the machine slows both."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from mesascope.errors import require
from mesascope.training.memory import keep_freed_memory

Seconds = tuple[float, ...]
"""Seconds of the runs of one kind, one per round."""

_FEWEST = 3
"""Rounds that even a slow comparison gets, unless fewer are asked for."""
_SLOW = 1.0
"""Seconds of a round from which one round of warm-up is enough."""


def interleave(
    runs: Sequence[Callable[[], object]],
    rounds: int,
    *,
    budget: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Seconds, ...]:
    """Seconds of every run in every round; `runs[i]` and `runs[i + 1]` are neighbours in time.

    Whoever runs second may find a warmer or a busier machine, so rounds go through the runs forwards and backwards in
    turn. Two rounds of warm-up (one where a round takes a second) are not counted.

    Args:
        runs: what is timed.
        rounds: how often.
        budget: seconds after which a comparison should be done; slow ones get fewer rounds for it, at least 3.
        clock: seconds since any moment.
    """
    require(len(runs) >= 1, "runs", len(runs), "at least one run")
    require(rounds >= 1, "rounds", rounds, "at least 1")

    def one_round(index: int) -> Seconds:
        order = runs if index % 2 == 0 else tuple(reversed(runs))
        taken = []
        for run in order:
            begin = clock()
            run()
            taken.append(clock() - begin)
        return tuple(taken if index % 2 == 0 else reversed(taken))

    warm_up = sum(one_round(0))
    if warm_up < _SLOW:
        warm_up = sum(one_round(1))
    affordable = budget / warm_up if warm_up > 0 else float("inf")
    counted = min(rounds, max(_FEWEST, int(min(affordable, rounds))))
    return tuple(zip(*(one_round(index) for index in range(counted)), strict=True))


def ratios(own: Seconds, peer: Seconds) -> tuple[float, ...]:
    """What one took relative to the other in every round."""
    return tuple(mine / theirs for mine, theirs in zip(own, peer, strict=True))


def median_ratio(own: Seconds, peer: Seconds) -> float:
    """The median over rounds of what one took relative to the other."""
    return statistics.median(ratios(own, peer))


def quartiles(values: tuple[float, ...]) -> tuple[float, float]:
    """The first and the third quartile; both are the only value where there is one."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


@contextmanager
def as_in_training(count: int) -> Iterator[None]:
    """Run the body with `count` CPU threads, then put back the number there was; freed memory is kept from now on.

    The native kernels have memory of their own; without it torch would have page faults that it has in no training.
    """
    require(count >= 1, "threads", count, "at least 1")
    keep_freed_memory()
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
