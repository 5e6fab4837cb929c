"""Figure 12: one fixed W* for all sequences.

mesascope reproduce fig12 --profile quick --out DIR       minutes on 2 cores
mesascope reproduce fig12 --profile paper --out DIR       hours on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings
from mesascope.experiments.studies.depth import paper_depth, quick_depth
from mesascope.experiments.studies.fixed_teacher import FixedTeacher
from mesascope.experiments.studies.one_layer import paper_one_layer, quick_one_layer
from mesascope.experiments.studies.other_dynamics import CONSTRUCTED_REDUCTIONS, OtherDynamics
from mesascope.experiments.studies.preconditioning import Preconditioning, WeakPreconditioning


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Studies and their settings."""
    quick = profile == "quick"
    few = seeds or (1 if quick else 5)
    models = OtherDynamics("fixed teacher", profile, one_layer_seeds=seeds or 5, deep_seeds=few)
    fresh = (quick_one_layer if quick else paper_one_layer)(seeds or 5)
    six_fresh = (quick_depth if quick else paper_depth)(few).six_layer_trainings()
    probes = WeakPreconditioning(Preconditioning("fig12b", models.replicates(6)), Preconditioning("fig4f", six_fresh))
    reductions = CONSTRUCTED_REDUCTIONS if quick else ()
    return Settings((FixedTeacher(models, fresh), probes), reductions, 10 if quick else 600)


EXPERIMENT = Experiment(
    name="fig12",
    title="One fixed W*: what is not needed is not learned in context (Fig. 12)",
    introduction=(
        "A control. All sequences, in training and in testing, follow the same orthogonal W*; only their first "
        "observation and the noise differ. A model can store W* in its weights and need not find it out in context. "
        "If linear Transformers were gradient descent whatever they are trained on, they would not do better than "
        "Propositions 1 and 2 here. They do.",
    ),
    settings=settings,
)
