import io
import re

import pytest
from rich.console import Console

from mesascope.report import print_claims
from report import demo


def printed(terminal: bool, width: int = 80) -> str:
    console = Console(
        file=io.StringIO(), force_terminal=terminal, width=width, color_system="standard", legacy_windows=False
    )
    print_claims(demo.claims(), console)
    return console.file.getvalue()


def test_plain_lines_when_not_a_terminal() -> None:
    lines = printed(terminal=False).splitlines()
    assert "FAILED fig4.depth_helps: measured 0.6123, required between 0.1 and 0.5, paper: not given" in lines
    assert "FAILED fig4.probe: measured nan, required at least 0.2, paper: not given" in lines
    assert "passed fig4.mesa_beats_linear: measured 0.31, required at most 0.4, paper: 0.21" in lines
    assert [line.split()[0] for line in lines[:4]] == ["FAILED", "FAILED", "passed", "passed"]
    assert lines[-1] == "2 of 4 claims hold."
    assert printed(terminal=False).isascii()
    assert "\x1b" not in printed(terminal=False)


def test_failures_are_explained() -> None:
    explanation = "fig4.depth_helps did not hold: Loss with six layers over loss with one. (Two seeds only, and trained"
    assert explanation in printed(terminal=False)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_table_fits_the_terminal(width: int) -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed(terminal=True, width=width))
    assert max(len(line) for line in text.splitlines()) <= width
    for word in ("0.6123", "FAILED", "passed", "0.0124", "2 of 4 claims hold."):
        assert word in text


def test_ids_and_texts_are_not_taken_for_markup() -> None:
    claim = demo.claims()[0].claim
    hostile = type(claim)("[red]id[/red]", "[bold]statement", "source", "[/]", claim.threshold).measure(1.0)
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
        print_claims((hostile,), console)
        assert "[red]id[/red]" in console.file.getvalue()
        assert "[bold]statement" in console.file.getvalue()
        assert "[/]" in console.file.getvalue()
