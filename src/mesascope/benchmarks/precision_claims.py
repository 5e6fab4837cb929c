"""What is claimed about the precision of mesa attention, and the page that shows what was measured."""

from collections.abc import Iterable

import torch

from mesascope.benchmarks.precision import Column, Measured, Regime, columns
from mesascope.claims import Claim, MeasuredClaim, Threshold
from mesascope.ops.kernels import native_kernels

DOUBLE_LIMIT = 1e-10
_SOURCE = "promise of mesascope.mesa_attention"


def _claim(name: str, what: str, limit: float) -> Claim:
    statement = f"Largest relative error, of root mean squares and against a float64 solve per token, of {what}"
    return Claim(f"precision.{name}", statement, _SOURCE, "not given", Threshold(high=limit))


def regime_claims(regime: Regime) -> tuple[Claim, Claim]:
    """Of output and gradients, and of the gradient of the ridge, in float32 or the half precision of the inputs."""
    dtype = str(regime.inputs).removeprefix("torch.")
    return (
        _claim(regime.name, f"the output and all gradients but the ridge's in {dtype}: {regime.title}", regime.limit),
        _claim(f"{regime.name}_ridge", f"the gradient of the ridge in {dtype}: {regime.title}", regime.ridge_limit),
    )


DOUBLE_CLAIM = _claim("float64", "the output and all gradients in float64, in all regimes", DOUBLE_LIMIT)


def judge(measured: Measured) -> tuple[MeasuredClaim, ...]:
    """All claims about the regimes that were measured, over all backends; the values are those of the backends."""
    judged = []
    for regime in dict.fromkeys(regime for regime, _ in measured):
        own = {column: measured[regime, column] for column in columns(regime) if column.dtype == regime.inputs}
        note = ", ".join(column.backend for column in own)
        claim, ridge_claim = regime_claims(regime)
        values = tuple(max(errors.output, errors.gradient) for errors in own.values())
        judged.append(claim.measure(max(values), values, note))
        values = tuple(errors.ridge for errors in own.values())
        judged.append(ridge_claim.measure(max(values), values, note))
    double = [errors for (_, column), errors in measured.items() if column.dtype == torch.float64]
    values = tuple(max(errors.output, errors.gradient, errors.ridge) for errors in double)
    if values:
        judged.append(DOUBLE_CLAIM.measure(max(values)))
    return tuple(judged)


_PREFACE = """\
# Precision of mesa attention

Written by `mesascope bench precision --markdown docs/precision.md`.

Relative errors, of root mean squares, against one solve per token in float64 (`backend="reference"`): of the output ·
of the worst gradient but the ridge's · of the gradient of the ridge. Each is the worst over the problems of a row: T =
50 and 1000 with D = 20, and T = 300 with D = 64, where nothing else is said; 2 heads; gates write with a strength of 0
to 1.7 and forget up to 10 % per token. Half precision is computed in float32 from the rounded inputs, so that its
errors are those of rounding the results; the gradient of a ridge in float32 is not rounded.
"""


def markdown(measured: Measured, claims: Iterable[MeasuredClaim]) -> str:
    """The page `docs/precision.md`."""
    kernels = native_kernels()
    built = "without native kernels" if kernels is None else f"native kernels for {kernels.instruction_set()}"
    lines = [_PREFACE, f"Measured with torch {torch.__version__}, {built}.", ""]
    regimes = tuple(dict.fromkeys(regime for regime, _ in measured))
    for is_half in (False, True):
        lines += _table(measured, [regime for regime in regimes if (regime.inputs != torch.float32) == is_half])
    lines += ["## Claims", "", "| claim | at most | measured | holds |", "|---|---|---|---|"]
    for claim in claims:
        holds = "yes" if claim.passed else "**no**"
        lines.append(f"| `{claim.claim.id}` | {claim.claim.threshold.high:.1e} | {claim.measured:.1e} | {holds} |")
    return "\n".join(lines) + "\n"


def _table(measured: Measured, regimes: list[Regime]) -> list[str]:
    """A row for each regime, a column for each backend and number type; half precision is named by the row."""
    if not regimes:
        return []
    heads = [_heading(column) for column in columns(regimes[0])]
    lines = [f"| regime | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for regime in regimes:
        errors = [measured[regime, column] for column in columns(regime)]
        cells = [f"{each.output:.0e} · {each.gradient:.0e} · {each.ridge:.0e}" for each in errors]
        lines.append(f"| {regime.title} | {' | '.join(cells)} |")
    return [*lines, ""]


def _heading(column: Column) -> str:
    return str(column) if column.dtype in (torch.float32, torch.float64) else column.backend
