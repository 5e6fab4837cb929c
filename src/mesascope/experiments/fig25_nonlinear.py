"""Figure 25: the probes of Figure 6 where dynamics are nonlinear.

mesascope reproduce fig25 --profile quick --out DIR        minutes on 2 cores
mesascope reproduce fig25 --profile paper --out DIR        a day on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.layers_as_steps import LayersAsSteps
from mesascope.experiments.studies.preconditioning import Preconditioning
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.target_probes import TargetProbes
from mesascope.experiments.studies.trainings import QUICK_REDUCTIONS, plain_training
from mesascope.learners import Features


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Studies and their settings."""
    count = seeds or (1 if profile == "quick" else 5)
    models = Replicates.of(
        "nonlinear softmax-7", lambda seed: plain_training("nonlinear", "softmax-7", profile, seed), count
    )
    mlp = models.task.features
    assert mlp is not None
    studies = (
        TargetProbes("fig25a", models),
        Preconditioning("fig25b", models, Features(mlp), copying_layers=1),
        LayersAsSteps("fig25c", (models,), tolerance=0.15, regressors=Features(mlp), zero_loss=0.5),
    )
    if profile == "paper":
        return Settings(studies, (), 1_200)
    return Settings(studies, (*QUICK_REDUCTIONS, "One seed instead of five."), 8)


EXPERIMENT = Experiment(
    name="fig25",
    title="Nonlinear dynamics: layers descend on features (Fig. 25)",
    introduction=(
        "The next observation is an unknown orthogonal matrix W*, different for every sequence, times nonlinear "
        "features of the current one. The features are those of one fixed random network, MLP*, the same for all "
        "sequences: a model can learn them during its training, and only W* has to be found in context.",
        "The next observation, and the features multiplied by the inverse of the matrix of the earlier features, are "
        "read off every layer of a softmax Transformer of seven layers by linear probes. Its loss is compared with "
        "Proposition 2 of seven steps on the features.",
    ),
    settings=settings,
)
