"""Figure 19: weights of softmax layers and of the linear layers distilled from them.

mesascope reproduce fig19 --profile quick --out DIR        minutes on 2 cores
mesascope reproduce fig19 --profile paper --out DIR        hours on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.similar_products import SimilarProducts
from mesascope.experiments.studies.trainings import two_softmax_training
from mesascope.uncover import Distillation


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Two softmax layers with one head each."""
    quick = profile == "quick"
    count = seeds or (1 if quick else 5)
    models = Replicates.of("2 softmax layers, 1 head", lambda seed: two_softmax_training(profile, seed), count)
    study = SimilarProducts(models, Distillation(steps=300 if quick else 1000))
    reductions = (
        "1,500 optimiser steps on batches of 32 sequences instead of 10,000 on 256, with a larger learning rate.",
        "300 steps of distillation instead of 1,000.",
        "One seed instead of five.",
    )
    return Settings((study,), reductions if quick else (), 4 if quick else 300)


EXPERIMENT = Experiment(
    name="fig19",
    title="A softmax layer and its linear imitation have similar weights (Fig. 19)",
    introduction=(
        "If a softmax layer works as linear attention does, a linear layer that is trained to imitate it, from random "
        "weights, should end with similar weights. Weight matrices are not unique, but the products "
        "W_K^T W_Q and P W_V of a head are, up to a scale and a common sign.",
        "Two softmax layers with one head each are trained on constructed tokens, and each is imitated by a linear "
        "layer of the same shape.",
    ),
    settings=settings,
)
