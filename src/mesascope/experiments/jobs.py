"""An experiment with the folder its report goes to: whose folder that is, what is finished in it, and measuring."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesascope.claims import MeasuredClaim
from mesascope.config import SCHEMA, config_hash, to_json
from mesascope.environment import describe_environment
from mesascope.errors import InputError, StorageError
from mesascope.experiments.base import Experiment, Plan, Profile, Trained
from mesascope.files import read_json, remove_unfinished, write_json
from mesascope.report import Report, write_report
from mesascope.runs import RunStore, makespan

MANIFEST = "experiment.json"
RESULT = "result.json"
_MINIMUM_FREE_BYTES = 200 * 2**20


@dataclass(frozen=True)
class Outcome:
    """A finished report: the page, the claims and how long it takes in all, from nothing (seconds)."""

    page: Path
    claims: tuple[MeasuredClaim, ...]
    seconds: float


@dataclass(frozen=True)
class Job:
    """An experiment to be run.

    Attributes:
        experiment: what to run.
        plan: of the profile and the number of seeds.
        profile: settings to use.
        seeds: number of seeds instead of the profile's, or None.
        folder: where its report goes.
    """

    experiment: Experiment
    plan: Plan
    profile: Profile
    seeds: int | None
    folder: Path

    @classmethod
    def of(cls, experiment: Experiment, profile: Profile, seeds: int | None, folder: Path) -> "Job":
        """Plan an experiment.

        Raises:
            InputError: `seeds` is not positive.
        """
        return cls(experiment, experiment.plan(profile, seeds), profile, seeds, folder)

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def identity(self) -> dict[str, Any]:
        """What a folder must hold to be that of this job."""
        return {
            "schema": SCHEMA,
            "experiment": self.name,
            "profile": self.profile,
            "trainings": {label: config_hash(config) for label, config in self.plan.trainings.items()},
        }

    def is_reported(self) -> bool:
        """Whether the folder holds a finished report on exactly the claims of the plan."""
        if not (self.folder / "index.html").exists() or not (self.folder / RESULT).exists():
            return False
        return tuple(measured.claim for measured in self._stored_claims()) == self.plan.claims

    def stored(self) -> Outcome:
        """The finished report in the folder."""
        seconds = float(read_json(self.folder / RESULT)["seconds"])
        return Outcome(self.folder / "index.html", self._stored_claims(), seconds)

    def open(self) -> None:
        """Make the folder this job's own, without what killed writes have left in it."""
        for place in (self.folder, self.folder / "figures", self.folder / "tables"):
            remove_unfinished(place)
        write_json(self.folder / MANIFEST, self.identity)

    def report(self, store: RunStore, workers: int) -> Outcome:
        """Measure every claim on finished trainings and write the report.

        Args:
            store: where the trainings are.
            workers: trainings at once, for the time that the report says all of it takes.
        """
        begin = time.monotonic()
        findings = self.experiment.measure(Trained(self.plan, store))
        trained = makespan((store.seconds(config) for config in self.plan.trainings.values()), workers)
        seconds = trained + time.monotonic() - begin
        report = Report(
            title=self.experiment.title,
            introduction=self.experiment.introduction,
            command=self._command(),
            profile=self.profile,
            reductions=self.plan.reductions,
            claims=findings.claims,
            figures=findings.figures,
            tables=findings.tables,
            notes=findings.notes,
            configuration={label: to_json(config) for label, config in self.plan.trainings.items()},
            environment=describe_environment(),
            seconds=seconds,
        )
        # a report that is being replaced is not finished
        (self.folder / "index.html").unlink(missing_ok=True)
        return Outcome(write_report(report, self.folder), findings.claims, seconds)

    def _stored_claims(self) -> tuple[MeasuredClaim, ...]:
        return tuple(MeasuredClaim.from_json(entry) for entry in read_json(self.folder / RESULT)["claims"])

    def _command(self) -> str:
        if self.name == "quickstart":
            return "mesascope quickstart --out DIR"
        command = f"mesascope reproduce {self.name} --profile {self.profile} --out DIR"
        return command if self.seeds is None else f"{command} --seeds {self.seeds}"


def check_folder(folder: Path, manifest: str, identity: dict[str, Any], resume: bool) -> None:
    """Check that an output folder may be used; nothing is written.

    Args:
        folder: must be empty or absent, unless `resume` is set and it holds `identity`.
        manifest: the file in it that says what it holds.
        identity: what it has to hold.
        resume: go on in it.

    Raises:
        InputError: the folder is a file or holds something else, or `resume` is not set.
        StorageError: the disk is nearly full.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file, but it must be a folder")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / manifest).exists():
            raise InputError(f"out: {folder} is not empty and holds no experiment; choose a new folder")
        if read_json(folder / manifest) != identity:
            raise InputError(f"out: {folder} holds another experiment, profile or number of seeds; choose a new folder")
        if not resume:
            raise InputError(f"out: {folder} is not empty; choose a new folder, or go on in it with --resume")
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < _MINIMUM_FREE_BYTES:
        raise StorageError(
            f"out: {free / 2**20:.0f} MiB are free at {folder}, but {_MINIMUM_FREE_BYTES / 2**20:.0f} MiB are needed"
        )
