"""Where the native kernels of linear maps, MLPs and LayerNorm are faster than torch: the limits of `ops/dense.py`."""

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mesascope.benchmarks.timing import interleave, median_ratio, torch_threads
from mesascope.claims import Claim, MeasuredClaim, Threshold
from mesascope.errors import require
from mesascope.ops import dense
from mesascope.ops.kernels import NEEDED_BY_KERNELS, native_kernels

TOKENS, WIDTHS = (1024, 2048, 4096, 12_800), (20, 40, 64, 128, 256)
"""Sizes that are measured: 12,800 tokens of 40 numbers are a batch of the paper's trainings."""

_EPSILON = 1e-5
_BUDGET = 2.0
"""Seconds after which a comparison should be done: slow ones get fewer rounds."""


@dataclass(frozen=True)
class Operator:
    """One of the operators of `ops/dense.py`, computed in two ways.

    Attributes:
        name: what it is.
        native, in_torch: functions of rows and weights.
        weights: shapes of the weights for rows of so many numbers.
        taken: whether rows with weights are left to the kernel.
    """

    name: str
    native: Callable[..., Any]
    in_torch: Callable[..., Any]
    weights: Callable[[int], Sequence[tuple[int, ...]]]
    taken: Callable[..., bool]

    @property
    def claim(self) -> Claim:
        """That the limits are well chosen."""
        identifier = f"bench.{self.name.lower().replace(' ', '_')}"
        statement = (
            f"Time of {self.name} by the native kernel divided by that of torch, forward and backward in float32: the "
            f"largest of the sizes at which the kernel is used, among {_listed(TOKENS)} tokens of {_listed(WIDTHS)} "
            "numbers"
        )
        return Claim(identifier, statement, "measured against a peer in the same run", "not given", Threshold(high=1.0))


OPERATORS = (
    Operator(
        "linear maps",
        dense.NativeMaps.apply,
        dense.linear_maps_product,
        lambda width: 3 * [(width, width)],
        dense.takes,
    ),
    Operator(
        "MLP",
        dense.NativeMLP.apply,
        dense.gelu_mlp_product,
        lambda width: [(4 * width, width), (width, 4 * width)],
        dense.takes,
    ),
    Operator(
        "LayerNorm",
        lambda *operands: dense.NativeNorm.apply(*operands, _EPSILON),  # type: ignore[no-untyped-call]
        functools.partial(dense.layer_norm_in_torch, epsilon=_EPSILON),
        lambda width: 2 * [(width,)],
        dense.takes_norm,
    ),
)
"""Three maps of the same rows, such as queries, keys and values; an MLP whose hidden layer is four times as wide."""


@dataclass(frozen=True)
class DenseRecord:
    """Both passes of an operator.

    Attributes:
        operator: its name.
        tokens, width: rows, and numbers in each.
        native: whether the kernel is used at this size.
        seconds, torch_seconds: medians over rounds.
        ratio: median over rounds of the time of the kernel divided by that of torch beside it.
    """

    operator: str
    tokens: int
    width: int
    native: bool
    seconds: float
    torch_seconds: float
    ratio: float


def bench_dense(
    rounds: int = 30, threads: int = 2, tokens: Sequence[int] = TOKENS, widths: Sequence[int] = WIDTHS
) -> tuple[DenseRecord, ...]:
    """Every operator at every size by its kernel and by torch, in turn.

    Args:
        rounds: timed runs of each kind; slow comparisons get fewer, at least 3.
        threads: CPU threads of both.
        tokens, widths: sizes.

    Raises:
        InputError: rounds or threads are not positive, or there are no kernels.
    """
    require(rounds >= 1, "rounds", rounds, "at least 1")
    require(native_kernels() is not None, "native kernels", None, f"there: install again with {NEEDED_BY_KERNELS}")
    with torch_threads(threads):
        return tuple(
            _measure(operator, count, width, rounds) for operator in OPERATORS for width in widths for count in tokens
        )


def judge_dense(records: Sequence[DenseRecord]) -> tuple[MeasuredClaim, ...]:
    """The claims about the sizes at which kernels are used, which have to be among the records."""
    measured = []
    for operator in OPERATORS:
        ratios = [record.ratio for record in records if record.operator == operator.name and record.native]
        measured.append(operator.claim.measure(max(ratios), tuple(ratios), "medians of ratios of neighbouring runs"))
    return tuple(measured)


def _measure(operator: Operator, tokens: int, width: int, rounds: int) -> DenseRecord:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        """Numbers that leave those of a product with them as large as before."""
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).requires_grad_()

    operands = draw(tokens, width), *(draw(*shape) for shape in operator.weights(width))
    gradients = [torch.randn(y.shape, generator=generator) for y in _results(operator.in_torch, operands)]

    def both_passes(function: Callable[..., Any]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(_results(function, operands), operands, gradients)

    own, peer = interleave((both_passes(operator.native), both_passes(operator.in_torch)), rounds, budget=_BUDGET)
    medians = statistics.median(own), statistics.median(peer)
    return DenseRecord(operator.name, tokens, width, operator.taken(*operands), *medians, median_ratio(own, peer))


def _results(function: Callable[..., Any], operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    results = function(*operands)
    return results if isinstance(results, tuple) else (results,)


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(f'{number:,}' for number in numbers[:-1])} and {numbers[-1]:,}"
