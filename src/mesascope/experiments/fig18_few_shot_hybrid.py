"""Figure 18: the few-shot regression of Figure 8 with one softmax and one mesa layer.

mesascope reproduce fig18 --profile quick --out DIR        minutes on 2 cores
mesascope reproduce fig18 --profile paper --out DIR        days on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.fig8_few_shot import INTRODUCTION
from mesascope.experiments.studies.few_shot import few_shot_settings


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Studies and their settings."""
    return few_shot_settings("fig18", "hybrid", profile, seeds, paper_minutes=4_000, quick_minutes=12)


EXPERIMENT = Experiment(
    name="fig18",
    title="A hybrid with a mesa layer is a few-shot learner, too (Fig. 18)",
    introduction=(*INTRODUCTION, "This model has one softmax layer, which binds tokens, and one mesa layer."),
    settings=settings,
)
