"""Figure 14: the first layer of seven softmax layers copies.

mesascope reproduce fig14 --profile quick --out DIR        minutes on 2 cores
mesascope reproduce fig14 --profile paper --out DIR        hours on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.bound_tokens import NAMES
from mesascope.experiments.studies.copying import Copying
from mesascope.experiments.studies.plain_models import plain_models, plain_reductions


def settings(profile: Profile, seeds: int | None) -> Settings:
    """The first layer of one architecture."""
    models = plain_models("linear", "softmax-7", profile, seeds)
    study = Copying("fig14", NAMES["softmax-7"], models)
    return Settings((study,), plain_reductions(profile), 8 if profile == "quick" else 220)


EXPERIMENT = Experiment(
    name="fig14",
    title="Seven softmax layers: the first one copies (Fig. 14)",
    introduction=(
        "Models that read plain tokens, one observation each, can only learn the map from each observation to the "
        "next if something brings the two into one place. An attention head that attends to the current and the "
        "previous token, whatever they hold, does that.",
        "The report shows the attention of all four heads of the first layer, averaged over 2,048 sequences, and how "
        "much it differs from sequence to sequence.",
    ),
    settings=settings,
)
