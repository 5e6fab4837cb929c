"""The trainings behind the figures on plain tokens, and those on constructed tokens with other dynamics.

Figures that need the same model name the same configuration, and a run is named by the hash of its configuration: it is
trained once. The paper profile has the settings of arXiv 2309.05858, Tables 1-3 and section "Training"; the quick
profile keeps tasks and architectures and reduces steps and batches as `QUICK_REDUCTIONS` says.
"""

from dataclasses import replace
from typing import Literal

from mesascope.experiments.base import Profile
from mesascope.nn import architectures
from mesascope.nn.config import TransformerConfig
from mesascope.tasks import (
    ConstructedTokens,
    Dynamics,
    contracting_linear,
    fixed_teacher,
    fully_observed_linear,
    nonlinear,
    partially_observed_linear,
)
from mesascope.training.config import ClipGradNorm, TrainingConfig, WarmupCosine
from mesascope.training.presets import on_constructed_tokens, on_plain_tokens

Setting = Literal["linear", "partial", "nonlinear"]
"""Fully observed linear, partially observed linear and nonlinear dynamics."""

Architecture = Literal["softmax-7", "softmax-3", "hybrid", "full-mesa"]
"""Softmax layers; one softmax and one mesa layer; two mesa layers."""

QUICK_REDUCTIONS = (
    "Batches of 32 or 64 sequences instead of 256 and 2,000 to 6,000 optimiser steps instead of 10,000 to 40,000.",
    "Larger learning rates, with a warm-up over a tenth of the steps and a cosine to their end; gradients clipped to a "
    "norm of 1 instead of elementwise.",
)
"""How the quick profile of trainings on plain tokens falls short of the paper."""

FEW_SHOT_REDUCTIONS = (
    "A context of 128 tokens instead of 224 and batches of 16 sequences instead of 128, with 5,000 steps instead of "
    "40,000.",
)
"""How the quick profile of `few_shot_training` falls short of the paper."""

_SNAPSHOTS = 20


def plain_training(
    setting: Setting, architecture: Architecture, profile: Profile, seed: int = 0, *, embed_dim: int = 80
) -> TrainingConfig:
    """A model that reads plain tokens, with weights kept along the training.

    Args:
        setting: the dynamics.
        architecture: the layers.
        profile: quick or paper.
        seed: of the training.
        embed_dim: width d_e with partial observation (5 .. 80); the other settings have one width only.
    """
    task, model = _task(setting), _model(setting, architecture, embed_dim)
    if profile == "quick":
        peak, steps, batch_size = _QUICK[setting, architecture]
        return _quick(task, model, peak, steps, batch_size=batch_size, seed=seed)
    peak, decay_steps, steps = _PAPER[setting]
    if setting == "nonlinear" and architecture == "softmax-7":
        peak = 1e-3
    return on_plain_tokens(task, model, peak, decay_steps, steps, seed=seed, snapshot_every=100)


def few_shot_training(architecture: Literal["softmax-7", "hybrid"], profile: Profile, seed: int = 0) -> TrainingConfig:
    """A model of linear dynamics with a context long enough for few-shot regression: T = 224, or 128 if quick."""
    model = _model("linear", architecture, 0)
    if profile == "quick":
        return _quick(fully_observed_linear(length=128), model, 2e-3, 5_000, batch_size=16, seed=seed, snapshots=None)
    schedule = WarmupCosine(7e-4, 1_000, 60_000, 1e-5)
    return TrainingConfig(
        fully_observed_linear(length=224), model, schedule, 40_000, batch_size=128, micro_batch=32, seed=seed
    )


def linearisation_training(n_s: int, profile: Profile, seed: int = 0) -> TrainingConfig:
    """The 7-layer softmax model whose layers are linearised (Fig. 5A), at size n_s with T = 4 n_s."""
    task, model = fully_observed_linear(n_s=n_s, length=4 * n_s), architectures.linearisation_softmax(n_s)
    if profile == "quick":
        return _quick(task, model, 2e-3, 4_000, batch_size=16, seed=seed, snapshots=None)
    schedule = WarmupCosine(7e-4, 1_000, 30_000, 1e-5)
    return TrainingConfig(task, model, schedule, 10_000, batch_size=64, micro_batch=64, seed=seed)


def two_softmax_training(profile: Profile, seed: int = 0) -> TrainingConfig:
    """Two softmax layers with one head on constructed tokens, n_s = 20 and T = 80 (Fig. 19)."""
    model = replace(architectures.constructed_softmax(2, 20, num_heads=1, key_dim=80), init_std=0.05)
    task = fully_observed_linear(n_s=20, length=80, tokens=ConstructedTokens())
    if profile == "quick":
        return _quick(task, model, 1e-3, 1_500, batch_size=32, seed=seed, snapshots=None)
    return replace(on_constructed_tokens(model, seed=seed), task=task)


def constructed_training(
    dynamics: Literal["contracting", "fixed teacher"], layers: int | Literal["mesa"], profile: Profile, seed: int = 0
) -> TrainingConfig:
    """Linear layers, or one mesa layer, on constructed tokens of other dynamics (Figs. 11 and 12)."""
    tokens = ConstructedTokens()
    task = contracting_linear(tokens=tokens) if dynamics == "contracting" else fixed_teacher(tokens=tokens)
    model = architectures.constructed_mesa() if layers == "mesa" else architectures.constructed_linear(layers)
    config = replace(on_constructed_tokens(model, seed=seed), task=task)
    if profile == "paper":
        return config
    if layers == "mesa":
        return replace(config, schedule=WarmupCosine(5e-3, 30, 200, 1e-5), steps=200, evaluate_every=20)
    if layers == 1 and dynamics == "fixed teacher":
        # with 400 steps at 3e-3 its loss is 0.61 and still falls; it ends at 0.14
        return replace(config, schedule=WarmupCosine(1e-2, 50, 1_000, 1e-5), steps=1_000, evaluate_every=50)
    if layers == 1:
        return replace(config, schedule=WarmupCosine(3e-3, 50, 400, 1e-5), steps=400, evaluate_every=20)
    schedule = WarmupCosine(1e-3, 300, 1_000, 1e-5)
    return replace(config, schedule=schedule, steps=1_000, batch_size=128, gradient_clip=ClipGradNorm(0.1))


_PAPER: dict[Setting, tuple[float, int, int]] = {
    "linear": (7e-4, 30_000, 10_000),
    "partial": (4e-4, 30_000, 10_000),
    "nonlinear": (4e-4, 50_000, 40_000),
}
"""Peak learning rate, step at which the cosine ends, steps that are run."""

_QUICK: dict[tuple[Setting, Architecture], tuple[float, int, int]] = {
    ("linear", "softmax-7"): (2.5e-3, 5_000, 64),
    ("linear", "softmax-3"): (2.5e-3, 3_000, 64),
    ("linear", "hybrid"): (2e-3, 5_000, 64),
    ("linear", "full-mesa"): (2e-3, 2_000, 64),
    ("partial", "softmax-7"): (3e-3, 6_000, 32),
    ("partial", "hybrid"): (2e-3, 3_000, 64),
    ("nonlinear", "softmax-7"): (3e-3, 5_000, 32),
    ("nonlinear", "hybrid"): (2e-3, 2_500, 64),
}
"""Peak learning rate, steps and batch size."""


def _task(setting: Setting) -> Dynamics:
    match setting:
        case "linear":
            return fully_observed_linear()
        case "partial":
            return partially_observed_linear()
        case "nonlinear":
            return nonlinear()


def _model(setting: Setting, architecture: Architecture, embed_dim: int) -> TransformerConfig:
    match setting, architecture:
        case "linear", "softmax-7" | "softmax-3":
            return architectures.full_softmax(int(architecture[-1]))
        case "linear", "hybrid":
            return architectures.hybrid_mesa()
        case "linear", "full-mesa":
            return architectures.full_mesa()
        case "partial", "softmax-7":
            return architectures.partial_softmax(embed_dim=embed_dim)
        case "partial", "hybrid":
            return architectures.partial_hybrid(embed_dim=embed_dim)
        case "nonlinear", "softmax-7":
            return architectures.nonlinear_softmax()
        case "nonlinear", "hybrid":
            return architectures.nonlinear_hybrid()
    raise ValueError(f"no model of the paper: {setting}, {architecture}")


def _quick(
    task: Dynamics,
    model: TransformerConfig,
    peak: float,
    steps: int,
    *,
    batch_size: int,
    seed: int,
    snapshots: int | None = _SNAPSHOTS,
) -> TrainingConfig:
    return TrainingConfig(
        task,
        model,
        WarmupCosine(peak, steps // 10, steps, 1e-5),
        steps,
        batch_size=batch_size,
        gradient_clip=ClipGradNorm(1.0),
        seed=seed,
        evaluation_batches=4,
        snapshot_every=None if snapshots is None else steps // snapshots,
    )
