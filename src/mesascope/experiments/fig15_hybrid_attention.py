"""Figure 15: the softmax layer in front of a mesa layer copies.

mesascope reproduce fig15 --profile quick --out DIR        minutes on 2 cores
mesascope reproduce fig15 --profile paper --out DIR        hours on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.bound_tokens import NAMES
from mesascope.experiments.studies.copying import Copying
from mesascope.experiments.studies.plain_models import plain_models, plain_reductions


def settings(profile: Profile, seeds: int | None) -> Settings:
    """The first layer of one architecture."""
    models = plain_models("linear", "hybrid", profile, seeds)
    study = Copying("fig15", NAMES["hybrid"], models)
    return Settings((study,), plain_reductions(profile), 3 if profile == "quick" else 80)


EXPERIMENT = Experiment(
    name="fig15",
    title="A softmax layer before a mesa layer copies (Fig. 15)",
    introduction=(
        "Models that read plain tokens, one observation each, can only learn the map from each observation to the "
        "next if something brings the two into one place. An attention head that attends to the current and the "
        "previous token, whatever they hold, does that.",
        "The report shows the attention of all four heads of the first layer, averaged over 2,048 sequences, and how "
        "much it differs from sequence to sequence.",
    ),
    settings=settings,
)
