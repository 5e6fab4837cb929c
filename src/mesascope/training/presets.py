"""The trainings of the paper by name: tasks, architectures and optimiser settings of arXiv 2309.05858, Tables 1-3."""

from mesascope.nn import architectures
from mesascope.nn.config import TransformerConfig
from mesascope.tasks import (
    ConstructedTokens,
    Dynamics,
    fully_observed_linear,
    nonlinear,
    partially_observed_linear,
)
from mesascope.training.config import ClipGradNorm, ClipGradValue, ConstantRate, TrainingConfig, WarmupCosine


def paper_trainings() -> dict[str, TrainingConfig]:
    """Complete configurations to start from, by name; seed 0."""
    plain, partial = fully_observed_linear(), partially_observed_linear()
    return {
        **{f"lin-{depth}": on_constructed_tokens(architectures.constructed_linear(depth)) for depth in (1, 2, 4, 6)},
        "lin-6-wide": on_constructed_tokens(architectures.constructed_linear(6, key_dim=40)),
        "mesa-1": on_constructed_tokens(architectures.constructed_mesa()),
        "lin-2-demo": demo(),
        "softmax-3": on_plain_tokens(plain, architectures.full_softmax(3), 7e-4, 30_000, 10_000),
        "softmax-7": on_plain_tokens(plain, architectures.full_softmax(7), 7e-4, 30_000, 10_000),
        "hybrid-mesa": on_plain_tokens(plain, architectures.hybrid_mesa(), 7e-4, 30_000, 10_000),
        "full-mesa": on_plain_tokens(plain, architectures.full_mesa(), 7e-4, 30_000, 10_000),
        "partial-softmax-7": on_plain_tokens(partial, architectures.partial_softmax(), 4e-4, 30_000, 10_000),
        "partial-hybrid": on_plain_tokens(partial, architectures.partial_hybrid(), 4e-4, 30_000, 10_000),
        "nonlinear-softmax-7": on_plain_tokens(nonlinear(), architectures.nonlinear_softmax(), 1e-3, 50_000, 40_000),
        "nonlinear-hybrid": on_plain_tokens(nonlinear(), architectures.nonlinear_hybrid(), 4e-4, 50_000, 40_000),
    }


def on_constructed_tokens(
    model: TransformerConfig,
    *,
    schedule: ConstantRate | WarmupCosine = ConstantRate(1e-4),
    gradient_clip: ClipGradValue | ClipGradNorm = ClipGradValue(),
    steps: int = 10_000,
    seed: int = 0,
    evaluate_every: int = 100,
    snapshot_every: int | None = None,
) -> TrainingConfig:
    """The paper's training on constructed tokens: constant learning rate 1e-4, decay 0.1, at most 10,000 steps."""
    task = fully_observed_linear(n_s=model.prediction_dim, tokens=ConstructedTokens())
    return TrainingConfig(
        task,
        model,
        schedule,
        steps,
        weight_decay=0.1,
        gradient_clip=gradient_clip,
        seed=seed,
        evaluate_every=evaluate_every,
        snapshot_every=snapshot_every,
    )


DEMO_SCHEDULE = WarmupCosine(peak=3e-4, warmup_steps=1_000, decay_steps=20_000, final=1e-5)
"""Learning rate of the authors' public demo."""


def demo(*, steps: int = 2_500, seed: int = 42, schedule: WarmupCosine = DEMO_SCHEDULE) -> TrainingConfig:
    """Two linear layers with the settings of the authors' public demo: activation clip 1.5, decay 0.05, warm-up."""
    return TrainingConfig(
        fully_observed_linear(tokens=ConstructedTokens()),
        architectures.constructed_linear(2, activation_clip=1.5),
        schedule,
        steps,
        weight_decay=0.05,
        seed=seed,
    )


def on_plain_tokens(
    task: Dynamics,
    model: TransformerConfig,
    peak: float,
    decay_steps: int,
    steps: int,
    *,
    seed: int = 0,
    snapshot_every: int | None = None,
) -> TrainingConfig:
    """The paper's training on plain tokens: warm-up over 1,000 steps to `peak` and a cosine to 1e-5, decay 0.05."""
    # the whole batch at once: in two passes a step takes 6 to 14 % longer on 2 cores
    return TrainingConfig(
        task,
        model,
        WarmupCosine(peak, 1_000, decay_steps, 1e-5),
        steps,
        micro_batch=256,
        seed=seed,
        snapshot_every=snapshot_every,
    )
