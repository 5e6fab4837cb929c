"""Figure 8: a softmax Transformer trained on dynamics learns linear regression from examples in its context.

mesascope reproduce fig8 --profile quick --out DIR        minutes on 2 cores
mesascope reproduce fig8 --profile paper --out DIR        days on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.few_shot import few_shot_settings

INTRODUCTION = (
    "The model was trained to predict the next state of linear systems. Now, with its weights frozen, it reads pairs "
    "x_1, y_1, x_2, y_2, ... with y_i = W* x_i and has to predict each y_i. If it runs least squares on neighbouring "
    "tokens, it should learn from the pairs it has seen; but it should also take (y_i, x_{i+1}) for pairs, so that the "
    "loss first rises: least squares on as many spurious pairs as true ones does, near as many pairs as dimensions.",
    "A token that is tuned to end every pair removes the spurious pairs, and tuned tokens before the first tell the "
    "model what is coming. Last, the problem is replaced by another one half-way.",
)


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Studies and their settings."""
    return few_shot_settings("fig8", "softmax-7", profile, seeds, paper_minutes=9_000, quick_minutes=25)


EXPERIMENT = Experiment(
    name="fig8",
    title="A softmax model of dynamics is a few-shot learner (Fig. 8)",
    introduction=INTRODUCTION,
    settings=settings,
)
