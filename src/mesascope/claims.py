"""A claim is a statement with a threshold and a source, written down before anything is measured."""

import math
from dataclasses import dataclass
from typing import Any

from mesascope.errors import InputError


@dataclass(frozen=True)
class Threshold:
    """The closed interval a measured number must lie in; None leaves that side open. At least one side is given."""

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise InputError("threshold: got neither low nor high, so the claim could not fail")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise InputError(f"threshold: got low {self.low} above high {self.high}")

    def accepts(self, value: float) -> bool:
        """Whether `value` lies in the interval; never for a value that is not finite."""
        above = self.low is None or value >= self.low
        below = self.high is None or value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        if self.low is None:
            return f"at most {self.high:g}"
        if self.high is None:
            return f"at least {self.low:g}"
        return f"between {self.low:g} and {self.high:g}"


@dataclass(frozen=True)
class MeasuredClaim:
    """A claim and the number that was measured for it.

    Attributes:
        claim: what was claimed beforehand.
        measured: the number the threshold judges.
        values: what it summarises, for example one number per seed.
        note: anything a reader needs beside it, such as a reduction in the quick profile.
    """

    claim: "Claim"
    measured: float
    values: tuple[float, ...] = ()
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.claim.threshold.accepts(self.measured)

    def to_json(self) -> dict[str, Any]:
        """The entry of `claims.json`. A measurement that is not finite is stored as null (and has failed)."""

        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "id": self.claim.id,
            "statement": self.claim.statement,
            "source": self.claim.source,
            "paper_value": self.claim.paper_value,
            "measured": finite(self.measured),
            "threshold": {"low": self.claim.threshold.low, "high": self.claim.threshold.high},
            "passed": self.passed,
            "values": [finite(value) for value in self.values],
            "note": self.note,
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "MeasuredClaim":
        """Read back what `to_json` wrote; null becomes NaN."""

        def number(value: float | None) -> float:
            return math.nan if value is None else float(value)

        threshold = Threshold(**entry["threshold"])
        claim = Claim(entry["id"], entry["statement"], entry["source"], entry["paper_value"], threshold)
        values = tuple(number(value) for value in entry["values"])
        return cls(claim, number(entry["measured"]), values, entry["note"])


@dataclass(frozen=True)
class Claim:
    """What is claimed before it is measured.

    Attributes:
        id: short and stable, `"fig4.one_layer_is_one_step"`.
        statement: a sentence that names the measured quantity.
        source: where the claim comes from: paper and figure, or reference data.
        paper_value: the source's own number, or "not given".
        threshold: when the claim holds.
    """

    id: str
    statement: str
    source: str
    paper_value: str
    threshold: Threshold

    def measure(self, measured: float, values: tuple[float, ...] = (), note: str = "") -> MeasuredClaim:
        """This claim with its number."""
        return MeasuredClaim(self, float(measured), tuple(float(value) for value in values), note)
