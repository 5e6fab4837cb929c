"""Progress is a bar in a terminal and a few plain lines in a file."""

import io

from rich.console import Console

from mesascope.runs.display import TrainingDisplay
from mesascope.training.loop import Progress

LABEL = "6 linear layers [wide], key size 40, seed 0 of the paper's settings"


def shown(terminal: bool, width: int = 80) -> str:
    output = io.StringIO()
    with TrainingDisplay(Console(file=output, force_terminal=terminal, width=width)) as display:
        for step in range(1, 101):
            display(LABEL, Progress(step, 100, 1.5 / step, 20.0))
    return output.getvalue()


def test_plain_lines_when_not_a_terminal() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines == [
        f"  {LABEL}: step 25 of 100, loss 0.0600, 20.0 steps/s, 4 s left",
        f"  {LABEL}: step 50 of 100, loss 0.0300, 20.0 steps/s, 2 s left",
        f"  {LABEL}: step 75 of 100, loss 0.0200, 20.0 steps/s, 1 s left",
        f"  {LABEL}: step 100 of 100, loss 0.0150, 20.0 steps/s, 0 s left",
    ]


def test_bars_in_a_terminal() -> None:
    text = shown(terminal=True, width=160)
    assert "\x1b[" in text
    assert LABEL in text
    assert "100/100" in text
    assert "20.0 steps/s" in text


def test_a_short_training_gets_a_line_for_every_step() -> None:
    output = io.StringIO()
    with TrainingDisplay(Console(file=output, force_terminal=False)) as display:
        for step in (1, 2):
            display("short", Progress(step, 2, 1.0, 0.0))
    assert [line.split(",")[0].strip() for line in output.getvalue().splitlines()] == [
        "short: step 1 of 2",
        "short: step 2 of 2",
    ]
