"""One page over the reports of many experiments."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesascope.claims import MeasuredClaim
from mesascope.files import write_atomically
from mesascope.report.model import failed_first, verdict
from mesascope.report.page import template


@dataclass(frozen=True)
class OverviewEntry:
    """A finished report, as its `result.json` tells it.

    Attributes:
        name: of the experiment, and of the folder its report lies in.
        title: heading of the report.
        claims: in the order of the experiment.
        reductions: what was made smaller than in the paper.
        seconds: time from nothing to the report.
    """

    name: str
    title: str
    claims: tuple[MeasuredClaim, ...]
    reductions: tuple[str, ...]
    seconds: float

    @classmethod
    def from_result(cls, name: str, result: Mapping[str, Any]) -> "OverviewEntry":
        """Read the JSON values of a `result.json`."""
        claims = tuple(MeasuredClaim.from_json(entry) for entry in result["claims"])
        return cls(name, result["title"], claims, tuple(result["reductions"]), float(result["seconds"]))

    @property
    def page(self) -> str:
        """Where the report is, seen from the overview."""
        return f"{self.name}/index.html"

    @property
    def held(self) -> int:
        """How many claims hold."""
        return sum(claim.passed for claim in self.claims)

    @property
    def claims_failed_first(self) -> list[MeasuredClaim]:
        return failed_first(self.claims)


@dataclass(frozen=True)
class Overview:
    """What the page shows.

    Attributes:
        profile: of all reports.
        entries: finished reports.
        failures: why an experiment could not be finished, by name.
    """

    profile: str
    entries: tuple[OverviewEntry, ...]
    failures: Mapping[str, str]

    @property
    def claims(self) -> tuple[MeasuredClaim, ...]:
        """Those of all entries."""
        return tuple(claim for entry in self.entries for claim in entry.claims)


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sorts names as a reader does: fig2 before fig11."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def write_overview(overview: Overview, path: Path) -> Path:
    """Write the page as one self-contained HTML file, atomically; returns `path`."""
    claims = overview.claims
    html = template("overview.html.jinja").render(
        overview=overview,
        count=len(claims),
        failed=sum(not claim.passed for claim in claims) + len(overview.failures),
        verdict=verdict(claims),
    )
    write_atomically(path, html)
    return path
