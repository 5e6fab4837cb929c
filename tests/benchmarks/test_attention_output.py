"""The figure and the tables of the attention benchmark show what was measured."""

import io

import numpy as np
import pytest
from rich.console import Console

from mesascope.benchmarks.accuracy import solve_per_step
from mesascope.benchmarks.attention_figure import scaling_figure
from mesascope.benchmarks.attention_result import AttentionResult, Record
from mesascope.benchmarks.memory import Memory
from mesascope.benchmarks.methods import BOTH_PASSES, Method, Shape
from mesascope.benchmarks.ours import NATIVE
from mesascope.benchmarks.peers import FLA_CG, SDPA
from mesascope.benchmarks.tables import print_attention
from mesascope.errors import InputError


def record(name: str, problem: str, time: int, seconds: tuple[float, ...], passes: str) -> Record:
    method = Method(problem, name, solve_per_step)  # type: ignore[arg-type]
    return Record.of(method, Shape(16, time, 64), passes, seconds, 0.5)  # type: ignore[arg-type]


def test_figure_shows_time_per_token_and_its_spread() -> None:
    result = AttentionResult(threads=2, rounds=5)
    for passes in BOTH_PASSES:
        for time in (64, 128):
            result.scaling.append(record("native", "mesa", time, tuple(time * 1e-6 * n for n in range(1, 6)), passes))
            result.scaling.append(record("torch SDPA", "softmax", time, (time**2 * 1e-6,), passes))
    figure = scaling_figure(result, "speed")
    assert figure.id == "speed"
    assert [panel.title for panel in figure.panels] == ["Forward", "Forward and backward"]
    for panel in figure.panels:
        assert panel.log_x
        assert panel.log_y
        assert panel.y_limits == pytest.approx((2 / 1.2, 128 * 1.2))
        assert "µs" in panel.y_label
        mesa, softmax = panel.lines
        assert (mesa.label, mesa.role, softmax.label, softmax.role) == ("mesa: native", "model", SDPA, "reference")
        assert mesa.colour != softmax.colour
        np.testing.assert_allclose([mesa.x, mesa.low, mesa.y, mesa.high], [[64, 128], [2, 2], [3, 3], [4, 4]])
        np.testing.assert_allclose(softmax.y, [64, 128])
    with pytest.raises(InputError, match=r"result\.scaling: got \[\], but it must be measured"):
        scaling_figure(AttentionResult(1, 1), "speed")


def shown(result: AttentionResult) -> list[str]:
    buffer = io.StringIO()
    print_attention(result, Console(file=buffer, width=200))
    return [line.rstrip() for line in buffer.getvalue().splitlines()]


def test_tables_show_ratios_first_and_the_fastest_on_top() -> None:
    result = AttentionResult(2, 1, peak_gflops=100.0, left_out=["something is left out: [brackets]"])
    shape = Shape(16, 512, 64)
    for name, seconds, ratio in ((SDPA, 2e-2, 1.0), (NATIVE, 4e-3, 0.2), (FLA_CG, 0.5, 25.0)):
        for passes in BOTH_PASSES if name != FLA_CG else ("forward",):
            result.records.append(Record(name, shape, passes, seconds, seconds, seconds, 1, ratio, 40.0))
    result.skip(FLA_CG, shape, "forward+backward", "too slow")
    result.skip(FLA_CG, shape, "forward+backward", "too slow")
    result.errors, result.memory = {NATIVE: 3e-7}, {NATIVE: Memory(2**21, 2**20)}
    lines = shown(result)
    assert lines[0] == "16 heads, T = 512, D = 64"
    rows = [line.split() for line in lines if line.startswith((" mesa: ", " softmax: "))]
    assert rows[0] == ["mesa:", "native", "0.2", "0.2", "4", "4", "40", "40.0%"]
    assert rows[1] == ["softmax:", "torch", "SDPA", "1", "1", "20", "20", "40", "40.0%"]
    assert rows[2] == ["mesa:", "fla-core", "CG-30", "25", "500"]
    text = "\n".join(lines)
    assert "2 T D (16 D)" in text
    assert "mesa: native: relative error in float32 3.0e-07" in text
    assert "mesa: native: peak memory 2.00 times the size of q, k, v, o and their gradients (2 MiB)" in text
    assert lines[-2:] == [
        "something is left out: [brackets]",
        "mesa: fla-core CG-30 is left out at 16 heads, T = 512, D = 64 (forward+backward): too slow",
    ]


def test_tables_fit_where_there_is_no_terminal() -> None:
    result = AttentionResult(2, 1, peak_gflops=100.0)
    for passes in BOTH_PASSES:
        seconds = 12.345678
        worst = Record(
            "mesa: torch batched Cholesky", Shape(4, 6, 3), passes, seconds, seconds, seconds, 1, 1234.5, 0.012345
        )
        result.records.append(worst)
    (row,) = (line for line in shown(result) if line.startswith(" mesa: torch"))
    assert row.split()[-6:] == ["1234", "1234", "12346", "12346", "0.0123", "0.0%"]
    assert len(row) <= 80
