"""What studies of token binding share: names of models, probes of their first layer, and lines over seeds."""

from collections.abc import Sequence

import numpy as np

from mesascope.experiments.base import Trained
from mesascope.experiments.studies.evaluation import Array
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.trainings import Architecture
from mesascope.figures import Line, LinePanel, Role
from mesascope.training.seeds import stream
from mesascope.uncover import QUANTITY_LABELS, ControlledProbe, ProbeResult, token_probes

NAMES: dict[Architecture, str] = {
    "softmax-7": "7 softmax layers",
    "hybrid": "softmax and mesa layer",
    "full-mesa": "2 mesa layers",
}

SHORT_NAMES: dict[Architecture, str] = {"softmax-7": "softmax", "hybrid": "hybrid", "full-mesa": "full_mesa"}
"""In the names of claims and files."""


def bound_tokens(models: Replicates, trained: Trained) -> list[ControlledProbe]:
    """Which of the last observations can be read off the first layer at the last time step, seed by seed."""
    return [
        token_probes(found.model, found.untrained, found.sequences, generator=stream(0, "probes"))
        for found in models.streams(trained, layers=(1,))
    ]


def shares(found: ProbeResult) -> Array:
    """Squared errors of probes of one layer as shares of the variance of their targets, `[t']`."""
    share: Array = found.mse.value[0] / found.variance
    return share


def probe_line(label: str, found: Sequence[ProbeResult], role: Role = "model", colour: int = 0) -> Line:
    """Squared errors of probes of one layer: mean and spread over seeds, or one seed with its bootstrap interval."""
    steps, score = found[0].time_steps, found[0].mse
    if len(found) == 1:
        return Line(label, steps, score.value[0], role, colour, score.low[0], score.high[0])
    return Line.over_seeds(label, steps, np.stack([one.mse.value[0] for one in found]), role, colour)


def token_panel(title: str, lines: Sequence[Line]) -> LinePanel:
    """Squared errors by the time of what is read."""
    return LinePanel(title, "time step t' of the observation that is read", QUANTITY_LABELS["mse"], tuple(lines))
