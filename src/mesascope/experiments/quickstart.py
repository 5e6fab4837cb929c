"""A tour in minutes: one and two layers of linear attention, and one mesa layer.

mesascope quickstart --out DIR        about two minutes on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.one_layer import quick_one_layer
from mesascope.experiments.studies.two_layers import TwoLayers
from mesascope.training.config import WarmupCosine
from mesascope.training.presets import demo


def settings(profile: Profile, seeds: int | None) -> Settings:
    """The same for both profiles: settings that converge in hundreds of steps."""
    two_layers = TwoLayers(demo(steps=500, seed=0, schedule=WarmupCosine(1e-3, 150, 500, 1e-5)))
    reductions = (
        "Learning rates of 1e-3 to 5e-3 and 200 to 500 steps, instead of 1e-4 and up to 10,000 steps.",
        "One seed of the two-layer model and of the mesa layer, instead of five.",
    )
    return Settings((quick_one_layer(seeds or 5), two_layers), reductions, expected_minutes=2)


EXPERIMENT = Experiment(
    name="quickstart",
    title="Attention layers that learn inside their forward pass",
    introduction=(
        "Each sequence below comes from a linear system of its own: the next observation is an unknown orthogonal "
        "matrix W* times the current one, plus a little noise. A model that predicts the next token well must find out "
        "W* from the tokens it has already seen, within its forward pass. Nothing tells it how.",
        "This report trains single attention layers on such sequences from small random weights, and asks which "
        "algorithm they have become. The answers are claims with a threshold that was set before anything was "
        "measured.",
        "What to expect: one layer of linear attention becomes one step of gradient descent on the least-squares "
        "problem of its context, and its weights become the block matrices of Proposition 1 of the paper. Two layers "
        "do better and follow the curve stored with the authors' public demo. A mesa layer, which solves ridge "
        "regression exactly at every token by design, learns to predict almost like least squares. Whether it came out "
        "so is in the claims.",
    ),
    settings=settings,
)
