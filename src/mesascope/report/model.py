"""What a report says, apart from how it is written."""

import re
from dataclasses import dataclass
from typing import Any

from mesascope.claims import MeasuredClaim
from mesascope.errors import require
from mesascope.figures import Figure, Table

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Report:
    """Everything a reader needs to judge a result and to repeat it.

    Attributes:
        title: heading, such as the figure of the paper that is reproduced.
        introduction: paragraphs of plain text that tell a newcomer what is shown.
        command: what to type to get this report again.
        profile: the settings that were used, `"quick"` or `"paper"`.
        claims: the measured claims, in the order of the experiment.
        configuration: the stored configuration, as JSON values.
        environment: versions and machine, as JSON values.
        seconds: time the result took.
        reductions: what was made smaller than in the paper, one sentence each.
        figures, tables: what was measured; their ids are file names, unique among figures and among tables.
        notes: further remarks, one paragraph each.
    """

    title: str
    introduction: tuple[str, ...]
    command: str
    profile: str
    claims: tuple[MeasuredClaim, ...]
    configuration: dict[str, Any]
    environment: dict[str, Any]
    seconds: float
    reductions: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("introduction", "reductions", "notes"):
            texts = getattr(self, name)
            require(not isinstance(texts, str), name, texts, "a tuple of texts, not a single text")
        for name, things in (("figures", self.figures), ("tables", self.tables)):
            ids = [thing.id for thing in things]
            for thing in ids:
                allowed = "letters, digits, '_', '-' and '.' only: it names a file"
                require(_ID.fullmatch(thing) is not None, f"{name}.id", thing, allowed)
            require(len(set(ids)) == len(ids), f"{name}.id", ids, "unique")


def verdict(claims: tuple[MeasuredClaim, ...]) -> str:
    """One sentence: how many claims hold."""
    held = sum(claim.passed for claim in claims)
    if not claims:
        return "No claim was measured."
    if len(claims) == 1:
        return "The claim holds." if held else "The claim does not hold."
    if held == len(claims):
        return f"All {held} claims hold."
    return f"{held} of {len(claims)} claims hold{'s' if held == 1 else ''}."


def failed_first(claims: tuple[MeasuredClaim, ...]) -> list[MeasuredClaim]:
    """The claims with those that failed in front, otherwise in their order."""
    return sorted(claims, key=lambda claim: claim.passed)


def format_number(value: str | float | int) -> str:
    """A number as a reader wants it, four significant digits; texts as they are."""
    if isinstance(value, (str, int)):
        return str(value)
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e+")


def format_duration(seconds: float) -> str:
    """A duration in the two largest units: `"42 s"`, `"3 min 5 s"`, `"1 h 12 min"`."""
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
