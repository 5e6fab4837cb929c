"""Where trainings lie on disk: one folder per configuration, named by its hash, shared by every experiment."""

from dataclasses import dataclass
from pathlib import Path

from mesascope.config import config_hash
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
