"""An experiment from its plan to its page, and what happens to the output folder when something is in the way."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.fake import LABEL, TRAINING, FakeStudy, InterruptedStudy, fake_experiment
from mesascope.config import config_hash, to_json
from mesascope.errors import InputError, StorageError
from mesascope.experiments import execute as execute_module
from mesascope.experiments import jobs as jobs_module
from mesascope.experiments.execute import execute
from mesascope.runs import RunStore


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(store: Path) -> Path:
    return RunStore(store).folder(TRAINING) / "weights.safetensors"


def test_everything_is_written(tmp_path: Path) -> None:
    out, output = tmp_path / "out", io.StringIO()
    outcome = execute(fake_experiment(), out, workers=1, console=Console(file=output, width=80))
    assert outcome.page == out / "index.html"
    assert [claim.passed for claim in outcome.claims] == [True, False]
    written = contents(out)
    assert {"claims.json", "experiment.json", "index.html", "tables/log.csv"} <= set(written)
    assert {f"figures/learning_curve.{kind}" for kind in ("png", "svg", "csv")} <= set(written)
    assert weights(out / "runs").exists()
    stored = json.loads(written["claims.json"])
    assert [(claim["id"], claim["passed"]) for claim in stored] == [("fake.holds", True), ("fake.fails", False)]
    metrics = RunStore(out / "runs").metrics(TRAINING)
    assert stored[1]["measured"] == metrics[-1]["test_loss"]
    rows = list(csv.reader(io.StringIO(written["tables/log.csv"].decode())))
    assert rows[0] == ["step", "test loss"]
    assert [(int(step), float(loss)) for step, loss in rows[1:]] == [
        (record["step"], record["test_loss"]) for record in metrics
    ]
    page = written["index.html"].decode()
    for expected in ("A small experiment", "mesascope reproduce fake --profile quick --out DIR", "fake.fails"):
        assert expected in page
    assert json.loads(written["result.json"])["seconds"] == round(outcome.seconds)
    assert json.loads(written["experiment.json"]) == {
        "schema": 1,
        "experiment": "fake",
        "profile": "quick",
        "trainings": {LABEL: config_hash(TRAINING)},
    }
    lines = output.getvalue().splitlines()
    there, training, expected, reduced = lines[:4]
    assert there == "1 training, 0 already there"
    assert re.fullmatch(rf"  to train: {LABEL}, 20 steps, about \d+\.\d s", training)
    assert re.fullmatch(
        r"Trainings should take \d+\.\d s, 1 at once, as a step .*; measuring comes after that", expected
    )
    assert (reduced, lines[-1]) == ("  reduced: One seed.", "Measuring")


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    before = contents(tmp_path)
    for resume in (False, True):
        with pytest.raises(InputError, match=r"out: .* is not empty and holds no experiment; choose a new folder"):
            execute(fake_experiment(), tmp_path / "thesis", resume=resume)
    assert contents(tmp_path) == before


def test_a_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(InputError, match=r"out: .*notes\.txt is a file, but it must be a folder"):
        execute(fake_experiment(), path)
    assert contents(tmp_path) == {"notes.txt": b"precious"}


def test_resuming_removes_what_a_killed_write_left(tmp_path: Path) -> None:
    execute(fake_experiment(), tmp_path, workers=1)
    left = [tmp_path / ".index.html.a1b2.unfinished", tmp_path / "figures" / ".one.svg.a1b2.unfinished"]
    for path in left:
        path.write_text("<html")
    # the page is written last: without it the report was not finished
    (tmp_path / "index.html").unlink()
    execute(fake_experiment(), tmp_path, workers=1, resume=True)
    assert not any(path.exists() for path in left)


def test_finished_folder_needs_resume_and_is_then_reused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = execute(fake_experiment(), out, workers=1)
    before, written = contents(out), weights(out / "runs").stat().st_mtime_ns
    with pytest.raises(InputError, match=r"out: .* is not empty; choose a new folder, or go on in it with --resume"):
        execute(fake_experiment(), out, workers=1)
    assert contents(out) == before
    (out / "index.html").unlink()
    again = execute(fake_experiment(), out, workers=1, resume=True)
    assert weights(out / "runs").stat().st_mtime_ns == written
    assert again.claims == first.claims
    assert (out / "index.html").exists()


def test_a_finished_report_is_kept_unless_it_is_asked_for_again(tmp_path: Path) -> None:
    first, output = execute(fake_experiment(), tmp_path, workers=1), io.StringIO()
    before = contents(tmp_path)
    kept = execute(fake_experiment(), tmp_path, workers=1, resume=True, console=Console(file=output))
    assert contents(tmp_path) == before
    assert (kept.claims, kept.page) == (first.claims, first.page)
    assert kept.seconds == round(first.seconds)
    assert output.getvalue() == "The report is finished; measure it again with --again\n"
    page = tmp_path / "index.html"
    written = page.stat().st_mtime_ns
    execute(fake_experiment(), tmp_path, workers=1, resume=True, again=True)
    assert page.stat().st_mtime_ns > written


def test_a_report_on_other_claims_is_not_finished(tmp_path: Path) -> None:
    execute(fake_experiment(), tmp_path, workers=1)
    path = tmp_path / "result.json"
    stored = json.loads(path.read_text())
    stored["claims"][1]["threshold"]["high"] = 9.0
    path.write_text(json.dumps(stored))
    outcome = execute(fake_experiment(), tmp_path, workers=1, resume=True)
    assert [claim.passed for claim in outcome.claims] == [True, False]
    assert json.loads(path.read_text())["claims"][1]["threshold"]["high"] == -1.0


@pytest.mark.parametrize(
    ("other", "profile"),
    [
        (fake_experiment(), "paper"),
        (fake_experiment(name="another"), "quick"),
        (fake_experiment(FakeStudy(replace(TRAINING, steps=30))), "quick"),
    ],
    ids=["profile", "name", "training"],
)
def test_a_folder_belongs_to_one_experiment(tmp_path: Path, other: object, profile: str) -> None:
    execute(fake_experiment(), tmp_path, workers=1)
    before = contents(tmp_path)
    for resume in (False, True):
        with pytest.raises(InputError, match="holds another experiment, profile or number of seeds; choose a new"):
            execute(other, tmp_path, profile=profile, resume=resume)  # type: ignore[arg-type]
    assert contents(tmp_path) == before


def test_interrupted_before_the_report(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        execute(fake_experiment(InterruptedStudy()), tmp_path, workers=1)
    assert not (tmp_path / "index.html").exists()
    written = weights(tmp_path / "runs").stat().st_mtime_ns
    outcome = execute(fake_experiment(), tmp_path, workers=1, resume=True)
    assert outcome.page.exists()
    assert weights(tmp_path / "runs").stat().st_mtime_ns == written


def test_interrupted_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(execute_module, "train_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute(fake_experiment(), tmp_path, workers=1)
    assert set(contents(tmp_path)) == {"experiment.json"}
    assert execute(fake_experiment(), tmp_path, workers=1, resume=True).page.exists()


def test_the_time_counts_trainings_of_earlier_calls(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        execute(fake_experiment(InterruptedStudy()), tmp_path, workers=1)
    path = RunStore(tmp_path / "runs").folder(TRAINING) / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], json.dumps({**json.loads(lines[-1]), "seconds": 1000.0})]) + "\n")
    outcome = execute(fake_experiment(), tmp_path, workers=1, resume=True)
    assert 1000 < outcome.seconds < 1100


def test_experiments_share_a_store(tmp_path: Path) -> None:
    store, output = tmp_path / "store", io.StringIO()
    execute(fake_experiment(), tmp_path / "one", store=store, workers=1)
    written = weights(store).stat().st_mtime_ns
    two = fake_experiment(name="two")
    execute(two, tmp_path / "two", store=store, workers=1, console=Console(file=output, width=80))
    assert weights(store).stat().st_mtime_ns == written
    assert "1 training, 1 already there" in output.getvalue()
    assert not (tmp_path / "two" / "runs").exists()


def test_the_configuration_is_on_the_page(tmp_path: Path) -> None:
    page = execute(fake_experiment(), tmp_path, workers=1).page.read_text()
    for text in (LABEL, "ConstantRate", str(to_json(TRAINING)["steps"])):
        assert text in page


def test_nothing_is_written_for_inputs_that_cannot_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="workers: got 0, but it must be at least 1"):
        execute(fake_experiment(), out, workers=0)
    with pytest.raises(InputError, match="seeds: got 0, but it must be at least 1"):
        execute(fake_experiment(), out, seeds=0)
    with pytest.raises(InputError, match=r"batch_size, micro_batch, evaluation_batches: got 1000000000, .* GiB"):
        execute(fake_experiment(FakeStudy(replace(TRAINING, batch_size=10**9))), out)
    assert not out.exists()


def test_a_nearly_full_disk_is_reported_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = jobs_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(jobs_module.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    with pytest.raises(StorageError, match=r"out: 1 MiB are free at .*, but 200 MiB are needed"):
        execute(fake_experiment(), tmp_path / "out", workers=1)
    assert not weights(tmp_path / "out" / "runs").exists()
