"""Figure 17: token binding during training.

mesascope reproduce fig17 --profile quick --out DIR
mesascope reproduce fig17 --profile paper --out DIR        hours on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.binding_over_training import ARCHITECTURES, BindingOverTraining
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.trainings import QUICK_REDUCTIONS, Architecture, plain_training


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Studies and their settings."""
    count = seeds or (1 if profile == "quick" else 5)

    def models(architecture: Architecture) -> Replicates:
        return Replicates.of(architecture, lambda seed: plain_training("linear", architecture, profile, seed), count)

    studies = (BindingOverTraining({kind: models(kind) for kind in ARCHITECTURES}),)
    if profile == "paper":
        return Settings(studies, (), 350)
    return Settings(studies, (*QUICK_REDUCTIONS, "One seed instead of five."), 10)


EXPERIMENT = Experiment(
    name="fig17",
    title="Token binding appears during training",
    introduction=(
        "A trained model holds, after its first layer, the previous observation beside the current one. This report "
        "follows, from the first optimiser step on, how well each of the last observations can be read off the first "
        "layer, for a softmax Transformer, for one softmax layer followed by a mesa layer, and for two mesa layers.",
        "Probes are scored on sequences on which they were not fitted. A model before its first step is the control "
        "for the trained one, and observations of other sequences are that for the probes.",
    ),
    settings=settings,
)
