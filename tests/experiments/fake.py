"""A small experiment with everything that one has: a training, claims that hold and do not, a figure and a table."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Experiment, Findings, Profile, Settings, Trained
from mesascope.figures import Figure, Line, LinePanel, Table
from mesascope.training.config import TrainingConfig
from training.tiny import LINEAR, varied

HOLDS = Claim("fake.holds", "Evaluations of the training", "these tests", "3", Threshold(3, 3))
FAILS = Claim("fake.fails", "Test loss after training", "these tests", "not given", Threshold(high=-1.0))
LABEL = "1 linear layer, seed 0"
TRAINING = varied(LINEAR, steps=20, evaluate_every=10)


@dataclass(frozen=True)
class FakeStudy:
    """Trains one model and looks at its evaluations."""

    training: TrainingConfig = TRAINING

    claims = (HOLDS, FAILS)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return {LABEL: self.training}

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        metrics = trained.metrics(LABEL)
        sheet.record(FAILS.id, metrics[-1]["test_loss"])
        sheet.record(HOLDS.id, len(metrics), note="one every 10 steps")
        steps, losses = (np.array([record[name] for record in metrics], float) for name in ("step", "test_loss"))
        panel = LinePanel("Learning curve", "optimiser step", "test loss", (Line("model", steps, losses),))
        rows = tuple((int(step), float(loss)) for step, loss in zip(steps, losses, strict=True))
        return Findings(
            figures=(Figure("learning_curve", "Learning curve", "Test loss during training.", (panel,), 1),),
            tables=(Table("log", "Test loss during training", ("step", "test loss"), rows),),
            notes=("A note beside the figure.",),
        )


@dataclass(frozen=True)
class InterruptedStudy(FakeStudy):
    """Stops when its trainings are finished, as if interrupted from the keyboard."""

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        raise KeyboardInterrupt


def fake_experiment(*studies: FakeStudy, name: str = "fake") -> Experiment:
    """An experiment of the given studies, or of one `FakeStudy`; its quick profile admits one reduction."""

    def settings(profile: Profile, seeds: int | None) -> Settings:
        reductions = ("One seed.",) if profile == "quick" else ()
        return Settings(studies or (FakeStudy(),), reductions, expected_minutes=0.1)

    return Experiment(name, "A small experiment", ("It shows that the parts fit.",), settings)
