"""Figure 11: contracting linear dynamics.

mesascope reproduce fig11 --profile quick --out DIR       minutes on 2 cores
mesascope reproduce fig11 --profile paper --out DIR       hours on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.contracting import Contracting
from mesascope.experiments.studies.other_dynamics import CONSTRUCTED_REDUCTIONS, OtherDynamics
from mesascope.experiments.studies.preconditioning import Preconditioning


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Studies and their settings."""
    quick = profile == "quick"
    few = seeds or (1 if quick else 5)
    models = OtherDynamics("contracting", profile, one_layer_seeds=seeds or 5, deep_seeds=few)
    studies = (Contracting(models), Preconditioning("fig11b", models.replicates(6)))
    return Settings(studies, CONSTRUCTED_REDUCTIONS if quick else (), 6 if quick else 450)


EXPERIMENT = Experiment(
    name="fig11",
    title="Contracting dynamics: the same algorithms where W* is not orthogonal (Fig. 11)",
    introduction=(
        "Here W* has real eigenvalues between 0.3 and 0.9 and eigenvectors that are far from orthogonal, so sequences "
        "may grow before they shrink; every new state is clipped to [-2, 2]. Linear models of several depths and a "
        "mesa layer are trained as for Fig. 4 and compared with the same algorithms.",
        "The paper's text clips whole sequences and says that this concerns about 2 % of them; its code clips inside "
        "the recursion. With the code's sampler 28 % of all sequences exceed 2, so a bound of 2 inside the recursion "
        "is used here.",
    ),
    settings=settings,
)
