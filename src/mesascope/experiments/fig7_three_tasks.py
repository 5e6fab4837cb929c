"""Figure 7: softmax Transformers, a hybrid with one mesa layer, and Proposition 2, on three tasks.

mesascope reproduce fig7 --profile quick --out DIR        minutes on 2 cores
mesascope reproduce fig7 --profile paper --out DIR        days on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.hybrid_and_controls import HybridAndControls, windows
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.trainings import QUICK_REDUCTIONS, Architecture, Setting, plain_training
from mesascope.learners import Features


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Studies and their settings."""
    count = seeds or (1 if profile == "quick" else 5)

    def replicates(setting: Setting, architecture: Architecture) -> Replicates:
        name = architecture if setting == "linear" else f"{setting} {architecture}"
        return Replicates.of(name, lambda seed: plain_training(setting, architecture, profile, seed), count)

    linear, partial, nonlinear = (
        (replicates(setting, "softmax-7"), replicates(setting, "hybrid"))
        for setting in ("linear", "partial", "nonlinear")
    )
    mlp = nonlinear[0].task.features
    assert mlp is not None
    studies = (
        HybridAndControls("fig7a", *linear),
        HybridAndControls("fig7b", *partial, windows(16), linear_to_richer=1.5),
        HybridAndControls("fig7c", *nonlinear, (Features(mlp),)),
    )
    if profile == "paper":
        return Settings(studies, (), 3_000)
    return Settings(studies, (*QUICK_REDUCTIONS, "One seed instead of five."), 35)


EXPERIMENT = Experiment(
    name="fig7",
    title="One mesa layer does what seven softmax layers do, on three tasks (Fig. 7)",
    introduction=(
        "Sequences come from linear systems that are fully observed, from linear systems of which five combinations of "
        "fifteen states are observed, and from nonlinear systems. On each task a softmax Transformer of seven layers "
        "is compared with one of two layers, the second of which is a mesa layer: it solves the regression problem of "
        "its context in one step.",
        "Are they least squares, and on which regressors? Proposition 2 with as many steps as the softmax model has "
        "layers is shown on the observations alone (linear) and on what the task calls for (nonlinear): a window of "
        "past observations, of the best length, or the features MLP* of the nonlinear system. Beyond losses, "
        "predictions are compared: learners of several families and depths are ranked by how far their predictions "
        "are from the model's, and the answer may be that none of them is close.",
    ),
    settings=settings,
)
