"""Pages about kept results, in Markdown: what was claimed, what the paper has, what was measured, and why it differs.

The pages follow from `results/PROFILE/NAME.json` and `why/CLAIM.md` alone: the same files give the same pages.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesascope.claims import MeasuredClaim
from mesascope.files import read_json, write_atomically
from mesascope.report.keep import image_name
from mesascope.report.model import format_duration, format_number, verdict
from mesascope.report.overview import natural_order

PROFILES = {"quick": "Quick profile", "paper": "Paper profile"}

_MOST_ROWS, _MOST_COLUMNS = 15, 8
"""Larger tables are in the results only."""

_GENERATED = "<!-- Written by `mesascope document`. Explanations belong into the folder why. -->"
_SPECIAL = re.compile(r"([\\`*{}\[\]<>|$~]|(?<!\w)_|_(?!\w))")


@dataclass(frozen=True)
class Kept:
    """A kept result.

    Attributes:
        name: of the experiment.
        profile: quick or paper.
        result: the JSON values of its `result.json`.
    """

    name: str
    profile: str
    result: Mapping[str, Any]

    @property
    def claims(self) -> tuple[MeasuredClaim, ...]:
        return tuple(MeasuredClaim.from_json(entry) for entry in self.result["claims"])

    @property
    def held(self) -> str:
        """How many claims hold, "3 of 4"."""
        return f"{sum(claim.passed for claim in self.claims)} of {len(self.claims)}"


def write_documents(results: Path, docs: Path) -> list[Path]:
    """Write the pages of `render_documents` and remove pages of experiments that are no longer kept.

    Returns the paths of the pages. Files that were not written by this function are left alone.
    """
    pages = render_documents(results, docs)
    for path, text in pages.items():
        write_atomically(path, text, "run the same command again")
    for old in set(docs.glob("*.md")) - set(pages):
        if old.read_text().startswith(_GENERATED):
            old.unlink()
    return list(pages)


def render_documents(results: Path, docs: Path) -> dict[Path, str]:
    """The text of `docs/index.md` and of `docs/NAME.md` for every experiment in `results`.

    Args:
        results: folder of `PROFILE/NAME.json`.
        docs: folder of the pages; `docs/why/CLAIM.md` holds an explanation of that claim's number.

    Raises:
        CheckpointError: a result cannot be read.
    """
    kept = [
        Kept(path.stem, profile, read_json(path, "make it again with `mesascope document`"))
        for profile in PROFILES
        for path in sorted((results / profile).glob("*.json"))
    ]
    why = {path.stem: path.read_text().strip() for path in (docs / "why").glob("*.md")}
    by_name: dict[str, list[Kept]] = {}
    for result in sorted(kept, key=lambda result: natural_order(result.name)):
        by_name.setdefault(result.name, []).append(result)
    pages = {docs / f"{name}.md": _page(of_name, why) for name, of_name in by_name.items()}
    return {docs / "index.md": _index(by_name), **pages}


def _index(by_name: Mapping[str, list[Kept]]) -> str:
    lines = [
        *(_GENERATED, "", "# Results", ""),
        "What was reproduced, by figure of [arXiv 2309.05858](https://arxiv.org/abs/2309.05858). Each claim was "
        "written down, with the range its number must lie in, before anything was measured; those that do not hold "
        "stay here with their numbers. The quick profile is smaller than the paper in ways that each page lists.",
        *("", "| | | claims that hold, quick profile | paper profile |", "|---|---|---|---|"),
    ]
    for name, results in by_name.items():
        held = {result.profile: result.held for result in results}
        title = results[0].result["title"]
        lines.append(f"| [{name}]({name}.md) | {_plain(title)} | {held.get('quick', '')} | {held.get('paper', '')} |")
    totals = []
    for profile in PROFILES:
        claims = [
            claim
            for results in by_name.values()
            for kept in results
            if kept.profile == profile
            for claim in kept.claims
        ]
        totals.append(f"{sum(claim.passed for claim in claims)} of {len(claims)}" if claims else "")
    lines.append(f"| | **all** | {' | '.join(totals)} |")
    lines += ["", "```{toctree}", ":hidden:", "", *by_name, "```"]
    return "\n".join(lines) + "\n"


def _page(results: list[Kept], why: Mapping[str, str]) -> str:
    """All profiles of one experiment."""
    newest = results[-1].result
    lines = [_GENERATED, "", f"# {_plain(newest['title'])}", ""]
    for paragraph in newest["introduction"]:
        lines += [_plain(paragraph), ""]
    for kept in results:
        lines += _profile(kept, why)
    return "\n".join(lines).rstrip() + "\n"


def _profile(kept: Kept, why: Mapping[str, str]) -> list[str]:
    result, machine = kept.result, kept.result["environment"]
    lines = [f"## {PROFILES[kept.profile]}", "", f"    {result['command']}", ""]
    lines += [
        f"{verdict(kept.claims)} From nothing it takes {format_duration(result['seconds'])} on {machine['cores']} "
        f"cores ({_plain(machine['processor'])}, torch {machine['torch']}).",
        "",
    ]
    if result["reductions"]:
        lines += ["Smaller than in the paper:", "", *(f"- {_plain(text)}" for text in result["reductions"]), ""]
    lines += ["| claim | paper | ours | required | |", "|---|---|---|---|---|"]
    lines += [_row(claim) for claim in kept.claims]
    lines.append("")
    for claim in kept.claims:
        explanation = why.get(claim.claim.id)
        if explanation is None and not claim.passed:
            explanation = "Not explained yet."
        if explanation is not None:
            lines += [f"**`{claim.claim.id}`** ({_word(claim)}): {explanation}", ""]
    for figure in result["figures"]:
        image = f"images/{image_name(kept.profile, kept.name, figure['id'])}"
        lines += [f"### {_plain(figure['title'])}", "", f"![{_plain(figure['title'])}]({image})", ""]
        lines += [_plain(figure["caption"]), ""]
    for table in result["tables"].values():
        if len(table["rows"]) <= _MOST_ROWS and len(table["columns"]) <= _MOST_COLUMNS:
            lines += [f"### {_plain(table['title'])}", "", *_table(table), ""]
    for note in result["notes"]:
        lines += [_plain(note), ""]
    return lines


def _table(table: Mapping[str, Any]) -> list[str]:
    rows = [[_plain("" if cell is None else format_number(cell)) for cell in row] for row in table["rows"]]
    head = [_plain(column) for column in table["columns"]]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _row(measured: MeasuredClaim) -> str:
    claim = measured.claim
    note = f" ({_plain(measured.note)})" if measured.note else ""
    statement = f"{_plain(claim.statement)}{note} <br> `{claim.id}` · {_plain(claim.source)}"
    cells = (
        statement,
        _plain(claim.paper_value),
        format_number(measured.measured),
        str(claim.threshold),
        _word(measured),
    )
    return f"| {' | '.join(cells)} |"


def _word(measured: MeasuredClaim) -> str:
    return "holds" if measured.passed else "**does not hold**"


def _plain(text: str) -> str:
    """Text in which no character means anything to Markdown."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
