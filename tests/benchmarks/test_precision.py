"""The precision benchmark: what is measured is an error, every claim can fail, and the committed page is up to date."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mesascope.benchmarks import precision
from mesascope.benchmarks.commands import BenchPrecision
from mesascope.benchmarks.precision import REGIMES, Errors, Regime, columns, measure
from mesascope.benchmarks.precision_claims import DOUBLE_CLAIM, judge, markdown, regime_claims
from mesascope.errors import InputError
from mesascope.files import read_json
from mesascope.ops import mesa_attention, native_available

PAGE = Path(__file__).parents[2] / "docs" / "precision.md"
SMALL = tuple(dataclasses.replace(regime, shapes=((7, 3), (12, 4))) for regime in REGIMES)


def test_every_regime_is_measured_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_SEGMENT", 5)
    said: list[str] = []
    measured = measure(SMALL, said.append)
    assert said == [regime.title for regime in SMALL]
    assert set(measured) == {(regime, column) for regime in SMALL for column in columns(regime)}
    assert all(min(errors.output, errors.gradient, errors.ridge) > 0 for errors in measured.values())
    claims = judge(measured)
    assert [claim.claim.id for claim in claims if not claim.passed] == []
    assert len(claims) == 2 * len(SMALL) + 1
    assert len({claim.claim.id for claim in claims}) == len(claims)


@pytest.mark.parametrize("operand", ["output", "q", "k", "v", "ridge", "log_forget", "write"])
def test_an_error_is_measured_as_what_it_is(operand: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that is wrong by 1 % in one gradient or in the output."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return 1.01 * gradient

    def wrong(**given: Tensor) -> Tensor:
        if operand != "output" and operand in given:
            given[operand] = Wrong.apply(given[operand])
        output = mesa_attention(**given)
        return output + 0.01 * output.detach() if operand == "output" else output

    monkeypatch.setattr(precision, "_backend", lambda name, regularizer: wrong)
    regime = dataclasses.replace(SMALL[0], gates="initial")
    for errors in measure((regime,), lambda what: None).values():
        found = dataclasses.asdict(errors)
        kind = operand if operand in ("output", "ridge") else "gradient"
        assert found.pop(kind) == pytest.approx(0.01, rel=1e-3)
        assert max(found.values()) < 1e-4


def test_every_claim_fails_where_its_limit_is_passed() -> None:
    limits = {regime: Errors(regime.limit, regime.limit, regime.ridge_limit) for regime in REGIMES}
    for index in range(len(REGIMES)):
        for name in ("output", "gradient", "ridge"):
            measured = {}
            for regime, limit in limits.items():
                for column in columns(regime):
                    errors = limit if column.dtype == regime.inputs else Errors(1e-10, 1e-10, 1e-10)
                    if regime == REGIMES[index]:
                        errors = dataclasses.replace(errors, **{name: 1.1 * getattr(errors, name)})
                    measured[regime, column] = errors
            claim, ridge_claim = regime_claims(REGIMES[index])
            expected = {(ridge_claim if name == "ridge" else claim).id}
            if REGIMES[index].inputs == torch.float32:
                expected.add(DOUBLE_CLAIM.id)
            assert {judged.claim.id for judged in judge(measured) if not judged.passed} == expected


def test_thresholds() -> None:
    limits = {regime.name: (regime.limit, regime.ridge_limit) for regime in REGIMES}
    assert limits["moderate"] == limits["initial_gates"] == limits["constant_gates"] == (1e-5, 1e-5)
    assert limits["subspace"] == (1e-5, 1e-4)
    assert limits["small_ridge"] == limits["large_keys"] == (1e-4, 1e-3)
    assert limits["long"] == (1e-3, 1e-3)
    assert limits["float16"][0] == torch.finfo(torch.float16).eps / 2
    assert limits["bfloat16"][0] == torch.finfo(torch.bfloat16).eps / 2
    assert DOUBLE_CLAIM.threshold.high == 1e-10


def test_the_committed_page_has_every_regime_and_every_claim_holds() -> None:
    text = PAGE.read_text()
    for regime in REGIMES:
        assert f"| {regime.title} |" in text
    rows = re.findall(r"\| `(.*?)` \| (.*?) \| (.*?) \| (.*?) \|", text)
    claims = [claim for regime in REGIMES for claim in regime_claims(regime)] + [DOUBLE_CLAIM]
    assert [row[:2] for row in rows] == [(claim.id, f"{claim.threshold.high:.1e}") for claim in claims]
    assert all(float(measured) <= float(limit) and holds == "yes" for _, limit, measured, holds in rows)


@pytest.mark.skipif(not native_available(), reason="the page has the columns of the kernels")
def test_the_page_is_made_by_this_code() -> None:
    measured = {(regime, column): Errors(1e-12, 2e-12, 3e-12) for regime in REGIMES for column in columns(regime)}

    def without_numbers(text: str) -> list[str]:
        return [
            line for line in re.sub(r"\d\.?\d*e-\d+", "", text).splitlines() if not line.startswith("Measured with")
        ]

    assert without_numbers(markdown(measured, judge(measured))) == without_numbers(PAGE.read_text())


def test_the_command_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few: tuple[Regime, ...] = (SMALL[0], next(regime for regime in SMALL if regime.name == "long"))
    monkeypatch.setattr(precision, "REGIMES", few)
    BenchPrecision(markdown=tmp_path / "page.md", json=tmp_path / "claims.json", quick=True).run()
    page, stored = (tmp_path / "page.md").read_text(), read_json(tmp_path / "claims.json")
    assert few[0].title in page
    assert few[1].title not in page
    assert [claim["id"] for claim in stored["claims"]] == [
        "precision.moderate",
        "precision.moderate_ridge",
        DOUBLE_CLAIM.id,
    ]
    with pytest.raises(InputError, match=r"markdown: got .* a file, not a folder"):
        BenchPrecision(markdown=tmp_path).run()
