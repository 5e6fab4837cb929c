"""Where trainings lie on disk: one folder per configuration, named by its hash, shared by every experiment."""

from dataclasses import dataclass
from pathlib import Path

from mesascope.config import config_hash
from mesascope.files import read_tensors
from mesascope.nn.transformer import Transformer
from mesascope.training.config import TrainingConfig
from mesascope.training.loop import load_metrics, load_model


@dataclass(frozen=True)
class RunStore:
    """A folder of run folders.

    Attributes:
        root: the folder; made when the first run starts.
    """

    root: Path

    def folder(self, config: TrainingConfig) -> Path:
        """The run folder of a configuration, whether it exists or not."""
        return self.root / config_hash(config)

    def is_finished(self, config: TrainingConfig) -> bool:
        return (self.folder(config) / "weights.safetensors").exists()

    def steps_left(self, config: TrainingConfig) -> int:
        """Optimiser steps that are missing: all of them, those after the last checkpoint, or 0 if finished.

        Raises:
            CheckpointError: the checkpoint is corrupted.
        """
        if self.is_finished(config):
            return 0
        checkpoint = self.folder(config) / "checkpoint.safetensors"
        return config.steps - (read_tensors(checkpoint)[1]["step"] if checkpoint.exists() else 0)

    def seconds(self, config: TrainingConfig) -> float:
        """What a finished training took, in all calls together."""
        return self.metrics(config)[-1]["seconds"]

    def model(self, config: TrainingConfig, name: str) -> Transformer:
        """The trained model."""
        return _named(load_model(self.folder(config)), name)

    def metrics(self, config: TrainingConfig) -> list[dict[str, float]]:
        """The evaluations of the run, oldest first."""
        return load_metrics(self.folder(config))

    def snapshot_steps(self, config: TrainingConfig) -> list[int]:
        """Optimiser steps after which the weights were kept."""
        return sorted(int(path.stem) for path in (self.folder(config) / "snapshots").glob("*.safetensors"))

    def snapshot(self, config: TrainingConfig, step: int, name: str) -> Transformer:
        """The model after `step` optimiser steps."""
        return _named(load_model(self.folder(config), step), name)


def _named(model: Transformer, name: str) -> Transformer:
    model.name = name
    return model
