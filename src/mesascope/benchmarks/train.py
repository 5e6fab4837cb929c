"""Training speed: our steps against peers, interleaved in one run, and the cost of drawing data."""

import statistics

from mesascope.benchmarks.cholesky import with_cholesky
from mesascope.benchmarks.handwritten import HandwrittenTraining
from mesascope.benchmarks.timing import as_in_training, interleave, median_ratio
from mesascope.claims import Claim, MeasuredClaim, Threshold
from mesascope.errors import require
from mesascope.training.loop import TrainingState
from mesascope.training.presets import paper_trainings

_PEER = "measured against a peer in the same run"
STEP_RATIO = Claim(
    "bench.training_step",
    "Time of a training step of the 7-layer softmax model (batch 256, T 50, width 40, 4 heads of 20) divided by that "
    "of the same step written by hand in torch with scaled_dot_product_attention, both without drawing data",
    _PEER,
    "not given",
    Threshold(high=1.0),
)
NATIVE_STEP_RATIO = Claim(
    "bench.training_step_native",
    f"{STEP_RATIO.statement}: the same number, against what native kernels have to reach",
    _PEER,
    "not given",
    Threshold(high=0.60),
)
HYBRID_STEP_RATIO = Claim(
    "bench.training_step_hybrid",
    "Time of a training step of the model of one softmax and one mesa layer (batch 256, T 50, width 40, 4 heads of "
    "20) divided by that of the same step with the mesa layer as a batched Cholesky factorisation in torch, both "
    "without drawing data",
    _PEER,
    "not given",
    Threshold(high=0.35),
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
        threads: CPU threads of all.
    """
    require(rounds >= 1, "rounds", rounds, "at least 1")
    with as_in_training(threads):
        return (*_softmax_claims(rounds), _hybrid_claim(rounds))


def _softmax_claims(rounds: int) -> tuple[MeasuredClaim, ...]:
    config = paper_trainings()["softmax-7"]
    state = TrainingState(config)
    peer = HandwrittenTraining(config.model, config.task.length, config.schedule(100), config.weight_decay)
    sequences = state.draw()
    own, theirs, draws = interleave(
        (
            lambda: state.update(sequences),
            lambda: peer.update(sequences.tokens, sequences.targets),
            state.draw,
        ),
        rounds,
    )
    mine, draw = statistics.median(own), statistics.median(draws)
    measured = median_ratio(own, theirs), (mine, statistics.median(theirs)), _note(rounds)
    return (
        STEP_RATIO.measure(*measured),
        NATIVE_STEP_RATIO.measure(*measured),
        DATA_SHARE.measure(
            draw / (draw + mine), (draw, draw + mine), f"medians of {rounds}; seconds of drawing and of the step"
        ),
    )


def _hybrid_claim(rounds: int) -> MeasuredClaim:
    config = paper_trainings()["hybrid-mesa"]
    state, peer = TrainingState(config), TrainingState(config)
    with_cholesky(peer.model)
    sequences = state.draw()
    own, theirs = interleave((lambda: state.update(sequences), lambda: peer.update(sequences)), rounds)
    seconds = statistics.median(own), statistics.median(theirs)
    return HYBRID_STEP_RATIO.measure(median_ratio(own, theirs), seconds, _note(rounds))


def _note(rounds: int) -> str:
    return f"median of {rounds} ratios of neighbouring steps; median seconds of ours and the peer"
