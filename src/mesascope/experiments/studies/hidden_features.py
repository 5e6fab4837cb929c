"""Early layers compute the features in which nonlinear dynamics are linear (Fig. 2B)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.replicates import Replicates
from mesascope.figures import Figure
from mesascope.training.config import TrainingConfig
from mesascope.training.seeds import stream
from mesascope.uncover import ControlledProbe, hidden_state_probes

_SOURCE = "arXiv 2309.05858v2, Fig. 2B; threshold ours"

COMPUTED = {
    step: Claim(
        f"fig2b.computed_{step}",
        f"Squared error of held-out probes for MLP*(s_{step}) at t = 50, the least over layers 1 to 7, divided by that "
        "of the embedded input, for the seed with the largest",
        _SOURCE,
        "not given",
        Threshold(high=0.5),
    )
    for step in (50, 49)
}
EARLY = Claim(
    "fig2b.early",
    "Layer of 7 with the least squared error for MLP*(s_49) and for MLP*(s_50), the later of both, for the seed with "
    "the latest: in the first half",
    _SOURCE,
    "early layers",
    Threshold(1, 3.5),
)
LEARNED = Claim(
    "fig2b.learned",
    "Control: squared error for MLP*(s_49) and for MLP*(s_50) at the best layer, divided by that at the best layer of "
    "an untrained model; the larger of both, for the seed with the largest",
    "control; threshold ours",
    "not given",
    Threshold(high=0.5),
)


@dataclass(frozen=True)
class HiddenFeatures:
    """The study. Claims are judged by the worst seed; the figure and the table show the first.

    Attributes:
        models: of seven layers, on nonlinear dynamics.
    """

    models: Replicates

    claims = (*COMPUTED.values(), EARLY, LEARNED)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return self.models.by_label

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        features = self.models.task.features
        if features is None:
            raise ValueError("models: their dynamics have no features")
        raw = replace(features, normalise=False)
        probes = [
            hidden_state_probes(found.model, found.untrained, found.sequences, raw, generator=stream(0, "probes"))
            for found in self.models.streams(trained)
        ]
        errors = np.stack([found.model.mse.value for found in probes])
        untrained = np.stack([found.untrained.mse.value for found in probes])
        for back, claim in enumerate(COMPUTED.values(), start=1):
            ratios = errors[:, 1:, -back].min(1) / errors[:, 0, -back]
            sheet.record(claim.id, max(ratios), tuple(ratios))
        best = [int(layer) for layer in 1 + errors[:, 1:, -2:].argmin(1).max(-1)]
        sheet.record(EARLY.id, max(best), tuple(best))
        learned = (errors[:, 1:, -2:].min(1) / untrained[:, 1:, -2:].min(1)).max(-1)
        sheet.record(LEARNED.id, max(learned), tuple(learned))
        table = probes[0].table("hidden_features", "Features MLP* in the residual stream at t = 50, seed 0")
        return Findings(figures=(_figure(probes[0]),), tables=(table,))


def _figure(found: ControlledProbe) -> Figure:
    return found.figure(
        "hidden_features",
        "Where the features of the dynamics are computed (Fig. 2B)",
        "How well MLP*(s_t'), in which the nonlinear dynamics are linear, can be read off the residual stream at t = "
        "50, by depth; held-out sequences, 95 % intervals, seed 0. Dotted: the best depth of a model that was never "
        "trained, whose random layers are features, too, and shuffled targets.",
    )
