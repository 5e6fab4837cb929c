"""Figure 22: binding of past tokens, partially observed dynamics.

mesascope reproduce fig22 --profile quick --out DIR        minutes on 2 cores
mesascope reproduce fig22 --profile paper --out DIR        hours on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.plain_models import plain_models, plain_reductions
from mesascope.experiments.studies.sensitivity_over_training import SensitivityOverTraining
from mesascope.experiments.studies.trainings import Architecture

ARCHITECTURES: tuple[Architecture, ...] = ("softmax-7", "hybrid")


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Two models of partially observed dynamics."""
    models = {name: plain_models("partial", name, profile, seeds) for name in ARCHITECTURES}
    study = SensitivityOverTraining("fig22", models, bound=5, factor=2.0)
    return Settings((study,), plain_reductions(profile), 10 if profile == "quick" else 400)


EXPERIMENT = Experiment(
    name="fig22",
    title="Partial observation: the first layer binds several past tokens (Fig. 22)",
    introduction=(
        "A linear system of 15 states is seen through 5 random combinations of them. One observation does not "
        "determine the next; a window of several does. Does the first layer bind more than two tokens then?",
        "The norm of the gradient of the first block's output with respect to each past token shows what it depends "
        "on, along the training.",
    ),
    settings=settings,
)
