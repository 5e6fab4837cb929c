"""Figures 6 and 10: softmax Transformers on linear dynamics descend on the in-context objective layer by layer.

mesascope reproduce fig6 --profile quick --out DIR        minutes on 2 cores
mesascope reproduce fig6 --profile paper --out DIR        hours on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.diagonal_products import DiagonalProducts
from mesascope.experiments.studies.layers_as_steps import LayersAsSteps
from mesascope.experiments.studies.preconditioning import Preconditioning
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.target_probes import TargetProbes
from mesascope.experiments.studies.trainings import QUICK_REDUCTIONS, plain_training


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Studies and their settings."""
    count = seeds or (1 if profile == "quick" else 5)
    seven = Replicates.of("softmax-7", lambda seed: plain_training("linear", "softmax-7", profile, seed), count)
    three = Replicates.of("softmax-3", lambda seed: plain_training("linear", "softmax-3", profile, seed), count)
    studies = (
        TargetProbes("fig6a", seven),
        Preconditioning("fig6b", seven, copying_layers=1),
        LayersAsSteps("fig6c", (three, seven), tolerance=0.15),
        DiagonalProducts("fig10", seven),
    )
    if profile == "paper":
        return Settings(studies, (), 250)
    return Settings(studies, (*QUICK_REDUCTIONS, "One seed instead of five."), 14)


EXPERIMENT = Experiment(
    name="fig6",
    title="Softmax Transformers descend layer by layer (Figs. 6 and 10)",
    introduction=(
        "Sequences come from linear systems with an unknown orthogonal matrix W* each, and every token is one "
        "observation: the model has to bind neighbouring observations by itself, in its first layer. What do the other "
        "layers of a softmax Transformer do?",
        "Proposition 2 says that they may solve the regression problem of the context: each takes a step towards the "
        "preconditioned input, the current observation multiplied by the inverse of the matrix of earlier ones, and "
        "the last takes one step of gradient descent with it. Linear probes show how much of the next observation and "
        "of the preconditioned input every layer holds, on sequences on which they were not fitted, beside the same "
        "probes of the model before its training and with the targets of other sequences. And models of three and "
        "seven layers are compared with Proposition 2 of three and seven steps.",
    ),
    settings=settings,
)
