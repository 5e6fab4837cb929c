"""Figure 20: least squares and softmax-kernel regression with more noise.

mesascope reproduce fig20 --out DIR        half a minute on 2 cores, in both profiles
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.dimension import Noise


def settings(profile: Profile, seeds: int | None) -> Settings:
    """The same for both profiles: nothing is trained."""
    return Settings((Noise(seeds or 3),), (), expected_minutes=1)


EXPERIMENT = Experiment(
    name="fig20",
    title="An induction head against least squares, with noise (Fig. 20)",
    introduction=(
        "Softmax-kernel regression is what a single induction head can compute: it predicts a mean of past "
        "observations, each weighted by how much the one before it resembles the current observation. Least squares "
        "estimates W* instead.",
        "Both are tuned for every size of the observations and every level of noise, on other sequences than those "
        "they are compared on. Nothing is trained here.",
    ),
    settings=settings,
)
