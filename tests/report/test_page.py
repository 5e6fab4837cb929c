import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mesascope.claims import Claim, Threshold
from mesascope.errors import InputError
from mesascope.figures import Figure, Line, LinePanel, Table
from mesascope.report import Report, format_duration, format_number, verdict, write_page
from mesascope.report.page import TABLE_ROWS, link_arxiv, safe_json
from report import demo

X = np.arange(1.0, 6.0)
FIGURE = Figure("curves", "Curves", "Caption.", (LinePanel("panel", "x", "y", (Line("model", X, X),)),))
REPORT = replace(demo.report(), figures=(FIGURE,))


class Page(HTMLParser):
    """Elements with their attributes, and the texts of elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.elements[-1][0], " ".join(data.split())))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def written(report: Report, folder: Path) -> str:
    write_page(report, folder / "index.html")
    return (folder / "index.html").read_text()


def test_package_import_leaves_the_drawing_libraries_alone() -> None:
    code = "import sys, mesascope.report; print(*{'matplotlib', 'plotly', 'jinja2'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "\n"


def test_page_loads_nothing_and_forbids_it(tmp_path: Path) -> None:
    page = Page(written(REPORT, tmp_path))
    loading = [tag for tag, names in page.elements for name in ("src", "srcset", "data", "poster") if names.get(name)]
    assert set(loading) == {"img"}
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in page.all("img"))
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    outside = [link["href"] for link in page.all("a") if link["href"].startswith("http")]
    assert outside
    assert all(link.startswith("https://arxiv.org/abs/") for link in outside)


def test_page_is_accessible(tmp_path: Path) -> None:
    page = Page(written(demo.report(), tmp_path))
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    assert all(image["alt"] for image in page.all("img"))
    plots = [division for division in page.all("div") if "data-source" in division]
    assert len(plots) == 8
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    inside = [link["href"][1:] for link in page.all("a") if link["href"].startswith("#")]
    assert set(inside) <= set(ids)
    referred = [attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes]
    assert set(referred) <= set(ids)


def test_failed_claims_come_first_in_words_and_symbols(tmp_path: Path) -> None:
    page = Page(written(REPORT, tmp_path))
    rows = [(row["data-claim"], row["class"]) for row in page.all("tr") if "data-claim" in row]
    assert rows == [
        ("fig4.depth_helps", "failed"),
        ("fig4.probe", "failed"),
        ("fig4.one_layer_is_one_step", "passed"),
        ("fig4.mesa_beats_linear", "passed"),
    ]
    texts = [text for _, text in page.texts]
    assert "2 of 4 claims hold." in texts
    assert [text for text in texts if text in ("passed", "failed")] == ["failed", "failed", "passed", "passed"]
    for text in (
        "between 0.1 and 0.5",
        "0.6123",
        "values: 0.58, 0.64",
        "Two seeds only, and trained for a tenth of the steps.",
    ):
        assert text in texts
    assert texts.index("0.6123") < texts.index("0.0124")


def test_everything_a_reader_needs_is_there(tmp_path: Path) -> None:
    html = written(REPORT, tmp_path)
    texts = [text for _, text in Page(html).texts]
    for text in (REPORT.command, REPORT.profile, *REPORT.reductions, *REPORT.notes, "12 min 34 s", "Demo (AVX2)"):
        assert text in texts
    links = [link["href"] for link in Page(html).all("a")]
    for link in (
        "figures/curves.png",
        "figures/curves.svg",
        "figures/curves.csv",
        "tables/final_losses.csv",
        "claims.json",
    ):
        assert link in links
    shown = next(text for tag, text in Page(html).texts if tag == "code" and text.startswith("{"))
    assert json.loads(shown) == REPORT.configuration


def test_figures_are_pictures_until_a_script_has_drawn_them(tmp_path: Path) -> None:
    html = written(REPORT, tmp_path)
    (figure,) = Page(html).all("figure")
    assert "class" not in figure
    assert ".panels { display: none;" in html
    assert ".drawn .still { display: none; }" in html


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    text = demo.HOSTILE
    line = Line(text, X, X, low=X - 1, high=X + 1)
    hostile = Report(
        title=text,
        introduction=(text,),
        command=text,
        profile=text,
        claims=(Claim(text, text, text, text, Threshold(low=0)).measure(1.0, note=text),),
        configuration={text: text},
        environment={text: text},
        seconds=1.0,
        reductions=(text,),
        figures=(Figure("hostile", text, text, (LinePanel(text, text, text, (line,)),)),),
        tables=(Table("hostile", text, (text,), ((text,),)),),
        notes=(text,),
    )
    html = written(hostile, tmp_path)
    page = Page(html)
    kinds = [script.get("type") for script in page.all("script")]
    assert kinds == ["application/json", None, None]
    assert html.count("</script") == len(kinds)
    assert len(page.all("img")) == 1
    assert not [names for _, names in page.elements if any(name.startswith("on") for name in names)]
    assert "window.hacked" in html
    json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)[1])


def test_embedded_json_cannot_leave_its_script() -> None:
    value = {"text": "</script><!--<script>&\u2028\u2029"}
    embedded = safe_json(json.dumps(value, ensure_ascii=False))
    assert not re.search("[<>&\u2028\u2029]", embedded)
    assert json.loads(embedded) == value


def test_arxiv_numbers_become_links() -> None:
    assert link_arxiv("<see> arXiv 2309.05858v2, Fig. 4") == (
        '&lt;see&gt; <a href="https://arxiv.org/abs/2309.05858v2">arXiv 2309.05858v2</a>, Fig. 4'
    )
    assert link_arxiv("reference & data") == "reference &amp; data"


def test_long_tables_are_cut_on_the_page(tmp_path: Path) -> None:
    table = Table("long", "Long", ("n",), tuple((n,) for n in range(TABLE_ROWS + 10)))
    html = written(replace(REPORT, figures=(), tables=(table,)), tmp_path)
    assert html.count('<td class="number">') == TABLE_ROWS
    assert f"The first {TABLE_ROWS} of {TABLE_ROWS + 10} rows." in html


def test_a_report_without_figures_carries_no_plotting_library(tmp_path: Path) -> None:
    bare = replace(REPORT, figures=(), tables=(), claims=(), reductions=(), notes=())
    html = written(bare, tmp_path)
    assert len(html) < 30_000
    assert "No claim was measured." in html
    assert "<script" not in html


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("introduction", "one text", "introduction: got 'one text', but it must be a tuple of texts"),
        ("figures", (replace(FIGURE, id="../up"),), "figures.id: got '../up', but it must be letters"),
        ("figures", (FIGURE, FIGURE), "figures.id: got .* must be unique"),
        ("tables", (Table("a b", "t", (), ()),), "tables.id: got 'a b'"),
    ],
)
def test_reports_that_cannot_be_written(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(REPORT, **{field: value})


@pytest.mark.parametrize(
    ("held", "total", "sentence"),
    [
        (0, 0, "No claim was measured."),
        (0, 1, "The claim does not hold."),
        (1, 1, "The claim holds."),
        (0, 2, "0 of 2 claims hold."),
        (1, 3, "1 of 3 claims holds."),
        (9, 10, "9 of 10 claims hold."),
        (3, 3, "All 3 claims hold."),
    ],
)
def test_verdict(held: int, total: int, sentence: str) -> None:
    claim = Claim("id", "statement", "source", "not given", Threshold(low=0))
    assert verdict(tuple(claim.measure(float(index < held) - 0.5) for index in range(total))) == sentence


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (3599.7, "1 h 0 min"),
        (4321, "1 h 12 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.123456, "0.1235"), (1e-9, "1e-9"), (-2.5e-12, "-2.5e-12"), (3, "3"), ("three", "three"), (float("nan"), "nan")],
)
def test_numbers(number: float | str, text: str) -> None:
    assert format_number(number) == text
