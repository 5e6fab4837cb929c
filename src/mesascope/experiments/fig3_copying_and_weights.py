"""Figure 3: a first softmax layer that copies, and the weights of one linear layer.

mesascope reproduce fig3 --profile quick --out DIR        minutes on 2 cores
mesascope reproduce fig3 --profile paper --out DIR        hours on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.bound_tokens import NAMES
from mesascope.experiments.studies.copying import Copying
from mesascope.experiments.studies.one_layer import paper_one_layer, quick_one_layer
from mesascope.experiments.studies.plain_models import plain_models, plain_reductions
from mesascope.experiments.studies.predicted_blocks import PredictedBlocks
from mesascope.experiments.studies.replicates import Replicates


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Seven softmax layers on plain tokens, and one linear layer on constructed ones."""
    copying = Copying("fig3a", NAMES["softmax-7"], plain_models("linear", "softmax-7", profile, seeds))
    one_layer = quick_one_layer if profile == "quick" else paper_one_layer
    blocks = PredictedBlocks(Replicates(one_layer(seeds or 5).linear_trainings()))
    reductions = plain_reductions(profile)
    if profile == "quick":
        reductions += ("One linear layer: 400 steps with a peak learning rate of 3e-3, not 10,000 steps of 1e-4.",)
    return Settings((copying, blocks), reductions, 9 if profile == "quick" else 250)


EXPERIMENT = Experiment(
    name="fig3",
    title="A layer that copies, and the weights of one that descends (Fig. 3)",
    introduction=(
        "Models that read plain tokens, one observation each, can only learn the map from each observation to the next "
        "if something brings the two into one place. The first part looks at the attention of the first of seven "
        "softmax layers: does a head attend to the current and the previous token, whatever they hold?",
        "The second part takes tokens in which neighbouring observations are bound already, and looks at the weights "
        "of one trained layer of linear attention. One step of gradient descent, written as such a layer "
        "(Proposition 1), has multiples of the identity in certain blocks and nothing elsewhere.",
    ),
    settings=settings,
)
