"""Two linear layers, with the settings and beside the results of the authors' public demo."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.evaluation import Array, curve, learning_curves, proposition_2_curves, time_axis
from mesascope.experiments.studies.reference_values import official_demo
from mesascope.figures import Figure, Line, LinePanel, Table
from mesascope.training.config import TrainingConfig

_SOURCE = "the authors' public demo, printed and stored results"

LOSS = Claim(
    "demo.two_layers",
    "Test loss of two linear layers after training (10 batches of 256 sequences)",
    _SOURCE,
    "0.431 after 2,400 steps",
    Threshold(high=0.45),
)
CURVE = Claim(
    "demo.curve",
    "Largest difference over t between the loss curve of our two layers and the authors' stored curve (mean of 5 test "
    "seeds)",
    _SOURCE,
    "0",
    Threshold(high=0.05),
)

LABEL = "2 linear layers, demo settings"


@dataclass(frozen=True)
class TwoLayers:
    """The study.

    Attributes:
        training: settings of the two-layer model.
    """

    training: TrainingConfig

    claims = (LOSS, CURVE)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return {LABEL: self.training}

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        demo = official_demo()
        stored = np.array(demo["transformer"])
        two_layers = curve(trained.model(LABEL, "2 linear layers"))
        cubic = proposition_2_curves("none", (3,))[3]
        steps, losses = learning_curves(trained, [LABEL])
        note = f"after {self.training.steps} steps"
        sheet.record(LOSS.id, losses[0, -1], note=f"{note}; {two_layers.mean():.4f} on the evaluation sequences")
        sheet.record(CURVE.id, np.abs(two_layers - stored.mean(0)).max(), note=note)
        printed = np.array(demo["training_loss_per_100_steps"])
        rows = [
            (int(step), float(loss), float(printed[index]) if (index := int(step) // 100) < len(printed) else "")
            for step, loss in zip(steps, losses[0], strict=True)
        ]
        table = Table("demo_log", "Test loss during training", ("step", "ours", "authors' log"), tuple(rows))
        return Findings(figures=(_figure(two_layers, stored, cubic, steps, losses, printed),), tables=(table,))


def _figure(two_layers: Array, stored: Array, cubic: Array, steps: Array, losses: Array, printed: Array) -> Figure:
    t = time_axis()
    along_time = (
        Line("2 linear layers", t, two_layers, "model", 0),
        Line.over_seeds("authors' demo, 5 test seeds", t, stored, "reference", 5),
        Line("best polynomial of degree 3", t, cubic, "hypothesis", 2),
    )
    learning = (
        Line("2 linear layers", steps, losses[0], "model", 0),
        Line("authors' log", np.arange(0.0, 100.0 * len(printed), 100.0), printed, "reference", 5),
    )
    caption = (
        "Left: loss along the sequence of two linear layers beside the curve stored with the authors' demo and the "
        "best polynomial preconditioner of degree 3, which two layers can express. Right: test loss during training."
    )
    panels = (
        LinePanel("Loss along the sequence, two layers", "time step t", "next-token loss", along_time),
        LinePanel("Learning curve, two layers", "optimiser step", "test loss", learning),
    )
    return Figure("two_layers", "Two linear layers", caption, panels, 2)
