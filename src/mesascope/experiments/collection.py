"""Run many experiments: shared trainings once and first, then every report, then one page over all of them."""

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mesascope.config import SCHEMA
from mesascope.errors import MesascopeError, require
from mesascope.experiments.base import Experiment, Profile
from mesascope.experiments.execute import announce_reductions
from mesascope.experiments.jobs import MANIFEST, RESULT, Job, Outcome, check_folder
from mesascope.experiments.workload import Workload
from mesascope.files import read_json, write_atomically, write_json
from mesascope.report import Overview, OverviewEntry, format_duration, natural_order, write_overview
from mesascope.runs import RunStore, train_each
from mesascope.runs.display import TrainingDisplay

COLLECTION_MANIFEST = "experiments.json"
TRACEBACK = "traceback.txt"


@dataclass(frozen=True)
class Collected:
    """What `reproduce` returns.

    Attributes:
        page: the page over all experiments.
        outcomes: the reports of the experiments that were asked for, by name.
        failures: one line for each experiment that could not be finished, by name.
    """

    page: Path
    outcomes: Mapping[str, Outcome]
    failures: Mapping[str, str]


def reproduce(
    experiments: Sequence[Experiment],
    out: Path,
    *,
    profile: Profile = "quick",
    seeds: int | None = None,
    store: Path | None = None,
    workers: int = 2,
    resume: bool = False,
    again: bool = False,
    console: Console | None = None,
) -> Collected:
    """Train all that is missing, then measure and report one experiment after the other.

    Writes `out/NAME/` as `execute` does for each, `out/claims.json` and `out/index.html`. These two cover every
    finished report in `out`, also of experiments that were not asked for this time. An error in a training or a
    measurement is an entry of `failures`, with its traceback in `out/NAME/traceback.txt`; it stops nothing else.

    Args:
        experiments: what to run, with distinct names.
        out: output folder; it must be empty or absent, unless `resume` is set and it holds the same profile.
        store: folder of run folders; None: `out/runs`.
        again: measure and report again what is finished.
        profile, seeds, workers, resume, console: as `execute`.

    Raises:
        InputError: an output folder is taken, or a batch does not fit into memory; nothing was touched.
        StorageError: the disk is full; what was finished before is kept.
        WorkerError, CheckpointError: see `train_each` and `train`; what was finished before is kept.
    """
    console = console or Console(quiet=True)
    require(workers >= 1, "workers", workers, "at least 1")
    names = [experiment.name for experiment in experiments]
    require(len(names) >= 1 and len(set(names)) == len(names), "experiments", names, "distinct names, at least one")
    identity = {"schema": SCHEMA, "profile": profile, "seeds": seeds}
    check_folder(out, COLLECTION_MANIFEST, identity, resume)
    jobs = [Job.of(experiment, profile, seeds, out / experiment.name) for experiment in experiments]
    for job in jobs:
        check_folder(job.folder, MANIFEST, job.identity, resume)
    finished = {job.name: job.stored() for job in jobs if job.is_reported() and not again}
    pending = [job for job in jobs if job.name not in finished]
    run_store = RunStore(store or out / "runs")
    work = Workload.of(pending, run_store, workers)
    write_json(out / COLLECTION_MANIFEST, identity)
    for name in finished:
        _print(console, f"{name}: the report is finished")
    work.announce(console)
    with TrainingDisplay(console) as display:
        errors = train_each(work.missing, run_store, workers, display)
    outcomes, failures = dict(finished), dict[str, str]()
    for job in pending:
        untrained = [errors[label] for label in errors if job.name in work.trainings[label].needed_by]
        found = _report(job, run_store, workers, untrained, console)
        if isinstance(found, Outcome):
            outcomes[job.name] = found
        else:
            failures[job.name] = found
        write_collection(out, profile, failures)
    return Collected(write_collection(out, profile, failures), outcomes, failures)


def write_collection(out: Path, profile: Profile, failures: Mapping[str, str]) -> Path:
    """Write `claims.json` and `index.html` over every finished report in `out`; returns the page's path."""
    names = sorted((page.parent.name for page in out.glob("*/index.html")), key=natural_order)
    entries = tuple(
        OverviewEntry.from_result(name, read_json(out / name / RESULT)) for name in names if name not in failures
    )
    claims = [{"experiment": entry.name, **claim.to_json()} for entry in entries for claim in entry.claims]
    write_json(out / "claims.json", claims)
    return write_overview(Overview(profile, entries, failures), out / "index.html")


def _report(job: Job, store: RunStore, workers: int, untrained: list[Exception], console: Console) -> Outcome | str:
    """The outcome of a job, or a line that says why there is none."""
    begin = time.monotonic()
    try:
        job.open()
        (job.folder / TRACEBACK).unlink(missing_ok=True)
        if untrained:
            raise untrained[0]
        _print(console, f"{job.name}: measuring")
        announce_reductions(job, console)
        outcome = job.report(store, workers)
    except Exception as error:
        # whatever goes wrong in one experiment, the others are worth finishing
        write_atomically(job.folder / TRACEBACK, "".join(traceback.format_exception(error)))
        line = str(error) if isinstance(error, MesascopeError) else f"{type(error).__name__}: {error}"
        _print(console, f"{job.name}: {line}")
        return " ".join(line.split())
    held = sum(claim.passed for claim in outcome.claims)
    spent = format_duration(time.monotonic() - begin)
    _print(console, f"{job.name}: {held} of {len(outcome.claims)} claims hold; measured in {spent}")
    return outcome


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
