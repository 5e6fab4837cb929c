"""Many experiments: each training once, one that breaks leaves the others alone, and going on makes nothing twice."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.fake import LABEL, TRAINING, FakeStudy, InterruptedStudy, fake_experiment
from mesascope import cli
from mesascope import experiments as package
from mesascope.errors import InputError
from mesascope.experiments import collection
from mesascope.experiments.base import ClaimSheet, Experiment, Findings, Trained
from mesascope.experiments.collection import Collected, reproduce
from mesascope.experiments.jobs import Job
from mesascope.experiments.workload import gather
from mesascope.runs import RunStore
from mesascope.training.config import ConstantRate

OTHER = replace(TRAINING, seed=1)
DIVERGING = replace(TRAINING, schedule=ConstantRate(1e12), steps=200)


@dataclass(frozen=True)
class BrokenStudy(FakeStudy):
    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        raise ZeroDivisionError("no sequences\nat all")


def fake(name: str, study: FakeStudy = FakeStudy()) -> Experiment:
    return fake_experiment(study, name=name)


def run(out: Path, *experiments: Experiment, **options: Any) -> tuple[Collected, list[str]]:
    """What is returned, and the lines that are printed."""
    output = io.StringIO()
    options = {"workers": 1, "console": Console(file=output, width=80), **options}
    return reproduce(experiments, out, **options), output.getvalue().splitlines()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_reports_and_a_page_over_all(tmp_path: Path) -> None:
    experiments = (fake("fig2"), fake("fig11"), fake("fig3", FakeStudy(OTHER)))
    collected, lines = run(tmp_path, *experiments)
    assert collected.page == tmp_path / "index.html"
    assert list(collected.outcomes) == ["fig2", "fig11", "fig3"]
    assert collected.failures == {}
    assert lines[0] == "2 trainings, 0 already there"
    assert {line.split(",")[0] for line in lines[1:3]} == {
        f"  to train: {LABEL} (fig2, fig11)".split(",")[0],
        f"  to train: {LABEL} (fig3)".split(",")[0],
    }
    assert len(list((tmp_path / "runs").iterdir())) == 2
    for name in ("fig2", "fig3", "fig11"):
        assert {"index.html", "claims.json", "result.json"} <= set(contents(tmp_path / name))
        assert any(line.startswith(f"{name}: 1 of 2 claims hold; measured in ") for line in lines)
    claims = json.loads((tmp_path / "claims.json").read_text())
    assert [(claim["experiment"], claim["id"], claim["passed"]) for claim in claims] == [
        (name, f"fake.{verdict}", verdict == "holds")
        for name in ("fig2", "fig3", "fig11")
        for verdict in ("holds", "fails")
    ]
    page = (tmp_path / "index.html").read_text()
    assert "3 of 6 claims hold." in page
    assert [page.index(f'href="{name}/index.html"') for name in ("fig2", "fig3", "fig11")] == sorted(
        page.index(f'href="{name}/index.html"') for name in ("fig2", "fig3", "fig11")
    )


def test_what_fails_is_told_and_stops_nothing(tmp_path: Path) -> None:
    experiments = (
        fake("broken", BrokenStudy(OTHER)),
        fake("diverging", FakeStudy(DIVERGING)),
        fake("fine"),
    )
    collected, _ = run(tmp_path, *experiments)
    assert list(collected.outcomes) == ["fine"]
    assert list(collected.failures) == ["broken", "diverging"]
    assert collected.failures["broken"] == "ZeroDivisionError: no sequences at all"
    assert "1 linear layer, seed 0 (diverging): step " in collected.failures["diverging"]
    assert "in measure" in (tmp_path / "broken" / "traceback.txt").read_text()
    assert "DivergenceError" in (tmp_path / "diverging" / "traceback.txt").read_text()
    page = (tmp_path / "index.html").read_text()
    assert "not finished: ZeroDivisionError: no sequences at all" in page
    assert 'href="fine/index.html"' in page
    assert 'href="broken/index.html"' not in page
    assert {claim["experiment"] for claim in json.loads((tmp_path / "claims.json").read_text())} == {"fine"}
    mended, _ = run(tmp_path, fake("broken", FakeStudy(OTHER)), resume=True)
    assert mended.failures == {}
    assert set(contents(tmp_path / "broken")) & {"traceback.txt", "index.html"} == {"index.html"}
    assert {claim["experiment"] for claim in json.loads((tmp_path / "claims.json").read_text())} == {"fine", "broken"}


def test_going_on_after_an_interrupt(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, fake("one"), fake("two", InterruptedStudy()), fake("three"))
    assert (tmp_path / "one" / "index.html").exists()
    assert "one/index.html" in (tmp_path / "index.html").read_text()
    before = {**times(tmp_path / "one"), **times(tmp_path / "runs")}
    collected, lines = run(tmp_path, fake("one"), fake("two"), fake("three"), resume=True)
    assert list(collected.outcomes) == ["one", "two", "three"]
    assert lines[:2] == ["one: the report is finished", "1 training, 1 already there"]
    assert {**times(tmp_path / "one"), **times(tmp_path / "runs")} == before
    kept = times(tmp_path / "three")
    run(tmp_path, fake("one"), fake("two"), fake("three"), resume=True)
    assert times(tmp_path / "three") == kept
    run(tmp_path, fake("three"), resume=True, again=True)
    assert times(tmp_path / "three") != kept
    assert len(json.loads((tmp_path / "claims.json").read_text())) == 6


def test_folders_that_are_taken_are_not_touched(tmp_path: Path) -> None:
    run(tmp_path / "quick", fake("one"))
    run(tmp_path / "seeds", fake("one"), seeds=2)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    before = contents(tmp_path)
    for folder, options, message in (
        ("thesis", {"resume": True}, "is not empty and holds no experiment"),
        ("quick", {}, "is not empty; choose a new folder, or go on in it with --resume"),
        ("quick", {"profile": "paper", "resume": True}, "holds another experiment, profile or number of seeds"),
        ("seeds", {"resume": True}, "holds another experiment, profile or number of seeds"),
        ("quick", {"workers": 0, "resume": True}, "workers: got 0"),
    ):
        with pytest.raises(InputError, match=message):
            run(tmp_path / folder, fake("one"), **options)
    changed = fake("one", FakeStudy(OTHER))
    with pytest.raises(InputError, match=r"quick.one holds another experiment, profile or number of seeds"):
        run(tmp_path / "quick", changed, resume=True)
    with pytest.raises(InputError, match=r"experiments: got .*, but it must be distinct names, at least one"):
        run(tmp_path / "new", fake("one"), fake("one"))
    with pytest.raises(InputError, match="batch_size, micro_batch, evaluation_batches: got 1000000000"):
        run(tmp_path / "new", fake("one"), fake("two", FakeStudy(replace(TRAINING, batch_size=10**9))))
    assert contents(tmp_path) == before


def test_a_common_store(tmp_path: Path) -> None:
    run(tmp_path / "out", fake("one"), fake("two"), store=tmp_path / "store")
    assert RunStore(tmp_path / "store").is_finished(TRAINING)
    assert not (tmp_path / "out" / "runs").exists()


def test_labels_of_trainings_tell_them_apart(tmp_path: Path) -> None:
    jobs = [
        Job.of(fake(name, FakeStudy(config)), "quick", None, tmp_path / name)
        for name, config in (("a", TRAINING), ("b", OTHER), ("c", TRAINING), ("d", OTHER))
    ]
    found = gather(jobs)
    assert {label: training.config for label, training in found.items()} == {
        f"{LABEL} (a, c)": TRAINING,
        f"{LABEL} (b, d)": OTHER,
    }
    assert list(gather(jobs[:1])) == [LABEL]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the command line know the given experiments only."""

    def set_known(*experiments: Experiment) -> None:
        monkeypatch.setattr(package, "experiments", lambda: {found.name: found for found in experiments})

    return set_known


def test_command(tmp_path: Path, known: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    known(fake("fig2"), fake("quickstart"), fake("fig10"))
    options = ["--out", str(tmp_path / "all"), "--workers", "1"]
    assert cli.main(["reproduce", "all", *options]) == 0
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        *("claims.json", "experiments.json", "fig10", "fig2", "index.html", "runs"),
    ]
    printed = capsys.readouterr().out
    assert printed.index("\nfig2: 1 of 2 claims hold\n") < printed.index("\nfig10: 1 of 2 claims hold\n")
    assert "  FAILED fake.fails: measured " in printed
    assert printed.endswith(f"2 of 4 claims hold.\nreport: {tmp_path / 'all' / 'index.html'}\n")
    assert cli.main(["reproduce", "fig2", "fig10", "--out", str(tmp_path / "two"), "--workers", "1"]) == 0
    assert (tmp_path / "two" / "fig10" / "index.html").exists()
    assert cli.main(["reproduce", "fig2", "--out", str(tmp_path / "one"), "--workers", "1"]) == 0
    assert (tmp_path / "one" / "claims.json").exists()
    assert not (tmp_path / "one" / "fig2").exists()


def test_command_that_could_not_finish_everything(
    tmp_path: Path, known: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    known(fake("fig1", BrokenStudy()), fake("fig2"))
    assert cli.main(["reproduce", "all", "--out", str(tmp_path), "--workers", "1"]) == 1
    shown = capsys.readouterr()
    assert shown.err == (
        "mesascope: 1 of 2 experiments could not be finished: fig1: ZeroDivisionError: no sequences at all\n"
    )
    assert "1 of 2 claims holds." in shown.out
    assert "Traceback" not in shown.out + shown.err


def test_command_without_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.startswith("mesascope: names: got none; give names of experiments")
    assert cli.main(["reproduce", "fig4", "fig99", "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.startswith("mesascope: experiment: got 'fig99'; did you mean 'fig")
    assert not (tmp_path / "x").exists()


def test_the_page_holds_no_markup_of_others(tmp_path: Path) -> None:
    hostile = replace(fake("one"), title="</title><script>alert(1)</script>")
    run(tmp_path, hostile)
    page = collection.write_collection(tmp_path, "quick", {"two": "<img src=x>"}).read_text()
    assert "<script>" not in page
    assert "<img" not in page
    assert "default-src 'none'" in page
