"""What is claimed about the speed, the accuracy and the memory of attention."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from mesascope.benchmarks.attention_result import AttentionResult, Comparisons
from mesascope.benchmarks.methods import Shape
from mesascope.benchmarks.ours import LINEAR, NATIVE, SOFTMAX
from mesascope.benchmarks.peers import FLA_CG, MASKED_PRODUCT, SDPA
from mesascope.benchmarks.timing import median_ratio
from mesascope.claims import Claim, MeasuredClaim, Threshold

PAPER, MIDDLE, LONG = Shape(1024, 50, 20), Shape(16, 512, 64), Shape(16, 2048, 64)
"""A batch of 256 of the paper's sequences with 4 heads; a common size; four times as long."""
MEMORY_SHAPE = Shape(16, 16_384, 64)


@dataclass(frozen=True)
class RatioClaim:
    """A claim about the time of one method divided by that of another, both forward and backward.

    Attributes:
        claim: what is claimed.
        own, peer: names of the methods; the time of `own` is divided by that of `peer`.
        shape: where.
    """

    claim: Claim
    own: str
    peer: str
    shape: Shape


def _ratio(identifier: str, what: str, own: str, peer: str, shape: Shape, threshold: Threshold) -> RatioClaim:
    statement = f"Time of {what}, forward and backward in float32, at {shape}"
    source = "measured against a peer in the same run"
    return RatioClaim(Claim(f"bench.{identifier}", statement, source, "not given", threshold), own, peer, shape)


_MESA = "exact mesa attention (native kernels) divided by that of torch's causal scaled_dot_product_attention"
RATIO_CLAIMS = (
    _ratio("mesa_paper_size", _MESA, NATIVE, SDPA, PAPER, Threshold(high=0.40)),
    _ratio("mesa_512", _MESA, NATIVE, SDPA, MIDDLE, Threshold(high=0.22)),
    _ratio("mesa_2048", _MESA, NATIVE, SDPA, LONG, Threshold(high=0.10)),
    _ratio(
        "softmax_paper_size",
        "softmax attention divided by that of torch's causal scaled_dot_product_attention",
        *(SOFTMAX, SDPA, PAPER, Threshold(high=0.45)),
    ),
    _ratio(
        "linear_paper_size",
        "linear attention divided by that of the masked product (q k^T).tril() v in torch",
        *(LINEAR, MASKED_PRODUCT, PAPER, Threshold(high=0.25)),
    ),
    _ratio(
        "conjugate_gradients",
        "the mesa layer by 30 steps of conjugate gradients (reference of fla-core) divided by that of the exact one "
        "(native kernels)",
        *(FLA_CG, NATIVE, MIDDLE, Threshold(low=40)),
    ),
)

ERROR_CLAIM = Claim(
    "bench.conjugate_gradients_error",
    "Error of the mesa layer by 30 steps of conjugate gradients (reference of fla-core) divided by that of the exact "
    "one (native kernels), both in float32 and against a float64 solve per step, relative and root mean square, at "
    f"{MIDDLE}, keys of norm 1, ridge 1",
    "measured against a peer in the same run",
    "not given",
    Threshold(low=100),
)
MEMORY_CLAIM = Claim(
    "bench.mesa_memory",
    "Growth of the resident memory of a fresh process by one forward and backward pass of mesa attention (native "
    f"kernels) and its operands, divided by the size of q, k, v, o and their gradients, float32, at {MEMORY_SHAPE}",
    "counted in a process of its own",
    "not given",
    Threshold(high=4.0),
)


def judge(
    ratios: Iterable[RatioClaim], comparisons: Comparisons, result: AttentionResult, *, others: bool
) -> tuple[MeasuredClaim, ...]:
    """The claims for which everything was measured; a line in `result.left_out` for each other one.

    Args:
        ratios: claims about times.
        comparisons: what ran beside what.
        result: errors and memory.
        others: whether the claims about error and memory are wanted.
    """
    measured = []
    for ratio in ratios:
        seconds = comparisons.get((ratio.own, ratio.peer, ratio.shape))
        if seconds is None:
            result.left_out.append(f"{ratio.claim.id} is not measured: it needs {ratio.own} and {ratio.peer}")
            continue
        values = tuple(statistics.median(column) for column in seconds)
        note = f"median of {len(seconds[0])} ratios of neighbouring runs; median seconds of the two"
        measured.append(ratio.claim.measure(median_ratio(*seconds), values, note))
    if others and {FLA_CG, NATIVE} <= result.errors.keys():
        errors = result.errors[FLA_CG], result.errors[NATIVE]
        measured.append(ERROR_CLAIM.measure(errors[0] / errors[1], errors, "relative errors of the two"))
    elif others:
        result.left_out.append(f"{ERROR_CLAIM.id} is not measured: it needs {FLA_CG} and {NATIVE}")
    if others and NATIVE in result.memory:
        memory = result.memory[NATIVE]
        note = "bytes of the growth and of the tensors"
        measured.append(MEMORY_CLAIM.measure(memory.ratio, (memory.growth, memory.operands), note))
    elif others:
        result.left_out.append(f"{MEMORY_CLAIM.id} is not measured: it needs {NATIVE}, and Linux")
    return tuple(measured)
