"""The page in a real browser: it draws every panel, breaks no rule of its own and runs nothing it was given as text."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mesascope.figures import Figure, HeatmapPanel, Line, LinePanel, Table
from mesascope.report import Report, write_overview, write_page
from report import demo
from report.test_overview import OVERVIEW

pytestmark = pytest.mark.browser

# stands before everything else in the page, and leaves what happened where --dump-dom shows it
WATCH = """<script>
const seen = [];
const note = (kind, text) => {
  seen.push(kind + ": " + text);
  document.documentElement.dataset.seen = seen.join("; ");
};
addEventListener("error", (event) => note("error", event.message));
addEventListener("unhandledrejection", (event) => note("rejection", event.reason));
addEventListener("securitypolicyviolation", (event) => note("blocked", event.violatedDirective));
addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement;
  root.dataset.hacked = String(window.hacked !== undefined);
  root.dataset.overflow = String(root.scrollWidth - root.clientWidth);
  root.dataset.curves = document.querySelectorAll(".scatterlayer .trace path.js-line").length;
  root.dataset.empty = [...document.querySelectorAll(".plot")].filter((plot) => plot.clientHeight < 200).length;
  root.dataset.stills = [...document.querySelectorAll(".still")].filter((still) => still.offsetParent).length;
}, 1000));
</script>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "no Chromium found: install one (Debian: apt-get install chromium)"
    return path


def dump(chromium: str, page: Path, width: int = 1200, spoil: tuple[str, str] = ("", "")) -> str:
    """The document after its scripts have run; `spoil` replaces a text of the page beforehand."""
    html = page.read_text()
    assert spoil[0] in html
    watched = page.with_name("watched.html")
    watched.write_text(html.replace("<head>", f"<head>{WATCH}", 1).replace(*spoil, 1))
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    options += " --disable-component-update --disable-sync --virtual-time-budget=20000 --dump-dom"
    profile = f"--user-data-dir={page.with_name('profile')}"
    command = [chromium, *options.split(), profile, f"--window-size={width},2000", watched.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def observed(dom: str) -> dict[str, str]:
    return dict(re.findall(r'data-(\w+)="([^"]*)"', re.search("<html[^>]*>", dom)[0]))


def test_every_panel_is_drawn(chromium: str, tmp_path: Path) -> None:
    write_page(demo.report(), tmp_path / "index.html")
    dom = dump(chromium, tmp_path / "index.html")
    root = observed(dom)
    assert "seen" not in root, root["seen"]
    assert len(re.findall('<figure[^>]* class="drawn"', dom)) == 2
    assert len(re.findall('class="plot js-plotly-plot"', dom)) == 8
    assert len(re.findall('<svg class="main-svg"', dom)) >= 8
    lines = sum(len(panel.lines) for panel in demo.loss_curves(np.random.default_rng(0)).panels)
    assert int(root["curves"]) >= lines
    assert root["empty"] == "0"
    assert root["stills"] == "0"


@pytest.mark.parametrize("width", [500, 1200])
def test_nothing_is_wider_than_the_window(chromium: str, tmp_path: Path, width: int) -> None:
    write_page(demo.report(), tmp_path / "index.html")
    assert observed(dump(chromium, tmp_path / "index.html", width))["overflow"] == "0"
    write_overview(OVERVIEW, tmp_path / "index.html")
    assert observed(dump(chromium, tmp_path / "index.html", width))["overflow"] == "0"


def test_hostile_texts_run_nothing(chromium: str, tmp_path: Path) -> None:
    text, x = demo.HOSTILE, np.arange(1.0, 6.0)
    lines = LinePanel(text, text, text, (Line(text, x, x, low=x - 1, high=x + 1),), log_y=True)
    matrix = HeatmapPanel(text, text, text, np.eye(4), block=2, block_labels=(text, text))
    hostile: Report = replace(
        demo.report(),
        title=text,
        introduction=(text,),
        figures=(Figure("hostile", text, text, (lines, matrix)),),
        tables=(Table("hostile", text, (text,), ((text,),)),),
    )
    write_page(hostile, tmp_path / "index.html")
    root = observed(dump(chromium, tmp_path / "index.html"))
    assert "seen" not in root, root["seen"]
    assert root["hacked"] == "false"


def test_a_figure_that_cannot_be_drawn_stays_a_picture(chromium: str, tmp_path: Path) -> None:
    write_page(demo.report(), tmp_path / "index.html")
    dom = dump(chromium, tmp_path / "index.html", spoil=("await Plotly.newPlot(", "await Plotly.nothing("))
    root = observed(dom)
    assert root["stills"] == "2"
    assert "Plotly.nothing is not a function" in root["seen"]


def test_a_request_to_the_network_is_blocked(chromium: str, tmp_path: Path) -> None:
    write_page(replace(demo.report(), figures=()), tmp_path / "index.html")
    spoil = ("<main>", '<main><img src="https://127.0.0.1/x.png">')
    assert "blocked: img-src" in observed(dump(chromium, tmp_path / "index.html", spoil=spoil))["seen"]
