"""Run an experiment from its plan to its report, in an output folder that can be resumed."""

from pathlib import Path

from rich.console import Console

from mesascope.errors import require
from mesascope.experiments.base import Experiment, Profile
from mesascope.experiments.jobs import MANIFEST, Job, Outcome, check_folder
from mesascope.experiments.workload import Workload
from mesascope.runs import RunStore, train_all
from mesascope.runs.display import TrainingDisplay


def execute(
    experiment: Experiment,
    out: Path,
    *,
    profile: Profile = "quick",
    seeds: int | None = None,
    store: Path | None = None,
    workers: int = 2,
    resume: bool = False,
    again: bool = False,
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
        again: measure and report again what is finished in `out`.
        console: where progress is printed; None prints nothing.

    Raises:
        InputError: `out` is not empty, or a batch does not fit into memory; nothing was touched.
        StorageError: the disk is full; what was finished before is kept.
        DivergenceError, CheckpointError: see `train`; finished trainings are kept.
    """
    console = console or Console(quiet=True)
    require(workers >= 1, "workers", workers, "at least 1")
    job, run_store = Job.of(experiment, profile, seeds, out), RunStore(store or out / "runs")
    check_folder(out, MANIFEST, job.identity, resume)
    if job.is_reported() and not again:
        console.print("The report is finished; measure it again with --again", highlight=False, soft_wrap=True)
        return job.stored()
    work = Workload.of([job], run_store, workers)
    job.open()
    work.announce(console)
    announce_reductions(job, console)
    with TrainingDisplay(console) as display:
        train_all(work.missing, run_store, workers, display)
    console.print("Measuring", highlight=False)
    return job.report(run_store, workers)


def announce_reductions(job: Job, console: Console) -> None:
    """Print how the profile falls short of the paper."""
    for reduction in job.plan.reductions:
        console.print(f"  reduced: {reduction}", highlight=False, markup=False, soft_wrap=True)
