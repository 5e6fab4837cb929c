"""Both ways to compute an operator are the same, and only sizes at which kernels are used are judged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mesascope import cli
from mesascope.benchmarks import dense as bench
from mesascope.benchmarks.dense import OPERATORS, DenseOperator, DenseRecord, bench_dense, draw_operands, judge_dense
from mesascope.errors import InputError
from mesascope.ops import dense
from mesascope.ops.kernels import native_kernels
from ops.dense_cases import both_passes

needs_kernels = pytest.mark.skipif(native_kernels() is None, reason="this run is without compiled kernels")


def records(**ratios: float) -> list[DenseRecord]:
    """For every operator one size at which its kernel is used and one at which it is not, with a ratio of 3."""
    used = [
        DenseRecord(operator.name, 2048, 40, True, 1.0, 2.0, 9, ratios.get(operator.name, 0.5), 0.4, 0.6)
        for operator in OPERATORS
    ]
    return [*used, *(replace(record, tokens=1024, native=False, ratio=3.0) for record in used)]


@needs_kernels
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_both_ways_are_the_same(operator: DenseOperator) -> None:
    operands = draw_operands(operator, 70, 12)
    ours, exact = both_passes(operator.native, operands), both_passes(operator.in_torch, [x.double() for x in operands])
    for found, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_every_operator_is_measured_at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_FEWEST_TOKENS", 60)
    measured = bench_dense(rounds=1, threads=1, tokens=(50, 3500), widths=(4, 64))
    sizes = [(width, tokens) for width in (4, 64) for tokens in (50, 3500)]
    assert [(x.operator, x.width, x.tokens) for x in measured] == [
        (operator.name, *size) for operator in OPERATORS for size in sizes
    ]
    assert all(x.ratio == pytest.approx(x.seconds / x.torch_seconds) and x.rounds == 1 for x in measured)
    # LayerNorm of 64 numbers is left to torch
    assert [x.native for x in measured] == 5 * [False, True] + [False, False]


def test_only_sizes_at_which_kernels_are_used_are_judged() -> None:
    claims = judge_dense(records(MLP=1.01))
    assert [(claim.claim.id, claim.measured, claim.passed) for claim in claims] == [
        ("bench.linear_maps", 0.5, True),
        ("bench.mlp", 1.01, False),
        ("bench.layernorm", 0.5, True),
    ]
    assert all(len(claim.values) == 1 and claim.claim.threshold.high == 1.0 for claim in claims)
    assert judge_dense(records()[3:]) == ()


def test_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored, called = tmp_path / "dense.json", {}

    def measure(rounds: int, threads: int) -> list[DenseRecord]:
        called.update(rounds=rounds, threads=threads)
        return records()

    monkeypatch.setattr(bench, "bench_dense", measure)
    assert cli.main(["bench", "dense", "--rounds", "3", "--threads", "1", "--json", str(stored)]) == 0
    assert called == {"rounds": 3, "threads": 1}
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert all(operator.name.split() in rows for operator in OPERATORS)
    assert rows.count(["width", "2,048", "tokens", "1,024", "tokens"]) == 3
    assert rows.count(["40", "0.5", "(3)"]) == 3
    assert "All 3 claims hold." in printed
    result = json.loads(stored.read_text())
    assert [record["ratio"] for record in result["records"]] == 3 * [0.5] + 3 * [3.0]
    assert [claim["measured"] for claim in result["claims"]] == 3 * [0.5]


@pytest.mark.parametrize("argument", ["rounds", "threads"])
def test_counts_must_be_positive(argument: str) -> None:
    with pytest.raises(InputError, match=f"{argument}: got 0, but it must be at least 1"):
        bench_dense(**{argument: 0})


def test_kernels_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "native_kernels", lambda: None)
    with pytest.raises(
        InputError, match=r"there are no native kernels; they need a C\+\+ compiler .*MESASCOPE_NATIVE=0"
    ):
        bench_dense()
