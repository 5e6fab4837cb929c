"""The subcommands of `mesascope bench`."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesascope.errors import require

if TYPE_CHECKING:
    from mesascope.claims import MeasuredClaim


@dataclasses.dataclass(frozen=True)
class BenchTrain:
    """Training steps against the same steps written by hand in torch, and the share of drawing data. A minute."""

    rounds: int = 30
    """Timed steps of each kind."""
    threads: int = os.cpu_count() or 1
    """CPU threads."""
    json: Path | None = None
    """File to write the claims and the machine to."""

    def run(self) -> None:
        _require_file("json", self.json)
        from mesascope.benchmarks.train import bench_training

        claims = bench_training(self.rounds, self.threads)
        _print_claims(claims)
        _write_claims(self.json, claims, threads=self.threads)


@dataclasses.dataclass(frozen=True)
class BenchAttention:
    """Mesa, softmax and linear attention against torch and fla-core: time, error, memory. About ten minutes.

    The references of fla-core are measured where it is installed: `pip install fla-core einops`.
    """

    rounds: int = 30
    """Timed runs of each kind; slow comparisons get fewer, at least 3."""
    threads: int = os.cpu_count() or 1
    """CPU threads."""
    json: Path | None = None
    """File to write everything to."""
    figure: Path | None = None
    """PNG or SVG file for a figure of time per token against length, which takes a few minutes more."""
    quick: bool = False
    """Small shapes, in seconds, to see that everything runs; no claim is measured."""

    def run(self) -> None:
        _require_file("json", self.json)
        _require_file("figure", self.figure)
        suffixes = (".png", ".svg")
        allowed = f"a file that ends in {' or '.join(suffixes)}"
        require(self.figure is None or self.figure.suffix in suffixes, "figure", str(self.figure), allowed)
        from rich.console import Console

        from mesascope.benchmarks.attention import FULL, QUICK, bench_attention
        from mesascope.benchmarks.attention_figure import scaling_figure
        from mesascope.benchmarks.tables import print_attention
        from mesascope.report.static import write_figure

        console, progress, plan = Console(), Console(stderr=True), QUICK if self.quick else FULL

        def say(what: str) -> None:
            progress.print(f"measuring {what}", markup=False, highlight=False, soft_wrap=True)

        result = bench_attention(plan, self.rounds, self.threads, self.figure is not None, say)
        print_attention(result, console)
        if result.claims:
            _print_claims(result.claims)
        _write(self.json, result.to_json())
        if self.figure is not None:
            write_figure(scaling_figure(result, self.figure.stem), self.figure)


@dataclasses.dataclass(frozen=True)
class BenchPrecision:
    """Errors of mesa attention against a float64 solve per token, by backend and number type. A few minutes."""

    markdown: Path | None = None
    """File to write the table to."""
    json: Path | None = None
    """File to write the claims and the machine to."""
    quick: bool = False
    """Leave out T = 100,000."""

    def run(self) -> None:
        _require_file("markdown", self.markdown)
        _require_file("json", self.json)
        from rich.console import Console

        from mesascope.benchmarks.precision import REGIMES, measure
        from mesascope.benchmarks.precision_claims import judge, markdown
        from mesascope.files import write_atomically

        progress = Console(stderr=True)
        regimes = tuple(regime for regime in REGIMES if not (self.quick and regime.name == "long"))
        measured = measure(regimes, lambda what: progress.print(f"measuring {what}", markup=False, highlight=False))
        claims = judge(measured)
        _print_claims(claims)
        if self.markdown is not None:
            write_atomically(self.markdown, markdown(measured, claims), "run the command again")
        _write_claims(self.json, claims)


@dataclasses.dataclass(frozen=True)
class BenchDense:
    """Linear maps, MLPs and LayerNorm by the native kernels against torch, at sizes large and small. Two minutes."""

    rounds: int = 30
    """Timed runs of each kind; slow comparisons get fewer, at least 3."""
    threads: int = os.cpu_count() or 1
    """CPU threads."""
    json: Path | None = None
    """File to write everything to."""

    def run(self) -> None:
        _require_file("json", self.json)
        from rich.console import Console

        from mesascope.benchmarks.dense import bench_dense, judge_dense
        from mesascope.benchmarks.tables import print_dense

        records = bench_dense(self.rounds, self.threads)
        claims = judge_dense(records)
        print_dense(records, Console())
        _print_claims(claims)
        _write_claims(self.json, claims, threads=self.threads, records=[vars(record) for record in records])


def _require_file(name: str, path: Path | None) -> None:
    """Raise `InputError` if a folder stands where a file is to be written."""
    require(path is None or not path.is_dir(), name, str(path), "a file, not a folder")


def _print_claims(claims: "tuple[MeasuredClaim, ...]") -> None:
    from rich.console import Console

    from mesascope.report import print_claims

    print_claims(claims, Console())


def _write_claims(path: Path | None, claims: "tuple[MeasuredClaim, ...]", **others: Any) -> None:
    """Write what a benchmark found and the machine, where a file is wanted."""
    from mesascope.environment import describe_environment

    stored = [claim.to_json() for claim in claims]
    _write(path, {"environment": describe_environment(), **others, "claims": stored})


def _write(path: Path | None, value: dict[str, Any]) -> None:
    from mesascope.files import write_json

    if path is not None:
        write_json(path, value)
