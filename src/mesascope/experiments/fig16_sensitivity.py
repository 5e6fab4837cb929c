"""Figure 16: binding of neighbouring tokens emerges in the first layer.

mesascope reproduce fig16 --profile quick --out DIR        minutes on 2 cores
mesascope reproduce fig16 --profile paper --out DIR        hours on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.plain_models import plain_models, plain_reductions
from mesascope.experiments.studies.sensitivity_over_training import SensitivityOverTraining
from mesascope.experiments.studies.trainings import Architecture

ARCHITECTURES: tuple[Architecture, ...] = ("softmax-7", "hybrid", "full-mesa")


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Three models of fully observed linear dynamics."""
    models = {name: plain_models("linear", name, profile, seeds) for name in ARCHITECTURES}
    study = SensitivityOverTraining("fig16", models, bound=2, factor=5.0, least="full-mesa")
    return Settings((study,), plain_reductions(profile), 12 if profile == "quick" else 350)


EXPERIMENT = Experiment(
    name="fig16",
    title="The first layer learns to bind neighbouring tokens (Fig. 16)",
    introduction=(
        "To learn in its context a map from each observation to the next, a model must bring both into one place. "
        "These models get plain tokens, one observation each, and have to bind them by themselves.",
        "The norm of the gradient of the first block's output with respect to each past token shows what it depends "
        "on: in the beginning on the current token, through the residual connection, and on all others alike; once "
        "tokens are bound, on the current and the previous one.",
    ),
    settings=settings,
)
