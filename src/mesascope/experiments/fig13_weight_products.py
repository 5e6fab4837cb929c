"""Figure 13: the weight products of one linear layer.

mesascope reproduce fig13 --profile quick --out DIR       a minute on 2 cores
mesascope reproduce fig13 --profile paper --out DIR       an hour on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.one_layer import paper_one_layer, quick_one_layer
from mesascope.experiments.studies.products import Products


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Studies and their settings."""
    if profile == "quick":
        reductions = ("400 optimiser steps with a peak learning rate of 3e-3, instead of 10,000 at a constant 1e-4.",)
        return Settings((Products(quick_one_layer(seeds or 5)),), reductions, expected_minutes=1)
    return Settings((Products(paper_one_layer(seeds or 5)),), (), expected_minutes=60)


EXPERIMENT = Experiment(
    name="fig13",
    title="The weights of one linear layer are those of one gradient step (Fig. 13)",
    introduction=(
        "Proposition 1 writes one step of gradient descent as the weights of one head of linear attention: the product "
        "of key and query weights has one block, where the previous observation meets the current one, and the product "
        "of output and value weights has one, from the current observation to the prediction; both are multiples of "
        "the identity. Trained from small random weights, a layer arrives at the same products.",
        "Single weight matrices are not unique, and neither is how two heads share the work. The table shows what all "
        "heads do together: the weight of every product value (key . query), relative to that of Proposition 1.",
    ),
    settings=settings,
)
