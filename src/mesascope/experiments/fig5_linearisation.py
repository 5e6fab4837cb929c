"""Figure 5: which softmax layers could be linear, and why an induction head is not enough.

mesascope reproduce fig5 --profile quick --out DIR        minutes on 2 cores
mesascope reproduce fig5 --profile paper --out DIR        days on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.dimension import SIZES, CurseOfDimension
from mesascope.experiments.studies.linearised_layers import LinearisedLayers
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.trainings import linearisation_training
from mesascope.uncover import Distillation


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Studies and their settings."""
    quick = profile == "quick"
    count = seeds or (1 if quick else 5)

    def models(n_s: int) -> Replicates:
        return Replicates.of(
            f"7 softmax layers, n_s {n_s}", lambda seed: linearisation_training(n_s, profile, seed), count
        )

    linearised = LinearisedLayers(
        {n_s: models(n_s) for n_s in ((4, 10, 20) if quick else SIZES)},
        Distillation(steps=150, batch_size=32) if quick else Distillation(steps=1000, final_batches=64),
        sequences=768 if quick else 2560,
    )
    reductions = (
        "Models with n_s = 4, 10 and 20 only, instead of 4, 6, 10, 20, 40 and 60.",
        "4,000 optimiser steps on batches of 16 sequences instead of 10,000 on 64, with a larger learning rate.",
        "150 steps of distillation on batches of 32 sequences instead of 1,000 on 64, and losses on 768 sequences "
        "instead of 2,560.",
        "One seed instead of five.",
    )
    return Settings((CurseOfDimension(), linearised), reductions if quick else (), 15 if quick else 4000)


EXPERIMENT = Experiment(
    name="fig5",
    title="Softmax layers that could be linear (Fig. 5)",
    introduction=(
        "Softmax attention can compare tokens, like an induction head, or approximate linear attention, which can "
        "descend on a least-squares problem. Which of the two do the layers of a trained model do?",
        "The first part shows why induction heads alone do badly here: as observations grow, and the context with "
        "them, fewer and fewer past tokens resemble the current one. Least squares does not suffer.",
        "The second part replaces the attention layers of trained softmax models, one at a time, by linear layers that "
        "were trained to imitate them, and measures what that costs.",
    ),
    settings=settings,
)
