"""Only the first softmax layer needs its softmax: the others can be replaced by linear layers (Fig. 5A)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.evaluation import Array, evaluation_sequences, in_batches
from mesascope.experiments.studies.replicates import Replicates
from mesascope.figures import Figure, Line, LinePanel, Table
from mesascope.nn import Transformer
from mesascope.tasks import Dynamics
from mesascope.training.config import TrainingConfig
from mesascope.training.seeds import stream
from mesascope.uncover import Distillation, Linearisation, linearisation_losses, linearise

_SOURCE = "arXiv 2309.05858v2, Fig. 5A"
_LARGE = 20
"""n_s from which on the claims about single layers hold."""

LATER = Claim(
    "fig5a.later_layers_are_linear",
    "Loss with one layer of 2 .. 7 replaced by a distilled linear layer, divided by the original loss: the largest "
    "over these layers, sizes n_s of at least 20 and seeds",
    f"{_SOURCE}; threshold ours",
    "near 1",
    Threshold(high=1.2),
)
FIRST = Claim(
    "fig5a.first_layer_is_not",
    "Loss with layer 1 replaced by a distilled linear layer, divided by the original loss: the smallest over sizes n_s "
    "of at least 20 and seeds",
    f"{_SOURCE}; threshold ours",
    "up to about 4",
    Threshold(low=1.5),
)
FALLS = Claim(
    "fig5a.falls_with_dimension",
    "Ratio of layers 2 .. 7, mean over layers and seeds, divided by that at the next smaller n_s: the largest",
    _SOURCE,
    "falls",
    Threshold(high=1.0),
)


@dataclass(frozen=True)
class LinearisedLayers:
    """The study.

    Attributes:
        models: softmax models by n_s, ascending; at least one with n_s >= 20.
        distillation: how linear layers are trained.
        sequences: number of sequences on which losses are measured.
    """

    models: Mapping[int, Replicates]
    distillation: Distillation = Distillation()
    sequences: int = 2560

    claims = (LATER, FIRST, FALLS)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return {label: config for models in self.models.values() for label, config in models.by_label.items()}

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        found = {
            n_s: [self._linearise(model, models.task, seed) for seed, model in enumerate(models.models(trained))]
            for n_s, models in self.models.items()
        }
        ratios = {n_s: np.stack([each.ratios for each in seeds]) for n_s, seeds in found.items()}
        large = np.concatenate([values for n_s, values in ratios.items() if n_s >= _LARGE])
        sheet.record(LATER.id, large[:, 1:].max(), tuple(large[:, 1:].max(0)))
        sheet.record(FIRST.id, large[:, 0].min(), tuple(large[:, 0]))
        means = [values[:, 1:].mean() for values in ratios.values()]
        steps = tuple(larger / smaller for smaller, larger in pairwise(means))
        sheet.record(FALLS.id, max(steps), steps, "means " + ", ".join(f"{mean:.3f}" for mean in means))
        return Findings(figures=(_figure(ratios),), tables=(_table(found),))

    def _linearise(self, model: Transformer, task: Dynamics, seed: int) -> Linearisation:
        layers = linearise(model, task, stream(seed, "distillation"), self.distillation)
        return linearisation_losses(model, layers, in_batches(evaluation_sequences(task, self.sequences)))


def _figure(ratios: Mapping[int, Array]) -> Figure:
    sizes, by_layer = np.array(list(ratios), dtype=np.float64), np.stack(list(ratios.values()), -1)
    lines = tuple(
        Line.over_seeds(f"layer {layer + 1}", sizes, by_layer[:, layer], "model", layer)
        for layer in range(by_layer.shape[1])
    )
    panel = LinePanel("One layer linear", "size of an observation n_s", "loss / loss of the original", lines)
    caption = (
        "Each attention layer of a trained softmax model in turn is replaced by a linear one that was trained to "
        "imitate it, and the loss is divided by that of the original. Sequences have T = 4 n_s."
    )
    return Figure("linearised_layers", "Which layers need their softmax (Fig. 5A)", caption, (panel,), 1)


def _table(found: Mapping[int, list[Linearisation]]) -> Table:
    rows = []
    for n_s, seeds in found.items():
        ratios, errors = (np.stack([getattr(each, part) for each in seeds]).mean(0) for part in ("ratios", "errors"))
        original = float(np.mean([each.original for each in seeds]))
        rows += [(n_s, layer + 1, original, float(ratios[layer]), float(errors[layer])) for layer in range(len(ratios))]
    columns = ("n_s", "layer", "loss of the original", "ratio when linear", "relative squared error of the imitation")
    return Table("linearised_layers", "One layer linear", columns, tuple(rows))
