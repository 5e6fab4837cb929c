"""The example of the README runs as printed, and its pictures exist."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_example(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    losses = [float(line.split()[0]) for line in printed.splitlines()]
    one_layer, gradient, ridge = losses
    assert one_layer == pytest.approx(gradient, abs=1e-4)
    assert ridge < 0.25 * gradient


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (Path(__file__).parent.parent / target).exists()
