"""Attention against its peers: time, operations per second, error and memory, in one process and interleaved."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mesascope.benchmarks.accuracy import relative_errors
from mesascope.benchmarks.attention_claims import MEMORY_SHAPE, MIDDLE, RATIO_CLAIMS, RatioClaim, judge
from mesascope.benchmarks.attention_result import AttentionResult, Comparisons, Record
from mesascope.benchmarks.flops import matmul_gflops
from mesascope.benchmarks.memory import can_measure_memory, measure_memory
from mesascope.benchmarks.methods import BOTH_PASSES, Method, Passes, Shape, draw_operands, prepare
from mesascope.benchmarks.ours import LINEAR, our_methods
from mesascope.benchmarks.peers import SDPA, peer_methods
from mesascope.benchmarks.timing import Seconds, as_in_training, interleave, median_ratio
from mesascope.errors import InputError, require

_BUDGET = 6.0
"""Seconds after which a comparison should be done: slow ones get fewer rounds."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        shapes: where times are measured.
        scaling: shapes of the figure of time against length.
        error_shape, memory_shape: where errors and memory are.
        peak_size: rows of the matrices whose product is the yardstick of operations per second.
        claims: claims about times.
        judged: whether to measure the claims about error and memory too, which name the shapes of `FULL`.
    """

    shapes: tuple[Shape, ...]
    scaling: tuple[Shape, ...]
    error_shape: Shape
    memory_shape: Shape
    peak_size: int
    claims: tuple[RatioClaim, ...] = ()
    judged: bool = False


_GRID = ((1024, 50, 20), (16, 512, 64), (16, 2048, 64), (1024, 50, 64), (256, 224, 20), (64, 128, 32), (8, 1024, 128))
FULL = Plan(
    tuple(Shape(*sizes) for sizes in _GRID),
    tuple(Shape(16, 2**power, 64) for power in range(6, 14)),
    MIDDLE,
    MEMORY_SHAPE,
    peak_size=2048,
    claims=RATIO_CLAIMS,
    judged=True,
)
QUICK = Plan(
    (Shape(8, 16, 8), Shape(4, 30, 5)), (Shape(4, 8, 4), Shape(4, 16, 4)), Shape(8, 16, 8), Shape(4, 256, 8), 128
)
"""Seconds instead of minutes, to see that everything runs; nothing is claimed about these shapes."""


def bench_attention(
    plan: Plan = FULL,
    rounds: int = 30,
    threads: int = 2,
    scaling: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> AttentionResult:
    """Measure every method that is available and fits, and the claims whose methods are.

    Args:
        plan: what to measure.
        rounds: timed runs of each kind; slow comparisons get fewer, at least 3.
        threads: CPU threads of all.
        scaling: whether to measure time against length, for the figure.
        say: told what is being measured.

    Raises:
        InputError: rounds or threads are not positive.
        WorkerError: the process that measures memory failed.
    """
    require(rounds >= 1, "rounds", rounds, "at least 1")
    begin = time.monotonic()
    with as_in_training(threads):
        (ours, missing), (peers, missing_peers) = our_methods(), peer_methods()
        result, methods = AttentionResult(threads, rounds, left_out=missing + missing_peers), [*ours, *peers]
        say("the peak of a matrix product")
        result.peak_gflops = matmul_gflops(plan.peak_size)
        comparisons: Comparisons = {}
        for shape in plan.shapes:
            pairs = [(claim.own, claim.peer) for claim in plan.claims if claim.shape == shape and claim.peer != SDPA]
            for passes in BOTH_PASSES:
                say(f"{shape}, {passes}")
                _measure_times(result, comparisons, methods, shape, passes, pairs)
        for shape in plan.scaling if scaling else ():
            say(f"time against length, {shape}")
            _measure_scaling(result, methods, shape)
        say("errors")
        result.errors = relative_errors(methods, plan.error_shape)
        for method in ours:
            if method.problem == "mesa" and method.fits(plan.memory_shape, "forward+backward") and can_measure_memory():
                say(f"memory of {method.name}")
                result.memory[method.name] = measure_memory(method.name, plan.memory_shape, threads)
    if plan.judged or plan.claims:
        result.claims = judge(plan.claims, comparisons, result, others=plan.judged)
    result.seconds = time.monotonic() - begin
    return result


def _measure_times(
    result: AttentionResult,
    comparisons: Comparisons,
    methods: Sequence[Method],
    shape: Shape,
    passes: Passes,
    claimed: Sequence[tuple[str, str]],
) -> None:
    """Every method against torch's softmax attention and, in both passes, the pairs that claims are about."""
    runs = _prepare_all(result, methods, shape, passes)
    pairs = [(name, SDPA) for name in runs if name != SDPA]
    if passes == "forward+backward":
        pairs += [pair for pair in claimed if set(pair) <= runs.keys()]
    by_name = {method.name: method for method in methods}
    softmax: Seconds = ()
    for own, peer in pairs:
        mine, theirs = interleave((runs[own], runs[peer]), result.rounds, budget=_BUDGET)
        if passes == "forward+backward":
            comparisons[own, peer, shape] = mine, theirs
        if peer == SDPA:
            result.records.append(Record.of(by_name[own], shape, passes, mine, median_ratio(mine, theirs)))
            softmax += theirs
    result.records.append(Record.of(by_name[SDPA], shape, passes, softmax, 1.0))


def _prepare_all(
    result: AttentionResult, methods: Sequence[Method], shape: Shape, passes: Passes
) -> dict[str, Callable[[], object]]:
    """The runs of the methods that fit and take the shape, by name; the others are noted as skipped."""
    operands, runs = draw_operands(shape), {}
    for method in methods:
        if not method.fits(shape, passes):
            result.skip(method.name, shape, passes, "too much time or memory")
            continue
        run = prepare(method, operands, passes)
        try:
            run()
        except InputError as error:
            result.skip(method.name, shape, passes, str(error))
        else:
            runs[method.name] = run
    return runs


def _measure_scaling(result: AttentionResult, methods: Sequence[Method], shape: Shape) -> None:
    """The fastest form of the mesa layer, linear attention and torch's softmax attention, in one sweep."""
    by_name = {method.name: method for method in methods}
    mesa = next(method for method in methods if method.problem == "mesa")
    for passes in BOTH_PASSES:
        runs = _prepare_all(result, (mesa, by_name[SDPA], by_name[LINEAR]), shape, passes)
        timed = dict(zip(runs, interleave(tuple(runs.values()), result.rounds, budget=_BUDGET), strict=True))
        for name, seconds in timed.items():
            ratio = median_ratio(seconds, timed[SDPA])
            result.scaling.append(Record.of(by_name[name], shape, passes, seconds, ratio))
