"""Figure 23: binding of past tokens, nonlinear dynamics.

mesascope reproduce fig23 --profile quick --out DIR        minutes on 2 cores
mesascope reproduce fig23 --profile paper --out DIR        hours on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.plain_models import plain_models, plain_reductions
from mesascope.experiments.studies.sensitivity_over_training import SensitivityOverTraining
from mesascope.experiments.studies.trainings import Architecture

ARCHITECTURES: tuple[Architecture, ...] = ("softmax-7", "hybrid")


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Two models of nonlinear dynamics."""
    models = {name: plain_models("nonlinear", name, profile, seeds) for name in ARCHITECTURES}
    study = SensitivityOverTraining("fig23", models, bound=2, factor=2.0)
    return Settings((study,), plain_reductions(profile), 12 if profile == "quick" else 1500)


EXPERIMENT = Experiment(
    name="fig23",
    title="Nonlinear dynamics: the first layer binds neighbouring tokens (Fig. 23)",
    introduction=(
        "The next observation is an unknown orthogonal map of nonlinear features of the current one. Both must be "
        "brought into one place before anything can be learned from them.",
        "The norm of the gradient of the first block's output with respect to each past token shows what it depends "
        "on, along the training.",
    ),
    settings=settings,
)
