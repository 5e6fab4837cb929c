"""What an experiment is: trainings to make, claims written down beforehand, and a measurement that decides them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

from mesascope.claims import Claim, MeasuredClaim
from mesascope.errors import require
from mesascope.figures import Figure, Table
from mesascope.nn.transformer import Transformer
from mesascope.runs.store import RunStore
from mesascope.training.config import TrainingConfig

Profile = Literal["quick", "paper"]
"""quick: minutes on a laptop, with its reductions stated. paper: the paper's settings and seeds."""


@dataclass(frozen=True)
class Plan:
    """All that is decided before anything runs.

    Attributes:
        studies: the parts of the experiment, in the order of its report.
        trainings: what has to be trained, by label.
        claims: what will be measured, by id.
        reductions: how the profile falls short of the paper, one sentence each; empty for none.
        expected_minutes: on 2 cores, when nothing is there yet.
    """

    studies: "tuple[Study, ...]"
    trainings: Mapping[str, TrainingConfig]
    claims: tuple[Claim, ...]
    reductions: tuple[str, ...]
    expected_minutes: float


@dataclass(frozen=True)
class Findings:
    """What a measurement found: parts of a report.

    Attributes:
        claims: one entry for every claim of the plan.
        figures, tables: what the report shows, in order.
        notes: sentences a reader needs beside the figures.
    """

    claims: tuple[MeasuredClaim, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: "Findings") -> "Findings":
        return Findings(
            self.claims + other.claims,
            self.figures + other.figures,
            self.tables + other.tables,
            self.notes + other.notes,
        )


@dataclass(frozen=True)
class Trained:
    """The finished trainings of a plan, by label."""

    plan: Plan
    store: RunStore

    def config(self, label: str) -> TrainingConfig:
        return self.plan.trainings[label]

    def model(self, label: str, name: str) -> Transformer:
        """The trained model, called `name` in tables and legends."""
        return self.store.model(self.config(label), name)

    def metrics(self, label: str) -> list[dict[str, float]]:
        """The evaluations of the training, oldest first."""
        return self.store.metrics(self.config(label))

    def snapshot_steps(self, label: str) -> list[int]:
        return self.store.snapshot_steps(self.config(label))

    def snapshot(self, label: str, step: int, name: str) -> Transformer:
        return self.store.snapshot(self.config(label), step, name)


@runtime_checkable
class Study(Protocol):
    """A part of an experiment: trainings that belong together, claims about them, and their measurement."""

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What the study claims, whatever its settings."""
        ...

    def trainings(self) -> Mapping[str, TrainingConfig]:
        """What has to be trained, by label; a label that two studies share must mean the same training."""
        ...

    def measure(self, trained: Trained, sheet: "ClaimSheet") -> Findings:
        """Record every claim on `sheet` and return figures, tables and notes."""
        ...


@dataclass(frozen=True)
class Settings:
    """What a profile of an experiment consists of; attributes as in `Plan`."""

    studies: tuple[Study, ...]
    reductions: tuple[str, ...]
    expected_minutes: float


@dataclass(frozen=True)
class Experiment:
    """One file of this package: a result of the paper, or a tour through several.

    Attributes:
        name: what `mesascope reproduce` calls it.
        title: heading of its report.
        introduction: paragraphs for a reader who has not seen the paper.
        settings: maps a profile and a number of seeds (None: the profile's own) to what it consists of.
    """

    name: str
    title: str
    introduction: tuple[str, ...]
    settings: Callable[[Profile, int | None], Settings]

    def plan(self, profile: Profile, seeds: int | None = None) -> Plan:
        """What to train and what to claim.

        Raises:
            InputError: `seeds` is not positive.
        """
        require(seeds is None or seeds >= 1, "seeds", seeds, "at least 1")
        settings = self.settings(profile, seeds)
        trainings: dict[str, TrainingConfig] = {}
        for study in settings.studies:
            for label, config in study.trainings().items():
                if trainings.setdefault(label, config) != config:
                    raise ValueError(f"two studies train different models under the label {label!r}")
        claims = tuple(claim for study in settings.studies for claim in study.claims)
        return Plan(settings.studies, trainings, claims, settings.reductions, settings.expected_minutes)

    def measure(self, trained: Trained) -> Findings:
        """Measure every claim of the plan on finished trainings, study by study."""
        sheet, findings = ClaimSheet(trained.plan), Findings()
        for study in trained.plan.studies:
            findings = findings + study.measure(trained, sheet)
        return replace(findings, claims=sheet.finish())


@dataclass
class ClaimSheet:
    """Collects one measurement for each claim of a plan; more, fewer or unknown ones are programming errors."""

    plan: Plan
    measured: dict[str, MeasuredClaim] = field(default_factory=dict)

    def record(self, claim_id: str, *args: Any, **kwargs: Any) -> None:
        """Measure the claim called `claim_id`; arguments as `Claim.measure`."""
        claims = {claim.id: claim for claim in self.plan.claims}
        if claim_id not in claims:
            raise ValueError(f"claim {claim_id} is not in the plan")
        if claim_id in self.measured:
            raise ValueError(f"claim {claim_id} is measured twice")
        self.measured[claim_id] = claims[claim_id].measure(*args, **kwargs)

    def finish(self) -> tuple[MeasuredClaim, ...]:
        """All measured claims in the order of the plan; a claim without a number is a programming error."""
        missing = [claim.id for claim in self.plan.claims if claim.id not in self.measured]
        if missing:
            raise ValueError(f"claims were not measured: {', '.join(missing)}")
        return tuple(self.measured[claim.id] for claim in self.plan.claims)
