"""What studies of probes share: the models they probe, how, and their lines over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mesascope.experiments.base import Profile, Trained
from mesascope.experiments.studies.evaluation import Array, evaluation_sequences
from mesascope.experiments.studies.trainings import Architecture, Setting, plain_training
from mesascope.figures import Line, Role
from mesascope.nn import Transformer
from mesascope.training.config import TrainingConfig
from mesascope.training.seeds import stream
from mesascope.uncover import ControlledProbe, ProbeResult, residual_stream, token_probes

NAMES: dict[Architecture, str] = {
    "softmax-7": "7 softmax layers",
    "hybrid": "softmax and mesa layer",
    "full-mesa": "2 mesa layers",
}

SHORT_NAMES: dict[Architecture, str] = {"softmax-7": "softmax", "hybrid": "hybrid", "full-mesa": "full_mesa"}
"""In the names of claims and files."""

SETTINGS: dict[Setting, str] = {
    "linear": "full observation",
    "partial": "partial observation",
    "nonlinear": "nonlinear dynamics",
}


@dataclass(frozen=True)
class ProbedModel:
    """A model on plain tokens, of which there is one training per seed.

    Attributes:
        setting, architecture, embed_dim: as for `plain_training`.
    """

    setting: Setting
    architecture: Architecture
    embed_dim: int = 80

    @property
    def name(self) -> str:
        width = f", width {self.embed_dim}" if self.setting == "partial" else ""
        return f"{NAMES[self.architecture]}, {SETTINGS[self.setting]}{width}"

    def label(self, seed: int) -> str:
        """Of its training."""
        return f"{self.name}, seed {seed}"

    def trainings(self, profile: Profile, seeds: int) -> dict[str, TrainingConfig]:
        """One per seed, by label."""
        return {
            self.label(seed): plain_training(self.setting, self.architecture, profile, seed, embed_dim=self.embed_dim)
            for seed in range(seeds)
        }


def untrained_twin(config: TrainingConfig) -> Transformer:
    """A model of the same architecture with fresh weights, other than those that the training began with."""
    return Transformer(config.model, stream(config.seed, "untrained"), name="untrained model")


def bound_tokens(config: TrainingConfig, models: Sequence[Transformer], sequences: int) -> list[ControlledProbe]:
    """Which of the last tokens can be read off the first layer at the last time step, for models of one training."""
    batch, control = evaluation_sequences(config.task, sequences), untrained_twin(config)
    untrained = residual_stream(control, batch, layers=[1])
    return [
        token_probes(
            residual_stream(model, batch, layers=[1]), untrained, batch, generator=stream(config.seed, "probes")
        )
        for model in models
    ]


def bound_tokens_of(trained: Trained, model: ProbedModel, seeds: int, sequences: int) -> list[ControlledProbe]:
    """The same for the finished trainings of a model, seed by seed."""
    labels = [model.label(seed) for seed in range(seeds)]
    return [bound_tokens(trained.config(label), [trained.model(label, label)], sequences)[0] for label in labels]


def shares(found: ProbeResult) -> Array:
    """Squared errors as shares of the variance of the targets, `[depths, T]`."""
    share: Array = found.mse.value / found.variance
    return share


def probe_line(label: str, found: Sequence[ProbeResult], role: Role = "model", colour: int = 0) -> Line:
    """Squared errors of a probed layer: mean and spread over seeds, or one seed with its bootstrap interval."""
    steps, score = found[0].time_steps, found[0].mse
    if len(found) == 1:
        return Line(label, steps, score.value[0], role, colour, score.low[0], score.high[0])
    return Line.over_seeds(label, steps, np.stack([one.mse.value[0] for one in found]), role, colour)
