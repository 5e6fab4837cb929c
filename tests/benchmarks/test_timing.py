"""Rounds are interleaved, medians are over neighbours, and slow comparisons get fewer rounds. No time is asserted."""

from collections.abc import Callable

import pytest
import torch

from mesascope.benchmarks.timing import as_in_training, interleave, median_ratio, quartiles
from mesascope.errors import InputError


class Machine:
    """A clock that only moves while something runs, and a log of what ran."""

    def __init__(self) -> None:
        self.now, self.ran = 0.0, ""

    def clock(self) -> float:
        return self.now

    def run(self, name: str, *seconds: float) -> Callable[[], None]:
        """A run that takes the given seconds one after the other, the last of them from then on."""
        left = list(seconds)

        def go() -> None:
            self.ran += name
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return go


def test_rounds_go_forwards_and_backwards_in_turn() -> None:
    machine = Machine()
    runs = [machine.run(name, seconds) for name, seconds in (("a", 0.1), ("b", 0.2), ("c", 0.3))]
    timed = interleave(runs, 3, clock=machine.clock)
    warm_up, counted = machine.ran[:6], machine.ran[6:]
    assert warm_up == "abccba"
    assert counted == "abccbaabc"
    for seconds, expected in zip(timed, (0.1, 0.2, 0.3), strict=True):
        assert seconds == pytest.approx((expected,) * 3)


def test_the_warm_up_is_not_counted() -> None:
    machine = Machine()
    (seconds,) = interleave([machine.run("a", 0.9, 0.8, 0.1)], 4, clock=machine.clock)
    assert seconds == pytest.approx((0.1,) * 4)


@pytest.mark.parametrize(
    ("rounds", "seconds", "budget", "counted"),
    [(30, 0.1, 100.0, 30), (30, 0.1, 1.0, 10), (30, 0.1, 0.01, 3), (2, 0.1, 0.01, 2), (1, 0.1, 100.0, 1)],
)
def test_a_budget_limits_the_rounds_to_at_least_three(rounds: int, seconds: float, budget: float, counted: int) -> None:
    machine = Machine()
    (timed,) = interleave([machine.run("a", seconds * 1.0001 if budget > 1 else seconds * 0.9999)], rounds,
                          budget=budget, clock=machine.clock)  # fmt: skip
    assert len(timed) == counted
    assert machine.ran == "a" * (counted + 2)


def test_slow_runs_are_warmed_up_once() -> None:
    machine = Machine()
    assert len(interleave([machine.run("a", 2.0)], 30, budget=6.0, clock=machine.clock)[0]) == 3
    assert machine.ran == "aaaa"


def test_a_clock_that_does_not_move_is_no_division_by_zero() -> None:
    assert interleave([lambda: None], 2, budget=1.0, clock=lambda: 0.0) == ((0.0, 0.0),)


def test_ratio_is_the_median_over_neighbours() -> None:
    # the machine was busy in the second and third round: medians of the columns would give 2 / 10
    assert median_ratio((1.0, 20.0, 2.0, 1.0), (2.0, 40.0, 10.0, 2.0)) == 0.5
    with pytest.raises(ValueError, match="shorter"):
        median_ratio((1.0, 2.0), (1.0,))


def test_quartiles() -> None:
    assert quartiles((5.0, 1.0, 2.0, 4.0, 3.0)) == (2.0, 4.0)
    assert quartiles((3.0,)) == (3.0, 3.0)


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with as_in_training(before + 1):
        assert torch.get_num_threads() == before + 1
    with pytest.raises(KeyError), as_in_training(before + 2):
        raise KeyError
    assert torch.get_num_threads() == before
    with pytest.raises(InputError, match="threads: got 0, but it must be at least 1"), as_in_training(0):
        pass


def test_nothing_to_time() -> None:
    with pytest.raises(InputError, match="runs: got 0, but it must be at least one run"):
        interleave([], 3)
    with pytest.raises(InputError, match="rounds: got 0, but it must be at least 1"):
        interleave([lambda: None], 0)
