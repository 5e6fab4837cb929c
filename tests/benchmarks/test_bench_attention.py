"""The benchmark's structure: what is measured, which claims get a number, and what is written. No time is asserted."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mesascope.benchmarks import attention as bench
from mesascope.benchmarks.accuracy import solve_per_step
from mesascope.benchmarks.attention_claims import ERROR_CLAIM, MEMORY_CLAIM, RATIO_CLAIMS, RatioClaim
from mesascope.benchmarks.attention_result import AttentionResult
from mesascope.benchmarks.memory import Memory
from mesascope.benchmarks.methods import BOTH_PASSES, Method, Shape
from mesascope.benchmarks.ours import LINEAR, NATIVE, SOFTMAX
from mesascope.benchmarks.peers import FLA_CG, MASKED_PRODUCT, SDPA, peer_methods
from mesascope.claims import MeasuredClaim
from mesascope.errors import InputError
from mesascope.ops import linear_attention, softmax_attention

SMALL, OTHER = Shape(4, 6, 3), Shape(4, 5, 2)


def native(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor) -> Tensor:
    if q.shape[-1] == OTHER.dim:
        raise InputError("q: got D = 2, but the kernel must have more")
    return solve_per_step(q, k, v, ridge).to(q.dtype)


def inexact(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor) -> Tensor:
    return 1.01 * solve_per_step(q, k, v, ridge).to(q.dtype)


OURS = [
    Method("mesa", "native", native),
    Method("softmax", "mesascope", lambda q, k, v, ridge: softmax_attention(q, k, v)),
    Method("linear", "mesascope", lambda q, k, v, ridge: linear_attention(q, k, v)),
]
CG = Method("mesa", "fla-core CG-30", inexact, lambda shape, passes: shape != OTHER)


def plan(shapes: tuple[Shape, ...] = (SMALL, OTHER)) -> bench.Plan:
    """Every claim about times, at `SMALL`."""
    claims = tuple(dataclasses.replace(claim, shape=SMALL) for claim in RATIO_CLAIMS)
    return bench.Plan(shapes, (SMALL, Shape(4, 12, 3)), SMALL, SMALL, 8, claims, judged=True)


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Native kernels and fla-core are here, and memory is not really measured."""
    torch_peers = peer_methods()[0][:3]
    monkeypatch.setattr(bench, "our_methods", lambda: (list(OURS), []))
    monkeypatch.setattr(bench, "peer_methods", lambda: ([*torch_peers, CG], []))
    monkeypatch.setattr(bench, "can_measure_memory", lambda: True)
    monkeypatch.setattr(bench, "measure_memory", lambda name, shape, threads: Memory(3000, 1000))


def by_id(result: AttentionResult) -> dict[str, MeasuredClaim]:
    return {claim.claim.id: claim for claim in result.claims}


@pytest.mark.usefixtures("everything")
def test_every_method_is_measured_at_every_shape_it_takes() -> None:
    torch.set_num_threads(2)
    said: list[str] = []
    result = bench.bench_attention(plan(), rounds=2, threads=1, say=said.append)
    assert torch.get_num_threads() == 2
    names = {method.name for method in (*OURS, *peer_methods()[0][:3], CG)}
    for passes in BOTH_PASSES:
        found = [record for record in result.records if record.passes == passes]
        assert {record.method for record in found if record.shape == SMALL} == names
        assert {record.method for record in found if record.shape == OTHER} == names - {NATIVE, FLA_CG}
        assert f"{SMALL}, {passes}" in said
    places = f"{OTHER} (forward); {OTHER} (forward+backward)"
    assert result.omissions == [
        f"{NATIVE} is left out at {places}: q: got D = 2, but the kernel must have more",
        f"{FLA_CG} is left out at {places}: too much time or memory",
    ]
    for record in result.records:
        assert 0 < record.low <= record.seconds <= record.high
        assert record.gflops > 0
        assert record.ratio == 1 if record.method == SDPA else record.ratio > 0
        # torch's softmax attention runs beside each of the others
        others = len(names) - 1 if record.shape == SMALL else len(names) - 3
        assert record.rounds == 2 * (others if record.method == SDPA else 1)
    assert not result.scaling


@pytest.mark.usefixtures("everything")
def test_every_claim_gets_its_number() -> None:
    result = bench.bench_attention(plan((SMALL,)), rounds=1, threads=1)
    assert not result.omissions
    claims = by_id(result)
    assert list(claims) == [*(ratio.claim.id for ratio in RATIO_CLAIMS), ERROR_CLAIM.id, MEMORY_CLAIM.id]
    for ratio in RATIO_CLAIMS:
        measured = claims[ratio.claim.id]
        own, peer = measured.values
        assert measured.measured == pytest.approx(own / peer)
        if ratio.peer == SDPA:
            (record,) = (
                record for record in result.records if (record.method, record.passes) == (ratio.own, "forward+backward")
            )
            assert (record.ratio, record.seconds) == (measured.measured, own)
    error, memory = claims[ERROR_CLAIM.id], claims[MEMORY_CLAIM.id]
    assert result.errors[FLA_CG] == pytest.approx(0.01, rel=1e-3)
    assert error.measured == pytest.approx(result.errors[FLA_CG] / result.errors[NATIVE])
    assert error.passed
    assert (memory.measured, memory.values) == (3.0, (3000.0, 1000.0))


@pytest.mark.usefixtures("everything")
def test_claims_that_cannot_be_measured_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "our_methods", lambda: (OURS[1:], ["mesa: native is left out: not built"]))
    result = bench.bench_attention(plan((SMALL,)), rounds=1, threads=1)
    assert list(by_id(result)) == ["bench.softmax_paper_size", "bench.linear_paper_size"]
    assert result.omissions == [
        "mesa: native is left out: not built",
        *(f"bench.mesa_{name} is not measured: it needs {NATIVE} and {SDPA}" for name in ("paper_size", "512", "2048")),
        f"bench.conjugate_gradients is not measured: it needs {FLA_CG} and {NATIVE}",
        f"bench.conjugate_gradients_error is not measured: it needs {FLA_CG} and {NATIVE}",
        f"bench.mesa_memory is not measured: it needs {NATIVE}, and Linux",
    ]


def test_claims_are_as_they_were_written_down() -> None:
    wanted = {
        "bench.mesa_paper_size": (NATIVE, SDPA, (1024, 50, 20), None, 0.40),
        "bench.mesa_512": (NATIVE, SDPA, (16, 512, 64), None, 0.22),
        "bench.mesa_2048": (NATIVE, SDPA, (16, 2048, 64), None, 0.10),
        "bench.softmax_paper_size": (SOFTMAX, SDPA, (1024, 50, 20), None, 0.45),
        "bench.linear_paper_size": (LINEAR, MASKED_PRODUCT, (1024, 50, 20), None, 0.25),
        "bench.conjugate_gradients": (FLA_CG, NATIVE, (16, 512, 64), 40, None),
    }

    def facts(ratio: RatioClaim) -> tuple[object, ...]:
        threshold = ratio.claim.threshold
        return ratio.own, ratio.peer, dataclasses.astuple(ratio.shape), threshold.low, threshold.high

    assert {ratio.claim.id: facts(ratio) for ratio in bench.FULL.claims} == wanted
    assert (ERROR_CLAIM.threshold.low, MEMORY_CLAIM.threshold.high) == (100, 4.0)
    assert bench.FULL.judged
    assert {ratio.shape for ratio in bench.FULL.claims} <= set(bench.FULL.shapes)
    assert (str(bench.FULL.error_shape), str(bench.FULL.memory_shape)) == (
        "16 heads, T = 512, D = 64",
        "16 heads, T = 16384, D = 64",
    )
    for ratio in RATIO_CLAIMS:
        assert str(ratio.shape) in ratio.claim.statement


@pytest.mark.usefixtures("everything")
def test_what_is_written_reads_back() -> None:
    result = bench.bench_attention(plan(), rounds=1, threads=1, scaling=True)
    stored = result.to_json()
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored
    assert (stored["threads"], stored["rounds"]) == (1, 1)
    assert stored["matmul_gflops"] > 0
    assert {"torch", "processor", "fla-core"} <= stored["environment"].keys()
    keys = {"method", "heads", "time", "dim", "passes", "seconds", "low", "high", "rounds", "ratio", "gflops"}
    assert all(record.keys() == keys for record in stored["records"] + stored["scaling"])
    assert stored["memory"][NATIVE] == {"growth": 3000, "operands": 1000, "ratio": 3.0}
    assert [claim["id"] for claim in stored["claims"]] == list(by_id(result))


@pytest.mark.usefixtures("everything")
def test_scaling_compares_three_methods() -> None:
    result = bench.bench_attention(plan(()), rounds=2, threads=1, scaling=True)
    found = {(record.method, record.shape.time, record.passes) for record in result.scaling}
    assert found == {(name, time, p) for name in (NATIVE, SDPA, LINEAR) for time in (6, 12) for p in BOTH_PASSES}
    assert len(result.scaling) == len(found)
    assert all(record.rounds == 2 and math.isfinite(record.ratio) for record in result.scaling)


@pytest.mark.parametrize("argument", ["rounds", "threads"])
def test_counts_must_be_positive(argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "our_methods", lambda: pytest.fail("measured before the arguments were checked"))
    with pytest.raises(InputError, match=f"{argument}: got 0, but it must be at least 1"):
        bench.bench_attention(**{argument: 0})


def test_committed_results_match_the_claims() -> None:
    from mesascope.benchmarks import train
    from mesascope.benchmarks.dense import OPERATORS

    step = (train.STEP_RATIO, train.NATIVE_STEP_RATIO, train.DATA_SHARE, train.HYBRID_STEP_RATIO)
    attention = (*(ratio.claim for ratio in RATIO_CLAIMS), ERROR_CLAIM, MEMORY_CLAIM)
    known = {claim.id: claim for claim in (*step, *attention, *(operator.claim for operator in OPERATORS))}
    for path in sorted((Path(__file__).parents[2] / "results").glob("bench_*.json")):
        for entry in json.loads(path.read_text())["claims"]:
            claim = known[entry["id"]]
            assert entry["statement"] == claim.statement
            assert entry["threshold"] == {"low": claim.threshold.low, "high": claim.threshold.high}
            assert entry["passed"] == claim.threshold.accepts(entry["measured"])
