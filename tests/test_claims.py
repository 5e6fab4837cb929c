"""Thresholds judge, claims remember."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesascope.claims import Claim, MeasuredClaim, Threshold
from mesascope.errors import InputError

CLAIM = Claim("fig4.ratio", "The ratio of losses", "arXiv 2309.05858, Fig. 4", "not given", Threshold(0.9, 1.1))


@pytest.mark.parametrize(
    ("threshold", "inside", "outside", "text"),
    [
        (Threshold(low=0.5), [0.5, 0.6, 1e300], [0.4999, -1.0], "at least 0.5"),
        (Threshold(high=0.5), [0.5, 0.0, -1e300], [0.5001, 2.0], "at most 0.5"),
        (Threshold(0.9, 1.1), [0.9, 1.0, 1.1], [0.8999, 1.1001], "between 0.9 and 1.1"),
        (Threshold(1, 1), [1.0], [0.999, 1.001], "between 1 and 1"),
        (Threshold(low=0), [0.0, -0.0], [-5e-324], "at least 0"),
    ],
    ids=str,
)
def test_thresholds(threshold: Threshold, inside: list[float], outside: list[float], text: str) -> None:
    assert all(threshold.accepts(value) for value in inside)
    assert not any(threshold.accepts(value) for value in outside)
    assert str(threshold) == text


@pytest.mark.parametrize("threshold", [Threshold(low=0), Threshold(high=0), Threshold(-1, 1)], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_never_passes(threshold: Threshold, value: float) -> None:
    assert not threshold.accepts(value)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_an_interval_is_the_intersection_of_its_sides(value: float, low: float, width: float) -> None:
    both = Threshold(low, low + width).accepts(value)
    assert both == (Threshold(low=low).accepts(value) and Threshold(high=low + width).accepts(value))


def test_a_claim_that_cannot_fail_or_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match="threshold: got neither low nor high, so the claim could not fail"):
        Threshold()
    with pytest.raises(InputError, match="threshold: got low 2 above high 1"):
        Threshold(2, 1)


def test_a_measured_claim_as_json() -> None:
    measured = CLAIM.measure(1.05, (1.0, 1.1), "two seeds")
    assert measured.passed
    assert measured.to_json() == {
        "id": "fig4.ratio",
        "statement": "The ratio of losses",
        "source": "arXiv 2309.05858, Fig. 4",
        "paper_value": "not given",
        "measured": 1.05,
        "threshold": {"low": 0.9, "high": 1.1},
        "passed": True,
        "values": [1.0, 1.1],
        "note": "two seeds",
    }
    assert not CLAIM.measure(1.2).passed


def test_a_measurement_that_is_not_finite_is_stored_as_null_and_has_failed() -> None:
    stored = CLAIM.measure(math.nan, (1.0, math.inf)).to_json()
    assert (stored["measured"], stored["values"], stored["passed"]) == (None, [1.0, None], False)
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored


def test_a_stored_measurement_reads_back() -> None:
    for measured in (CLAIM.measure(1.05, (1.0, 1.1), "two seeds"), CLAIM.measure(1.2)):
        assert MeasuredClaim.from_json(measured.to_json()) == measured
    read_back = MeasuredClaim.from_json(CLAIM.measure(math.inf, (math.nan,)).to_json())
    assert math.isnan(read_back.measured)
    assert math.isnan(read_back.values[0])
    assert not read_back.passed
