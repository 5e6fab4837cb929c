"""Whether native kernels of linear maps, MLPs and LayerNorm are faster than torch where `ops/dense.py` uses them."""

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mesascope.benchmarks.timing import as_in_training, interleave, quartiles, ratios
from mesascope.claims import Claim, MeasuredClaim, Threshold
from mesascope.errors import InputError, require
from mesascope.ops import dense
from mesascope.ops.kernels import NEEDED_BY_KERNELS, native_kernels

TOKENS, WIDTHS = (1024, 2048, 4096, 12_800), (20, 40, 64, 128, 256)
"""Sizes that are measured: 12,800 tokens of 40 numbers are a batch of the paper's trainings."""

_EPSILON = 1e-5
_BUDGET = 4.0
"""Seconds after which a comparison should be done: slow ones get fewer rounds."""


@dataclass(frozen=True)
class DenseOperator:
    """One of the operators of `ops/dense.py`, computed in two ways.

    Attributes:
        name: what it is.
        native, in_torch: functions of rows and weights.
        weights: shapes of the weights for rows of so many numbers.
        uses_kernel: whether rows with weights are left to the kernel.
    """

    name: str
    native: Callable[..., Any]
    in_torch: Callable[..., Any]
    weights: Callable[[int], Sequence[tuple[int, ...]]]
    uses_kernel: Callable[..., bool]

    @property
    def claim(self) -> Claim:
        """That the kernel is not used where torch is faster."""
        identifier = f"bench.{self.name.lower().replace(' ', '_')}"
        statement = (
            f"Time of {self.name} by the native kernel divided by that of torch, forward and backward in float32: the "
            "largest ratio among the measured sizes at which the kernel is used"
        )
        return Claim(identifier, statement, "measured against a peer in the same run", "not given", Threshold(high=1.0))


OPERATORS = (
    DenseOperator(
        "linear maps",
        dense.NativeMaps.apply,
        dense.linear_maps_product,
        lambda width: 3 * [(width, width)],
        dense.uses_kernel,
    ),
    DenseOperator(
        "MLP",
        dense.NativeMLP.apply,
        dense.gelu_mlp_product,
        lambda width: [(4 * width, width), (width, 4 * width)],
        dense.uses_kernel,
    ),
    DenseOperator(
        "LayerNorm",
        lambda *operands: dense.NativeNorm.apply(*operands, _EPSILON),  # type: ignore[no-untyped-call]
        functools.partial(dense.layer_norm_in_torch, epsilon=_EPSILON),
        lambda width: 2 * [(width,)],
        dense.norm_uses_kernel,
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
        rounds: how many that are.
        ratio, low, high: median and quartiles over rounds of the time of the kernel divided by that of torch beside it.
    """

    operator: str
    tokens: int
    width: int
    native: bool
    seconds: float
    torch_seconds: float
    rounds: int
    ratio: float
    low: float
    high: float


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
    with as_in_training(threads):
        if native_kernels() is None:
            raise InputError(
                f"bench dense: there are no native kernels; they need {NEEDED_BY_KERNELS} at installation, and are "
                "hidden by MESASCOPE_NATIVE=0"
            )
        return tuple(
            _measure(operator, count, width, rounds) for operator in OPERATORS for width in widths for count in tokens
        )


def judge_dense(records: Sequence[DenseRecord]) -> tuple[MeasuredClaim, ...]:
    """The claims about the sizes at which kernels are used; none about an operator that has no such size."""
    used = {
        operator: tuple(record.ratio for record in records if record.native and record.operator == operator.name)
        for operator in OPERATORS
    }
    note = "medians of ratios of neighbouring runs"
    return tuple(operator.claim.measure(max(found), found, note) for operator, found in used.items() if found)


def draw_operands(operator: DenseOperator, tokens: int, width: int) -> tuple[Tensor, ...]:
    """Normal rows, and normal weights of which matrices leave numbers as large as they are."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(tokens, width, generator=generator)
    drawn = (torch.randn(shape, generator=generator) for shape in operator.weights(width))
    weights = (weight / weight.shape[1] ** 0.5 if weight.dim() == 2 else weight for weight in drawn)
    return tuple(operand.requires_grad_() for operand in (rows, *weights))


def results(function: Callable[..., Any], operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What a function returns, as a tuple."""
    returned = function(*operands)
    return returned if isinstance(returned, tuple) else (returned,)


def _measure(operator: DenseOperator, tokens: int, width: int, rounds: int) -> DenseRecord:
    operands = draw_operands(operator, tokens, width)
    gradients = [torch.randn_like(y) for y in results(operator.in_torch, operands)]

    def both_passes(function: Callable[..., Any]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(results(function, operands), operands, gradients)

    own, peer = interleave((both_passes(operator.native), both_passes(operator.in_torch)), rounds, budget=_BUDGET)
    compared = ratios(own, peer)
    return DenseRecord(
        operator.name,
        tokens,
        width,
        operator.uses_kernel(*operands),
        statistics.median(own),
        statistics.median(peer),
        len(own),
        statistics.median(compared),
        *quartiles(compared),
    )
