"""Claims in the terminal."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesascope.claims import MeasuredClaim
from mesascope.report.model import failed_first, format_number, verdict


def print_claims(claims: tuple[MeasuredClaim, ...], console: Console) -> None:
    """Print the claims, failed ones first, and the verdict: a table in a terminal, else plain lines to search in."""
    if console.is_terminal:
        _print_table(claims, console)
    else:
        for claim in failed_first(claims):
            _print_plainly(_line(claim), console)
    for claim in failed_first(claims):
        if not claim.passed:
            note = f" ({claim.note})" if claim.note else ""
            _print_plainly(f"{claim.claim.id} did not hold: {claim.claim.statement}{note}", console)
    _print_plainly(verdict(claims), console)


def print_overview(claims: Mapping[str, tuple[MeasuredClaim, ...]], console: Console) -> None:
    """Print one line for each experiment and every claim that did not hold, then the verdict on all."""
    for name, measured in claims.items():
        held = sum(claim.passed for claim in measured)
        _print_plainly(f"{name}: {held} of {len(measured)} claims hold", console)
        for claim in measured:
            if not claim.passed:
                _print_plainly(f"  {_line(claim)}", console)
    _print_plainly(verdict(tuple(claim for measured in claims.values() for claim in measured)), console)


def _print_table(claims: tuple[MeasuredClaim, ...], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("claim", overflow="fold", ratio=3)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("required", ratio=2)
    table.add_column("paper", overflow="fold", ratio=2)
    table.add_column("verdict", no_wrap=True)
    for claim in failed_first(claims):
        style = "green" if claim.passed else "bold red"
        table.add_row(
            Text(claim.claim.id),
            format_number(claim.measured),
            str(claim.claim.threshold),
            Text(claim.claim.paper_value),
            Text(_word(claim), style=style),
        )
    console.print(table)


def _line(claim: MeasuredClaim) -> str:
    measured = f"measured {format_number(claim.measured)}, required {claim.claim.threshold}"
    return f"{_word(claim)} {claim.claim.id}: {measured}, paper: {claim.claim.paper_value}"


def _word(claim: MeasuredClaim) -> str:
    return "passed" if claim.passed else "FAILED"


def _print_plainly(text: str, console: Console) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)
