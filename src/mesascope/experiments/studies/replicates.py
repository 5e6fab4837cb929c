"""Trainings that differ in their seed only, and the residual streams of their models."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mesascope.errors import require
from mesascope.experiments.base import Trained
from mesascope.experiments.studies.evaluation import evaluation_sequences
from mesascope.nn import Transformer
from mesascope.tasks import Dynamics, Sequences
from mesascope.training.config import TrainingConfig
from mesascope.training.seeds import stream
from mesascope.uncover import ResidualStream, residual_stream


@dataclass(frozen=True)
class Replicates:
    """Trainings of one architecture on one task.

    Attributes:
        by_label: one per seed.
    """

    by_label: Mapping[str, TrainingConfig]

    def __post_init__(self) -> None:
        labels = list(self.by_label)
        require(len(labels) >= 1, "by_label", labels, "at least one training")
        for part, read in _COMMON.items():
            same = len({read(config) for config in self.by_label.values()}) == 1
            require(same, "by_label", labels, f"trainings of one {part}")

    @classmethod
    def of(cls, name: str, training: Callable[[int], TrainingConfig], seeds: int) -> "Replicates":
        """`training(seed)` for every seed, labelled `"name, seed 0"` and so on."""
        return cls({f"{name}, seed {seed}": training(seed) for seed in range(seeds)})

    @property
    def task(self) -> Dynamics:
        return next(iter(self.by_label.values())).task

    @property
    def num_layers(self) -> int:
        return next(iter(self.by_label.values())).model.num_layers

    def models(self, trained: Trained) -> list[Transformer]:
        """The trained models, named by their labels."""
        return [trained.model(label, label) for label in self.by_label]

    def streams(self, trained: Trained, layers: Sequence[int] | None = None) -> "Iterator[Streams]":
        """What every model computes on the evaluation sequences of the task; one at a time, for they are large.

        `layers` as for `residual_stream`.
        """
        sequences = evaluation_sequences(self.task)
        for model, config in zip(self.models(trained), self.by_label.values(), strict=True):
            read, blank = (residual_stream(one, sequences, layers=layers) for one in (model, initial_model(config)))
            yield Streams(sequences, read, blank)


@dataclass(frozen=True)
class Streams:
    """Sequences, and the residual streams on them of a trained model and of its initial weights."""

    sequences: Sequences
    model: ResidualStream
    untrained: ResidualStream


def initial_model(config: TrainingConfig) -> Transformer:
    """The model as its training found it: the control that was never trained."""
    return Transformer(config.model, stream(config.seed, "weights"), name="untrained")


_COMMON: dict[str, Callable[[TrainingConfig], object]] = {
    "task": lambda config: config.task,
    "architecture": lambda config: config.model,
}


def figure_name(figure: str) -> str:
    """ "fig4e" as the paper writes it, "Fig. 4E"."""
    return f"Fig. {figure.removeprefix('fig').upper()}"
