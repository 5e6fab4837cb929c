"""Benchmarks in the terminal: one table per shape or operator, ratios first."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from mesascope.benchmarks.attention_result import AttentionResult
from mesascope.benchmarks.dense import DenseRecord
from mesascope.benchmarks.flops import FORMULAS
from mesascope.benchmarks.methods import BOTH_PASSES, Shape

_WIDTH = 80
"""Columns of the tables where the output is not a terminal."""


def print_attention(result: AttentionResult, console: Console) -> None:
    """Print times, operations per second, errors and memory, then what was left out."""
    for shape in dict.fromkeys(record.shape for record in result.records):
        console.print(_table(result, shape), width=None if console.is_terminal else _WIDTH)
    _say("f: forward, f+b: forward and backward; ms: medians, of all heads", console)
    _say(f"ratio: time over that of torch's causal scaled_dot_product_attention; {result.threads} threads", console)
    _say(f"peak: {result.peak_gflops:.0f} GFLOP/s of a large matrix product", console)
    for problem, formulas in FORMULAS.items():
        counted = ", ".join(f"{formula} ({passes})" for passes, formula in formulas.items())
        _say(f"operations of {problem} per head: {counted}", console)
    for name, error in result.errors.items():
        _say(f"{name}: relative error in float32 {error:.1e}", console)
    for name, memory in result.memory.items():
        size = f"{memory.ratio:.2f} times the size of q, k, v, o and their gradients ({memory.growth / 2**20:.0f} MiB)"
        _say(f"{name}: peak memory {size}", console)
    for line in result.omissions:
        _say(line, console)


def _table(result: AttentionResult, shape: Shape) -> Table:
    table = _empty(str(shape), "method", ("ratio\nf+b", "ratio\nf", "ms\nf+b", "ms\nf", "GFLOP/s\nf+b", "peak\nf+b"))
    forward, both = (
        {record.method: record for record in result.records if (record.shape, record.passes) == (shape, passes)}
        for passes in BOTH_PASSES
    )

    def order(name: str) -> tuple[bool, float]:
        """Fastest first; what was not run backward last."""
        return name not in both, (both.get(name) or forward[name]).ratio

    for name in sorted({**forward, **both}, key=order):
        records = both.get(name), forward.get(name)
        ratios = ["" if record is None else _short(record.ratio) for record in records]
        times = ["" if record is None else _short(1e3 * record.seconds) for record in records]
        rate = records[0].gflops if records[0] is not None else None
        rates = ["", ""] if rate is None else [_short(rate), f"{rate / result.peak_gflops:.1%}"]
        table.add_row(name, *ratios, *times, *rates)
    return table


def print_dense(records: Sequence[DenseRecord], console: Console) -> None:
    """Print the ratios, one table per operator, with those of sizes that are left to torch in brackets."""
    by_size = {(record.operator, record.width, record.tokens): record for record in records}
    operators, widths, tokens = (dict.fromkeys(sizes) for sizes in zip(*by_size, strict=True))
    for operator in operators:
        table = _empty(operator, "width", [f"{count:,} tokens" for count in tokens])
        for width in widths:
            row = (by_size[operator, width, count] for count in tokens)
            cells = ((_short(record.ratio), record.native) for record in row)
            table.add_row(str(width), *(ratio if native else f"({ratio})" for ratio, native in cells))
        console.print(table, width=None if console.is_terminal else _WIDTH)
    _say("time of the native kernel over that of torch, forward and backward; in brackets torch is used", console)


def _empty(title: str, first: str, others: Sequence[str]) -> Table:
    """A table of numbers with names in its first column."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first, no_wrap=True)
    for header in others:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _short(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _say(text: str, console: Console) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)
