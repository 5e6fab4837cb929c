"""Everything that determines a training, as one frozen configuration."""

import math
from dataclasses import dataclass

from mesascope.errors import InputError, require
from mesascope.nn.config import TransformerConfig
from mesascope.tasks.dynamics import Dynamics

EVALUATION_BATCH = 256
"""Sequences per test batch."""


@dataclass(frozen=True)
class ConstantRate:
    """One learning rate for all steps.

    Attributes:
        rate: learning rate.
    """

    rate: float

    def __post_init__(self) -> None:
        require(self.rate > 0, "rate", self.rate, "greater than 0")

    def __call__(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        return self.rate


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up from 0, then a cosine from `peak` to `final`.

    Attributes:
        peak: largest learning rate.
        warmup_steps: optimiser steps until `peak`.
        decay_steps: optimiser step, counted from the start, at which `final` is reached; constant after it.
        final: last learning rate.
    """

    peak: float
    warmup_steps: int = 1000
    decay_steps: int = 20_000
    final: float = 1e-5

    def __post_init__(self) -> None:
        require(self.peak > 0, "peak", self.peak, "greater than 0")
        require(0 <= self.final <= self.peak, "final", self.final, f"between 0 and peak ({self.peak})")
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "at least 0")
        require(self.decay_steps > self.warmup_steps, "decay_steps", self.decay_steps, "greater than warmup_steps")

    def __call__(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * step / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / (self.decay_steps - self.warmup_steps))
        return self.final + 0.5 * (self.peak - self.final) * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class ClipGradValue:
    """Clip every entry of the gradient to [-bound, bound] (what the authors' code calls clipping by 1)."""

    bound: float = 1.0

    def __post_init__(self) -> None:
        require(self.bound > 0, "bound", self.bound, "greater than 0")


@dataclass(frozen=True)
class ClipGradNorm:
    """Scale the gradient down to a global Euclidean norm of at most `bound`."""

    bound: float = 1.0

    def __post_init__(self) -> None:
        require(self.bound > 0, "bound", self.bound, "greater than 0")


@dataclass(frozen=True)
class TrainingConfig:
    """A training run. Equal configurations give equal weights, bit by bit, on the same machine.

    Attributes:
        task: where sequences come from; fresh ones at every step.
        model: the architecture.
        schedule: learning rate at each step.
        steps: optimiser steps.
        batch_size: sequences per step.
        micro_batch: sequences per forward and backward pass; the gradients of a step are summed over them. The result
            is the same up to rounding; small passes stay in the processor's cache and need less memory.
        weight_decay: AdamW's decoupled decay; not of the ridges, key shifts and biases of gates of mesa layers.
        betas: AdamW's decay rates of the two moments.
        epsilon: AdamW's term that keeps denominators from 0.
        gradient_clip: how gradients are clipped, or None.
        seed: names the draws of initial weights, training and test sequences.
        evaluate_every: optimiser steps between two evaluations on the test sequences.
        evaluation_batches: test batches of 256 sequences, the same at every evaluation.
        checkpoint_every: optimiser steps between two checkpoints.
        snapshot_every: optimiser steps between two kept copies of the weights, or None.
        threads: CPU threads; part of the configuration because the rounding of sums depends on it.
    """

    task: Dynamics
    model: TransformerConfig
    schedule: ConstantRate | WarmupCosine
    steps: int
    batch_size: int = 256
    micro_batch: int = 64
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    gradient_clip: ClipGradValue | ClipGradNorm | None = ClipGradValue()
    seed: int = 0
    evaluate_every: int = 100
    evaluation_batches: int = 10
    checkpoint_every: int = 500
    snapshot_every: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "micro_batch", "evaluate_every", "evaluation_batches", "checkpoint_every")
        for argument in (*counts, "threads"):
            require(getattr(self, argument) >= 1, argument, getattr(self, argument), "at least 1")
        snapshots = self.snapshot_every
        require(snapshots is None or snapshots >= 1, "snapshot_every", snapshots, "at least 1, or None")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "in [0, 1)")
        require(self.epsilon > 0, "epsilon", self.epsilon, "greater than 0")
        require(0 <= self.seed < 2**32, "seed", self.seed, "between 0 and 2^32 - 1")
        if self.model.token_dim != self.task.token_dim:
            raise InputError(
                f"model.token_dim: got {self.model.token_dim}, but the tokens of the task have size "
                f"{self.task.token_dim}"
            )
        if self.model.prediction_dim != self.task.n_s:
            raise InputError(
                f"model.prediction_dim: got {self.model.prediction_dim}, but the task has n_s = {self.task.n_s}"
            )
