"""The trainings that jobs need: each once, however many figures share it, with the time it is expected to take."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rich.console import Console

from mesascope.config import config_hash
from mesascope.experiments.jobs import Job
from mesascope.report import format_duration
from mesascope.runs import RunStore, expected_seconds, makespan
from mesascope.training.config import TrainingConfig
from mesascope.training.memory import require_memory


@dataclass(frozen=True)
class Training:
    """A training and the jobs that need it.

    Attributes:
        label: what the first of these jobs calls it.
        config: what to train.
        needed_by: names of the jobs.
    """

    label: str
    config: TrainingConfig
    needed_by: tuple[str, ...]


@dataclass(frozen=True)
class Workload:
    """What is to be trained.

    Attributes:
        trainings: everything that the jobs need, by a label that no two share.
        seconds: expected time of those that are not finished, the longest first.
        workers: trainings at once.
    """

    trainings: Mapping[str, Training]
    seconds: Mapping[str, float]
    workers: int

    @classmethod
    def of(cls, jobs: Iterable[Job], store: RunStore, workers: int) -> "Workload":
        """Gather what the jobs need and time a step of what is missing.

        Raises:
            InputError: a training does not fit into memory.
            CheckpointError: a checkpoint in the store is corrupted.
        """
        trainings = gather(jobs)
        missing = {
            label: training.config for label, training in trainings.items() if not store.is_finished(training.config)
        }
        for config in missing.values():
            require_memory(config)
        return cls(trainings, expected_seconds(missing, store, workers), workers)

    @property
    def missing(self) -> dict[str, TrainingConfig]:
        """Configurations that are not finished, the longest first."""
        return {label: self.trainings[label].config for label in self.seconds}

    def announce(self, console: Console) -> None:
        """Print what is there, what will be trained, for whom, and how long that should take."""
        finished = len(self.trainings) - len(self.seconds)
        plural = "" if len(self.trainings) == 1 else "s"
        lines = [f"{len(self.trainings)} training{plural}, {finished} already there"]
        for label, seconds in self.seconds.items():
            steps = self.trainings[label].config.steps
            lines.append(f"  to train: {label}, {steps} steps, about {format_duration(seconds)}")
        if self.seconds:
            total = format_duration(makespan(self.seconds.values(), self.workers))
            lines.append(
                f"Trainings should take {total}, {self.workers} at once, as a step of each kind was just timed; "
                "measuring comes after that"
            )
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def gather(jobs: Iterable[Job]) -> dict[str, Training]:
    """The trainings of all jobs, equal ones once; labels name the jobs if there are several."""
    jobs = tuple(jobs)
    found: dict[str, Training] = {}
    for job in jobs:
        for label, config in job.plan.trainings.items():
            key = config_hash(config)
            known = found.setdefault(key, Training(label, config, ()))
            if job.name not in known.needed_by:
                found[key] = replace(known, needed_by=(*known.needed_by, job.name))
    if len(jobs) == 1:
        return {training.label: training for training in found.values()}
    # distinct: a label means one training in each job, so two with the same label have different first jobs
    return {f"{training.label} ({', '.join(training.needed_by)})": training for training in found.values()}
