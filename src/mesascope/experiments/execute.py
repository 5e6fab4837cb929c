"""Run an experiment from its plan to its report, in an output folder that can be resumed."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mesascope.claims import MeasuredClaim
from mesascope.config import SCHEMA, config_hash, to_json
from mesascope.environment import describe_environment
from mesascope.errors import InputError, StorageError, require
from mesascope.experiments.base import Experiment, Plan, Profile, Trained
from mesascope.files import read_json, remove_unfinished, write_json
from mesascope.report import Report, write_report
from mesascope.runs.display import TrainingDisplay
from mesascope.runs.engine import train_all
from mesascope.runs.store import RunStore
from mesascope.training.memory import require_memory

MANIFEST = "experiment.json"
_MINIMUM_FREE_BYTES = 200 * 2**20


@dataclass(frozen=True)
class Outcome:
    """What `execute` returns: the page, the claims and how long it took in all (seconds)."""

    page: Path
    claims: tuple[MeasuredClaim, ...]
    seconds: float


def execute(
    experiment: Experiment,
    out: Path,
    *,
    profile: Profile = "quick",
    seeds: int | None = None,
    store: Path | None = None,
    workers: int = 2,
    resume: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Train what is missing, measure every claim and write the report.

    Args:
        experiment: what to run.
        out: output folder; it must be empty or absent, unless `resume` is set and it holds the same experiment.
        profile: settings to use.
        seeds: number of seeds instead of the profile's.
        store: folder of run folders, shared between experiments; None: `out/runs`.
        workers: trainings at once.
        resume: go on in `out`.
        console: where progress is printed; None prints nothing.

    Raises:
        InputError: `out` is not empty, or a batch does not fit into memory; nothing was touched.
        StorageError: the disk is full; what was finished before is kept.
        DivergenceError, CheckpointError: see `train`; finished trainings are kept.
    """
    console = console or Console(quiet=True)
    begin = time.monotonic()
    require(workers >= 1, "workers", workers, "at least 1")
    plan = experiment.plan(profile, seeds)
    identity = {
        "schema": SCHEMA,
        "experiment": experiment.name,
        "profile": profile,
        "trainings": {label: config_hash(config) for label, config in plan.trainings.items()},
    }
    run_store = RunStore(store or out / "runs")
    for config in plan.trainings.values():
        if not run_store.is_finished(config):
            require_memory(config)
    spent = _open_output(out, identity, resume)
    _announce(plan, run_store, workers, console)
    with TrainingDisplay(console) as display:
        try:
            train_all(plan.trainings, run_store, workers, display)
        finally:
            _remember_time(out, identity, spent + time.monotonic() - begin)
    console.print("Measuring", highlight=False)
    findings = experiment.measure(Trained(plan, run_store))
    seconds = spent + time.monotonic() - begin
    page = write_report(
        Report(
            title=experiment.title,
            introduction=experiment.introduction,
            command=_command(experiment, profile, seeds),
            profile=profile,
            reductions=plan.reductions,
            claims=findings.claims,
            figures=findings.figures,
            tables=findings.tables,
            notes=findings.notes,
            configuration={label: to_json(config) for label, config in plan.trainings.items()},
            environment=describe_environment(),
            seconds=seconds,
        ),
        out,
    )
    seconds = spent + time.monotonic() - begin
    _remember_time(out, identity, seconds)
    return Outcome(page, findings.claims, seconds)


def _open_output(out: Path, identity: dict[str, object], resume: bool) -> float:
    """Check and claim the output folder; returns the seconds spent in it by earlier calls."""
    if out.exists() and not out.is_dir():
        raise InputError(f"out: {out} is a file, but it must be a folder")
    if out.exists() and any(out.iterdir()):
        manifest = out / MANIFEST
        if not manifest.exists():
            raise InputError(f"out: {out} is not empty and holds no experiment; choose a new folder")
        stored = read_json(manifest)
        seconds = float(stored.pop("seconds", 0.0))
        if stored != identity:
            raise InputError(f"out: {out} holds another experiment, profile or number of seeds; choose a new folder")
        if not resume:
            raise InputError(f"out: {out} is not empty; choose a new folder, or go on in it with --resume")
        for place in (out, out / "figures", out / "tables"):
            remove_unfinished(place)
        return seconds
    _remember_time(out, identity, 0.0)
    free = shutil.disk_usage(out).free
    if free < _MINIMUM_FREE_BYTES:
        raise StorageError(
            f"out: {free / 2**20:.0f} MiB are free at {out}, but {_MINIMUM_FREE_BYTES / 2**20:.0f} MiB are needed"
        )
    return 0.0


def _remember_time(out: Path, identity: dict[str, object], seconds: float) -> None:
    write_json(out / MANIFEST, {**identity, "seconds": round(seconds, 1)})


def _announce(plan: Plan, store: RunStore, workers: int, console: Console) -> None:
    finished = [label for label, config in plan.trainings.items() if store.is_finished(config)]
    missing = [label for label in plan.trainings if label not in finished]
    console.print(
        f"{len(plan.trainings)} trainings, {len(finished)} of them already there; about {plan.expected_minutes:g} "
        f"minutes on 2 cores from nothing, {workers} at once",
        highlight=False,
        soft_wrap=True,
    )
    for label in missing:
        console.print(f"  to train: {label}, {plan.trainings[label].steps} steps", highlight=False, soft_wrap=True)
    for reduction in plan.reductions:
        console.print(f"  reduced: {reduction}", highlight=False, soft_wrap=True)


def _command(experiment: Experiment, profile: Profile, seeds: int | None) -> str:
    if experiment.name == "quickstart":
        return "mesascope quickstart --out DIR"
    command = f"mesascope reproduce {experiment.name} --profile {profile} --out DIR"
    return command if seeds is None else f"{command} --seeds {seeds}"
