"""Figure 2: early layers bind tokens and compute features.

mesascope reproduce fig2 --profile quick --out DIR
mesascope reproduce fig2 --profile paper --out DIR        days on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.hidden_features import HiddenFeatures
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.token_binding import ARCHITECTURES, TokenBinding
from mesascope.experiments.studies.trainings import QUICK_REDUCTIONS, Architecture, Setting, plain_training


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Studies and their settings."""
    count = seeds or (1 if profile == "quick" else 5)

    def models(setting: Setting, architecture: Architecture) -> Replicates:
        return Replicates.of(
            f"{setting} {architecture}", lambda seed: plain_training(setting, architecture, profile, seed), count
        )

    full, partial = ({kind: models(setting, kind) for kind in ARCHITECTURES} for setting in ("linear", "partial"))
    studies = (TokenBinding(full, partial), HiddenFeatures(models("nonlinear", "softmax-7")))
    if profile == "paper":
        return Settings(studies, (), 2_500)
    return Settings(studies, (*QUICK_REDUCTIONS, "One seed instead of five."), 20)


EXPERIMENT = Experiment(
    name="fig2",
    title="What the first layers write down",
    introduction=(
        "To learn the dynamics of its context, a model must have pairs of neighbouring observations at hand: what came "
        "and what came next. Its tokens hold one observation each. This report asks what can be read off the residual "
        "stream by a linear map, a probe: after the first layer, which of the last observations; and where the "
        "dynamics are nonlinear, at which depth the features in which they are linear.",
        "A linear map with enough inputs fits anything on the sequences it is fitted on. So every probe here is scored "
        "on other sequences, and beside it stand two controls: a model that was never trained, and targets that belong "
        "to other sequences.",
    ),
    settings=settings,
)
