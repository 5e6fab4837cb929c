"""Figure 21: the number of tokens that the first layer binds, by width, with partial observation.

mesascope reproduce fig21 --profile quick --out DIR
mesascope reproduce fig21 --profile paper --out DIR        days on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.binding_by_width import ARCHITECTURES, BindingByWidth
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.trainings import QUICK_REDUCTIONS, Architecture, plain_training


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Studies and their settings."""
    count = seeds or (1 if profile == "quick" else 5)
    widths = (5, 20, 80) if profile == "quick" else (5, 10, 15, 20, 30, 50, 80)

    def models(architecture: Architecture, width: int) -> Replicates:
        return Replicates.of(
            f"partial {architecture}, width {width}",
            lambda seed: plain_training("partial", architecture, profile, seed, embed_dim=width),
            count,
        )

    studies = (BindingByWidth({kind: {width: models(kind, width) for width in widths} for kind in ARCHITECTURES}),)
    if profile == "paper":
        return Settings(studies, (), 2_000)
    fewer = ("Widths 5, 20 and 80 instead of seven widths.", "One seed instead of five.")
    return Settings(studies, (*QUICK_REDUCTIONS, *fewer), 20)


EXPERIMENT = Experiment(
    name="fig21",
    title="Wider models bind more tokens",
    introduction=(
        "When an observation shows only 5 of 15 dimensions of the state, the next one cannot be predicted from the "
        "last alone: several past observations must be combined. This report asks how many of them can be read off the "
        "first layer of trained models, and how that depends on the width of the model, which limits what a token can "
        "hold.",
    ),
    settings=settings,
)
