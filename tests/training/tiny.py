"""Trainings of a second or less."""

import dataclasses
from typing import Any

from mesascope.nn import Linear, Mesa, Softmax, TransformerConfig
from mesascope.tasks import ConstructedTokens, fully_observed_linear
from mesascope.training.config import ConstantRate, TrainingConfig, WarmupCosine

HYBRID = TrainingConfig(
    task=fully_observed_linear(n_s=3, length=8),
    model=TransformerConfig(
        token_dim=3,
        prediction_dim=3,
        attention=(Softmax(), Mesa()),
        num_heads=2,
        key_dim=4,
        embed_dim=6,
        mlp_dim=8,
        layer_norm=True,
        position_dim=6,
    ),
    schedule=WarmupCosine(peak=3e-3, warmup_steps=10, decay_steps=50, final=1e-4),
    steps=60,
    batch_size=8,
    micro_batch=4,
    evaluate_every=10,
    evaluation_batches=1,
    checkpoint_every=15,
    snapshot_every=20,
    seed=3,
)
"""Evaluations and checkpoints fall on common steps (30) and on steps of their own."""

LINEAR = TrainingConfig(
    task=fully_observed_linear(n_s=3, length=12, tokens=ConstructedTokens()),
    model=TransformerConfig(12, 3, (Linear(),), num_heads=2, key_dim=6, init_std=0.1),
    schedule=ConstantRate(1e-2),
    steps=150,
    batch_size=16,
    micro_batch=16,
    evaluate_every=50,
    evaluation_batches=1,
)


def varied(config: TrainingConfig, **changes: Any) -> TrainingConfig:
    """`config` with fields replaced."""
    return dataclasses.replace(config, **changes)
