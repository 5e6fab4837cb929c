"""Figure 24: the probes of Figure 6 where the state is observed only partially.

mesascope reproduce fig24 --profile quick --out DIR        minutes on 2 cores
mesascope reproduce fig24 --profile paper --out DIR        hours on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.layers_as_steps import LayersAsSteps
from mesascope.experiments.studies.preconditioning import Preconditioning
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.target_probes import TargetProbes
from mesascope.experiments.studies.trainings import QUICK_REDUCTIONS, plain_training
from mesascope.learners import Window


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Studies and their settings."""
    count, window = seeds or (1 if profile == "quick" else 5), Window(5)
    models = Replicates.of(
        "partial softmax-7", lambda seed: plain_training("partial", "softmax-7", profile, seed), count
    )
    studies = (
        TargetProbes("fig24a", models),
        Preconditioning("fig24b", models, window, copying_layers=1),
        LayersAsSteps("fig24c", (models,), tolerance=0.25, regressors=window, zero_loss=3.16),
    )
    if profile == "paper":
        return Settings(studies, (), 350)
    return Settings(studies, (*QUICK_REDUCTIONS, "One seed instead of five."), 8)


EXPERIMENT = Experiment(
    name="fig24",
    title="Partial observation: layers descend on windows of observations (Fig. 24)",
    introduction=(
        "A linear system of 15 states is seen through 5 random combinations of them, so one observation does not "
        "determine the next. A window of at least three does, by a linear map that is different for every sequence.",
        "The next observation, and the window of the last five observations multiplied by the inverse of the matrix of "
        "the earlier windows, are read off every layer of a softmax Transformer of seven layers by linear probes. Its "
        "loss is compared with Proposition 2 of seven steps on such windows.",
    ),
    settings=settings,
)
