"""What the attention benchmark measures, as data."""

import statistics
from dataclasses import dataclass, field
from typing import Any

from mesascope.benchmarks.flops import FORMULAS, flops
from mesascope.benchmarks.memory import Memory
from mesascope.benchmarks.methods import Method, Passes, Shape
from mesascope.benchmarks.peers import fla_version
from mesascope.benchmarks.timing import Seconds, quartiles
from mesascope.claims import MeasuredClaim
from mesascope.environment import describe_environment

Comparisons = dict[tuple[str, str, Shape], tuple[Seconds, Seconds]]
"""Seconds forward and backward of two methods, by name, that ran beside each other."""


@dataclass(frozen=True)
class Record:
    """Time of a method at a shape.

    Attributes:
        method: its name.
        shape, passes: what was run.
        seconds, low, high: median over rounds, and quartiles.
        rounds: how many that are.
        ratio: median over rounds of its time divided by that of torch's scaled_dot_product_attention beside it.
        gflops: 10^9 operations per second, by `flops.FORMULAS`.
    """

    method: str
    shape: Shape
    passes: Passes
    seconds: float
    low: float
    high: float
    rounds: int
    ratio: float
    gflops: float

    @classmethod
    def of(cls, method: Method, shape: Shape, passes: Passes, seconds: Seconds, ratio: float) -> "Record":
        """The record of timed rounds."""
        median, (low, high) = statistics.median(seconds), quartiles(seconds)
        rate = flops(method.problem, shape, passes) / median / 1e9
        return cls(method.name, shape, passes, median, low, high, len(seconds), ratio, rate)

    def to_json(self) -> dict[str, Any]:
        """Plain values; heads, time and dim are the shape's."""
        rest = {name: value for name, value in vars(self).items() if name not in ("method", "shape")}
        return {"method": self.method, **vars(self.shape), **rest}


@dataclass
class AttentionResult:
    """All that was measured.

    Attributes:
        threads, rounds: how.
        peak_gflops: 10^9 operations per second of a large matrix product.
        records: times on the grid of shapes.
        scaling: times over the length of the sequence.
        errors: relative errors of mesa methods in float32, by name.
        memory: of a forward and backward pass, by name.
        claims: those whose methods are available.
        left_out: what was not measured, and why.
        skipped: where a method was not measured, by its name and the reason.
        seconds: time of the benchmark.
    """

    threads: int
    rounds: int
    peak_gflops: float = 0.0
    records: list[Record] = field(default_factory=list)
    scaling: list[Record] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)
    claims: tuple[MeasuredClaim, ...] = ()
    left_out: list[str] = field(default_factory=list)
    skipped: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    seconds: float = 0.0

    def skip(self, name: str, shape: Shape, passes: Passes, reason: str) -> None:
        """Note that a method was not measured somewhere."""
        places = self.skipped.setdefault((name, reason), [])
        place = f"{shape} ({passes})"
        if place not in places:
            places.append(place)

    @property
    def omissions(self) -> list[str]:
        """Everything that was not measured, in one line per reason."""
        places = [f"{name} is left out at {'; '.join(at)}: {why}" for (name, why), at in self.skipped.items()]
        return self.left_out + places

    def to_json(self) -> dict[str, Any]:
        """What `mesascope bench attention --json` writes."""
        return {
            "environment": {**describe_environment(), "fla-core": fla_version()},
            "threads": self.threads,
            "rounds": self.rounds,
            "seconds": round(self.seconds),
            "matmul_gflops": self.peak_gflops,
            "flop_formulas_per_head": FORMULAS,
            "records": [record.to_json() for record in self.records],
            "scaling": [record.to_json() for record in self.scaling],
            "relative_errors": self.errors,
            "memory": {name: {**vars(memory), "ratio": memory.ratio} for name, memory in self.memory.items()},
            "left_out": self.omissions,
            "claims": [claim.to_json() for claim in self.claims],
        }
