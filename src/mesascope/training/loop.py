"""The training loop: AdamW on fresh sequences, exact resume, stop on divergence.

A run folder holds `config.json`, `environment.json`, `metrics.jsonl` (one line per evaluation),
`checkpoint.safetensors` (weights, optimiser and random state in one file, replaced atomically), `snapshots/` and, at
the end, `weights.safetensors`. A training that is killed at any moment and started again on its folder ends with the
same bits.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.config import SCHEMA, from_json, to_json
from mesascope.environment import describe_environment
from mesascope.errors import CheckpointError, DivergenceError, InputError
from mesascope.files import read_json, read_tensors, remove_unfinished, write_atomically, write_json, write_tensors
from mesascope.nn.transformer import Transformer
from mesascope.predictor import half_squared_error
from mesascope.tasks.sequences import Sequences
from mesascope.training.config import EVALUATION_BATCH, ClipGradNorm, ClipGradValue, TrainingConfig
from mesascope.training.memory import keep_freed_memory, require_memory
from mesascope.training.seeds import stream


@dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Attributes:
        step: optimiser steps done.
        steps: optimiser steps in all.
        loss: training loss of the latest step.
        steps_per_second: since this call of `train` began.
    """

    step: int
    steps: int
    loss: float
    steps_per_second: float


def sequence_loss(
    predictions: Float[Tensor, "batch time n_s"], targets: Float[Tensor, "batch time n_s"]
) -> Float[Tensor, ""]:
    """`half_squared_error` averaged over batch and time (arXiv 2309.05858, eq. 1, over T)."""
    return half_squared_error(predictions, targets).mean()


def train(config: TrainingConfig, folder: Path, on_progress: Callable[[Progress], None] | None = None) -> Transformer:
    """Train a model, or go on where `folder` stopped; a finished folder is only read.

    Sets torch's threads and has the C library keep freed memory, both for the whole process.

    Args:
        config: what to train.
        folder: the run folder; it is made if it does not exist.
        on_progress: called after every optimiser step.

    Returns:
        The trained model.

    Raises:
        InputError: the batch does not fit into memory.
        CheckpointError: the folder belongs to another configuration, or its checkpoint is corrupted.
        DivergenceError: the loss is not finite; the last good checkpoint is kept.
        StorageError: a file cannot be written; the files written before are intact.
    """
    if (folder / "config.json").exists() and load_config(folder) != config:
        raise CheckpointError(f"{folder}: holds a run with another configuration; choose another folder")
    if (folder / "weights.safetensors").exists():
        return load_model(folder)
    require_memory(config)
    for place in (folder, folder / "snapshots"):
        remove_unfinished(place)
    torch.set_num_threads(config.threads)
    state = TrainingState(config)
    if (folder / "checkpoint.safetensors").exists():
        state.restore(folder)
    else:
        write_json(folder / "config.json", {"schema": SCHEMA, "config": to_json(config)})
        write_json(folder / "environment.json", describe_environment())
    _keep_metrics_until(folder, state.step if state.step > 0 else -1)
    try:
        _run(state, folder, on_progress)
    except DivergenceError as error:
        raise DivergenceError(f"{error}. {_kept(folder)}") from None
    write_tensors(folder / "weights.safetensors", state.model.state_dict(), {"step": state.step})
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return state.model


def _run(state: "TrainingState", folder: Path, on_progress: Callable[[Progress], None] | None) -> None:
    config, test = state.config, test_sequences(state.config)
    start_step, start_time, start_seconds = state.step, time.monotonic(), state.seconds
    while True:
        state.seconds = start_seconds + time.monotonic() - start_time
        # a checkpoint is written after the evaluation at its step, so a resumed run has that one already
        resumed_here = state.step == start_step > 0
        if not resumed_here and (state.step % config.evaluate_every == 0 or state.step == config.steps):
            _append_metrics(folder, state, test)
        if config.snapshot_every is not None and state.step % config.snapshot_every == 0:
            path = folder / "snapshots" / f"{state.step:07d}.safetensors"
            write_tensors(path, state.model.state_dict(), {"step": state.step})
        if state.step == config.steps:
            return
        if state.step % config.checkpoint_every == 0 and state.step > start_step:
            state.save(folder)
        loss = state.update(state.draw())
        if on_progress is not None:
            rate = (state.step - start_step) / max(time.monotonic() - start_time, 1e-9)
            on_progress(Progress(state.step, config.steps, loss, rate))


def _kept(folder: Path) -> str:
    if not (folder / "checkpoint.safetensors").exists():
        return "No checkpoint had been due yet"
    _, metadata = read_tensors(folder / "checkpoint.safetensors")
    return f"The last good checkpoint, after step {metadata['step']}, is kept in {folder}"


def test_sequences(config: TrainingConfig) -> list[Sequences]:
    """The test batches of a training: a stream of their own, the same at every evaluation."""
    generator = stream(config.seed, "test")
    return [config.task.sample(EVALUATION_BATCH, generator) for _ in range(config.evaluation_batches)]


def load_config(folder: Path) -> TrainingConfig:
    """The configuration of a run folder.

    Raises:
        CheckpointError: the file is missing, not JSON or of another schema.
        InputError: a field is unknown or missing.
    """
    return _to_config(read_json(folder / "config.json"), folder / "config.json")


def read_config(path: Path) -> TrainingConfig:
    """The training configuration in a JSON file, `{"schema": 1, "config": {...}}`. Errors as in `load_config`."""
    return _to_config(read_json(path, "write one with `mesascope config NAME`"), path)


def _to_config(stored: Any, path: Path) -> TrainingConfig:
    if not isinstance(stored, dict) or stored.get("schema") != SCHEMA or "config" not in stored:
        raise CheckpointError(f"{path}: is not a configuration of schema {SCHEMA}")
    return from_json(TrainingConfig, stored["config"])


def load_model(folder: Path, step: int | None = None) -> Transformer:
    """The trained model of a finished run folder, or its snapshot after `step` optimiser steps."""
    path = folder / "weights.safetensors" if step is None else folder / "snapshots" / f"{step:07d}.safetensors"
    tensors, _ = read_tensors(path)
    model = Transformer(load_config(folder).model)
    model.load_state_dict(tensors)
    return model


def load_metrics(folder: Path) -> list[dict[str, float]]:
    """The evaluations of a run, oldest first: step, test_loss, train_loss, learning_rate, seconds.

    Raises:
        CheckpointError: the file is missing or a line is not JSON.
    """
    path = folder / "metrics.jsonl"
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); delete its folder to start again") from error


_NOT_DECAYED = ("raw_ridge", "raw_share", "forget_gate.b", "write_gate.b")
"""How the names of parameters end that are not decayed: at 0 a ridge is 0.69 and a gate half open."""


class TrainingState:
    """All that changes from step to step: weights, optimiser, random state and the losses since the last evaluation.

    A process that makes one keeps freed memory from then on.
    """

    def __init__(self, config: TrainingConfig) -> None:
        keep_freed_memory()
        self.config, self.step, self.seconds, self.train_losses = config, 0, 0.0, list[float]()
        self.model = Transformer(config.model, stream(config.seed, "weights"))
        self.generator = stream(config.seed, "train")
        named = dict(self.model.named_parameters())
        kept = [parameter for name, parameter in named.items() if name.endswith(_NOT_DECAYED)]
        others = [parameter for name, parameter in named.items() if not name.endswith(_NOT_DECAYED)]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": kept, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def draw(self) -> Sequences:
        """The sequences of the next step."""
        return self.config.task.sample(self.config.batch_size, self.generator)

    def update(self, sequences: Sequences) -> float:
        """One optimiser step on `sequences`; returns its loss.

        Raises:
            DivergenceError: the loss is not finite; the weights are as before.
        """
        config, rate = self.config, self.config.schedule(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        value = 0.0
        for start in range(0, config.batch_size, config.micro_batch):
            part = sequences.select(slice(start, start + config.micro_batch))
            loss = self.loss(part) * (part.batch_size / config.batch_size)
            with self.refusals_are_divergence():
                loss.backward()
            value += loss.item()
        if not math.isfinite(value):
            self.stop_diverged(f"the loss is {value}")
        match config.gradient_clip:
            case ClipGradValue(bound):
                torch.nn.utils.clip_grad_value_(self.model.parameters(), bound)
            case ClipGradNorm(bound):
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), bound)
        self.optimiser.step()
        self.step += 1
        self.train_losses.append(value)
        return value

    def loss(self, sequences: Sequences) -> Tensor:
        """The loss of the model on `sequences`, with gradient.

        Raises:
            DivergenceError: a layer refuses what earlier steps have made of its weights.
        """
        with self.refusals_are_divergence():
            return sequence_loss(self.model(sequences.tokens), sequences.targets)

    @contextmanager
    def refusals_are_divergence(self) -> Iterator[None]:
        """Turn a layer's refusal of its input or its gradient into a `DivergenceError`."""
        try:
            yield
        except InputError as error:
            # before the first step the configuration is to blame, and the layer's own message says it best
            if self.step == 0:
                raise
            self.stop_diverged(f"the loss cannot be computed ({error})")

    def stop_diverged(self, what: str) -> NoReturn:
        """Raise `DivergenceError`; `what` says which number is not finite."""
        raise DivergenceError(
            f"step {self.step}: {what} at learning rate {self.config.schedule(self.step):.2g}; try a smaller learning "
            "rate, a longer warm-up, a smaller gradient_clip or an activation_clip"
        )

    def save(self, folder: Path) -> None:
        """Replace the checkpoint, unless a weight is not finite."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            self.stop_diverged("a weight is not finite")
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            moments = self.optimiser.state[parameter]
            tensors |= {f"optimiser.{name}.{key}": moments[key] for key in ("step", "exp_avg", "exp_avg_sq")}
        tensors["generator"] = self.generator.get_state()
        metadata = {"step": self.step, "seconds": self.seconds, "train_losses": self.train_losses}
        write_tensors(folder / "checkpoint.safetensors", tensors, metadata)

    def restore(self, folder: Path) -> None:
        """Continue exactly from the checkpoint in `folder`."""
        tensors, metadata = read_tensors(folder / "checkpoint.safetensors")
        self.model.load_state_dict(
            {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        )
        for name, parameter in self.model.named_parameters():
            keys = ("step", "exp_avg", "exp_avg_sq")
            self.optimiser.state[parameter] = {key: tensors[f"optimiser.{name}.{key}"].clone() for key in keys}
        self.generator.set_state(tensors["generator"])
        self.step, self.seconds = metadata["step"], metadata["seconds"]
        self.train_losses = metadata["train_losses"]


def _append_metrics(folder: Path, state: TrainingState, test: list[Sequences]) -> None:
    with torch.no_grad():
        losses = [float(state.loss(batch)) for batch in test]
    record = {
        "step": state.step,
        "test_loss": sum(losses) / len(losses),
        "train_loss": sum(state.train_losses) / len(state.train_losses) if state.train_losses else None,
        "learning_rate": state.config.schedule(state.step),
        "seconds": round(state.seconds, 3),
    }
    if not math.isfinite(sum(losses)):
        state.stop_diverged(f"the test loss is {sum(losses) / len(losses)}")
    state.train_losses = []
    path = folder / "metrics.jsonl"
    kept = path.read_text() if path.exists() else ""
    write_atomically(path, kept + json.dumps(record) + "\n")


def _keep_metrics_until(folder: Path, step: int) -> None:
    """Forget evaluations newer than the checkpoint: they will be made again."""
    path = folder / "metrics.jsonl"
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        write_atomically(path, "".join(line for line in lines if json.loads(line)["step"] <= step))
