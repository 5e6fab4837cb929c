"""How well every layer of a trained model knows the next observation (Figs. 4E, 6A, 24A and 25A)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.replicates import Replicates, figure_name
from mesascope.training.config import TrainingConfig
from mesascope.training.seeds import stream
from mesascope.uncover import ControlledProbe, target_probes

_EARLY, _LATE = slice(10, 20), slice(-10, None)


@dataclass(frozen=True)
class TargetProbes:
    """The study. Claims are judged by the worst seed; the figure and the table show the first.

    Attributes:
        figure: id of the paper's figure, `"fig4e"`; claims are named after it.
        models: what is probed.
    """

    figure: str
    models: Replicates

    @property
    def claims(self) -> tuple[Claim, ...]:
        layers, length = self.models.num_layers, self.models.task.length
        source, last = f"arXiv 2309.05858v2, {figure_name(self.figure)}", f"after layer {layers}"
        return (
            Claim(
                f"{self.figure}.descends",
                f"Layers, of {layers}, that lower the loss of a probe of the next observation at t = {length}, for the "
                "seed with the fewest",
                f"{source}: all but one; tolerance ours",
                "every layer improves",
                Threshold(low=layers - 1),
            ),
            Claim(
                f"{self.figure}.last_layer",
                f"Loss of a probe of the next observation {last} divided by that at the input, at t = {length}, for "
                "the seed with the largest",
                f"{source}; threshold ours",
                "not given",
                Threshold(high=0.2),
            ),
            Claim(
                f"{self.figure}.learns_in_context",
                f"Loss of a probe of the next observation {last}: mean over the last ten time steps divided by that "
                "over t = 11 .. 20, for the seed with the largest",
                f"{source}: it falls with t",
                "falls",
                Threshold(high=1.0),
            ),
        )

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return self.models.by_label

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        probes = [
            target_probes(found.model, found.untrained, found.sequences, generator=stream(0, "probes"))
            for found in self.models.streams(trained)
        ]
        losses = [found.model.loss.value for found in probes]
        descents = [sum(bool(deep < shallow) for shallow, deep in pairwise(loss[:, -1])) for loss in losses]
        ratios = [loss[-1, -1] / loss[0, -1] for loss in losses]
        gains = [loss[-1, _LATE].mean() / loss[-1, _EARLY].mean() for loss in losses]
        descends, last_layer, learns = self.claims
        sheet.record(descends.id, min(descents), tuple(descents))
        sheet.record(last_layer.id, max(ratios), tuple(ratios))
        sheet.record(learns.id, max(gains), tuple(gains))
        return self._findings(probes[0])

    def _findings(self, probes: ControlledProbe) -> Findings:
        id, title = f"{self.figure}_target_probes", f"Probes of the next observation ({figure_name(self.figure)})"
        caption = (
            "Loss with which a linear probe reads the next observation off the residual stream at time t, for every "
            "layer, on sequences on which it was not fitted. Bands: 95 % bootstrap intervals. Dotted: the best layer "
            "of the model before its training, and of the model when targets are those of other sequences."
        )
        figure = probes.figure(id, title, caption, "loss", log_y=True)
        return Findings(figures=(figure,), tables=(probes.table(id, title),))
