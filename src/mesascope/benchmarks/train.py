"""Training speed: our step against the hand-written one, interleaved in one run, and the cost of drawing data."""

import statistics
import time
from collections.abc import Callable

import torch

from mesascope.benchmarks.handwritten import HandwrittenTraining
from mesascope.claims import Claim, MeasuredClaim, Threshold
from mesascope.errors import require
from mesascope.training.loop import TrainingState
from mesascope.training.presets import paper_trainings

STEP_RATIO = Claim(
    "bench.training_step",
    "Time of a training step of the 7-layer softmax model (batch 256, T 50, width 40, 4 heads of 20) divided by that "
    "of the same step written by hand in torch with scaled_dot_product_attention, both without drawing data",
    "measured against a peer in the same run",
    "not given",
    Threshold(high=1.0),
)
DATA_SHARE = Claim(
    "bench.data_share",
    "Time to draw a batch of 256 sequences divided by the time of the whole training step of the 7-layer softmax model",
    "measured in the same run",
    "not given",
    Threshold(high=0.05),
)


def bench_training(rounds: int = 30, threads: int = 2) -> tuple[MeasuredClaim, ...]:
    """Medians over `rounds` pairs of neighbouring steps; `values` hold the seconds behind each ratio, ours first.

    Args:
        rounds: timed steps of each kind, after two that are not timed.
        threads: CPU threads of both.
    """
    require(rounds >= 1, "rounds", rounds, "at least 1")
    require(threads >= 1, "threads", threads, "at least 1")
    previous = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _measure(rounds)
    finally:
        torch.set_num_threads(previous)


def _measure(rounds: int) -> tuple[MeasuredClaim, ...]:
    config = paper_trainings()["softmax-7"]
    state = TrainingState(config)
    peer = HandwrittenTraining(config.model, config.task.length, config.schedule(100), config.weight_decay)
    sequences = state.draw()

    def seconds(step: Callable[[], object]) -> float:
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin

    def ours() -> float:
        return seconds(lambda: state.update(sequences))

    def theirs() -> float:
        return seconds(lambda: peer.update(sequences.tokens, sequences.targets))

    pairs, draws = [], []
    for index in range(rounds + 2):
        # whoever runs second may find a warmer or a busier machine, so they take turns
        first, second = (ours, theirs) if index % 2 else (theirs, ours)
        timed = first(), second()
        pairs.append(timed if index % 2 else timed[::-1])
        draws.append(seconds(state.draw))
    pairs, draws = pairs[2:], draws[2:]
    mine, peers = (statistics.median(column) for column in zip(*pairs, strict=True))
    draw = statistics.median(draws)
    ratio = statistics.median(own / other for own, other in pairs)
    return (
        STEP_RATIO.measure(
            ratio,
            (mine, peers),
            f"median of {rounds} ratios of neighbouring steps; median seconds of ours and the peer",
        ),
        DATA_SHARE.measure(
            draw / (draw + mine), (draw, draw + mine), f"medians of {rounds}; seconds of drawing and of the step"
        ),
    )
