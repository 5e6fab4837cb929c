"""The attention benchmark in the terminal: one table per shape, ratios first."""

from rich import box
from rich.console import Console
from rich.table import Table

from mesascope.benchmarks.attention_result import AttentionResult
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
    table = Table(title=str(shape), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("method", no_wrap=True)
    for header in ("ratio\nf+b", "ratio\nf", "ms\nf+b", "ms\nf", "GFLOP/s\nf+b", "peak\nf+b"):
        table.add_column(header, justify="right", no_wrap=True)
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


def _short(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _say(text: str, console: Console) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)
