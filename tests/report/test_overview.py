"""The page over many reports: complete, in the order of a reader, self-contained and accessible."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from mesascope.report import Overview, OverviewEntry, natural_order, write_overview
from mesascope.report.result import result_json
from report import demo
from report.test_page import Page

ENTRY = OverviewEntry.from_result("fig4", result_json(demo.report()))
FINE = replace(ENTRY, name="fig11", title="All is well", claims=ENTRY.claims[:2], reductions=())
OVERVIEW = Overview("quick", (ENTRY, FINE), {"fig12": "StorageError: the disk is full"})


def written(folder: Path, overview: Overview = OVERVIEW) -> Page:
    return Page(write_overview(overview, folder / "index.html").read_text())


def test_an_entry_is_read_from_a_result() -> None:
    report = demo.report()
    assert (ENTRY.title, ENTRY.reductions, ENTRY.seconds) == (report.title, report.reductions, round(report.seconds))
    assert [claim.claim for claim in ENTRY.claims] == [claim.claim for claim in report.claims]
    assert (ENTRY.held, ENTRY.page) == (2, "fig4/index.html")
    assert [claim.passed for claim in ENTRY.claims_failed_first] == [False, False, True, True]


def test_all_is_on_the_page(tmp_path: Path) -> None:
    page = written(tmp_path)
    texts = [text for _, text in page.texts]
    for text in ("4 of 6 claims hold.", "2 of 4", "2 of 2", "12 min 34 s", "0.6123", *ENTRY.reductions):
        assert text in texts, text
    rows = [(row["data-experiment"], row["class"]) for row in page.all("tr") if "data-experiment" in row]
    assert rows == [("fig4", "failed"), ("fig11", "passed"), ("fig12", "failed")]
    claims = [row["data-claim"] for row in page.all("tr") if "data-claim" in row]
    assert claims == [claim.claim.id for entry in (ENTRY, FINE) for claim in entry.claims_failed_first]
    assert any("not finished: StorageError: the disk is full" in text for text in texts)
    links = {link["href"] for link in page.all("a")}
    assert {"fig4/index.html", "fig11/index.html", "fig12/traceback.txt", "claims.json"} <= links
    assert "✗" in texts


def test_a_page_without_failures_says_so(tmp_path: Path) -> None:
    page = written(tmp_path, Overview("paper", (FINE,), {}))
    texts = [text for _, text in page.texts]
    assert "All 2 claims hold." in texts
    assert "Not finished" not in texts
    assert "mesascope reproduce all --profile paper --out DIR" in texts


def test_a_page_without_reports(tmp_path: Path) -> None:
    texts = [text for _, text in written(tmp_path, Overview("quick", (), {"fig4": "no"})).texts]
    assert "No claim was measured." in texts


def test_page_is_self_contained_and_accessible(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert not [tag for tag, names in page.elements for name in ("src", "srcset", "data", "poster") if names.get(name)]
    assert not page.all("script")
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    inside = [link["href"][1:] for link in page.all("a") if link["href"].startswith("#")]
    assert set(inside) <= set(ids)
    outside = [link["href"] for link in page.all("a") if link["href"].startswith("http")]
    assert all(link.startswith("https://arxiv.org/abs/") for link in outside)


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["fig11", "fig2", "fig4"], ["fig2", "fig4", "fig11"]),
        (["fig10", "quickstart", "fig9"], ["fig9", "fig10", "quickstart"]),
        (["fig5b", "fig5a", "fig50"], ["fig5a", "fig5b", "fig50"]),
    ],
)
def test_natural_order(names: list[str], ordered: list[str]) -> None:
    assert sorted(names, key=natural_order) == ordered
