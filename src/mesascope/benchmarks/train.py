"""Training speed: our step against the hand-written one, interleaved in one run, and the cost of drawing data."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

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


def bench_training(rounds: int = 15, threads: int = 2) -> tuple[MeasuredClaim, ...]:
    """Medians over `rounds` interleaved steps; `values` hold the seconds behind each ratio, ours first.

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
    config = replace(paper_trainings()["softmax-7"], weight_decay=0.05)
    state = TrainingState(config)
    peer = HandwrittenTraining(config.model, config.task.length, config.schedule(100), config.weight_decay)
    sequences = state.draw()
    timed: dict[str, list[float]] = {"draw": [], "ours": [], "peer": []}
    steps: dict[str, Callable[[], object]] = {
        "draw": state.draw,
        "ours": lambda: state.update(sequences),
        "peer": lambda: peer.update(sequences.tokens, sequences.targets),
    }
    for round_index in range(rounds + 2):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if round_index >= 2:
                timed[name].append(time.perf_counter() - begin)
    draw, ours, theirs = (statistics.median(timed[name]) for name in ("draw", "ours", "peer"))
    return (
        STEP_RATIO.measure(ours / theirs, (ours, theirs), f"medians of {rounds}; seconds of ours and of the peer"),
        DATA_SHARE.measure(
            draw / (draw + ours), (draw, draw + ours), f"medians of {rounds}; seconds of drawing and of the step"
        ),
    )
