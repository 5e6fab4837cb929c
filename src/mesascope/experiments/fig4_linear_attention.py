"""Figures 3B, 4, 9 and 13: linear attention on constructed tokens.

mesascope reproduce fig4 --profile quick --out DIR        minutes on 2 cores
mesascope reproduce fig4 --profile paper --out DIR        hours on 2 cores
"""

from mesascope.experiments.base import Experiment, Profile, Settings, Study
from mesascope.experiments.studies.depth import Depth, paper_depth, quick_depth
from mesascope.experiments.studies.one_layer import paper_one_layer, quick_one_layer
from mesascope.experiments.studies.preconditioning import Preconditioning
from mesascope.experiments.studies.reference_values import ReferenceValues
from mesascope.experiments.studies.target_probes import TargetProbes
from mesascope.experiments.studies.two_layers import TwoLayers
from mesascope.training.presets import demo


def settings(profile: Profile, seeds: int | None) -> Settings:
    """Studies and their settings."""
    return _quick(seeds) if profile == "quick" else _paper(seeds or 5)


def _quick(seeds: int | None) -> Settings:
    reductions = (
        "200 to 2,000 steps with a warm-up to 1e-3 to 5e-3 and a cosine, instead of 10,000 at a constant rate of 1e-4.",
        "Gradients of models with 2, 4 and 6 layers are clipped to a norm of 0.1, instead of elementwise to 1.",
        "One seed of the mesa layer and of models with 2, 4 and 6 layers, instead of five.",
        "Key size 20 for the compressed and interpolated six layers, instead of 40.",
    )
    return Settings((ReferenceValues(), quick_one_layer(seeds or 5), *_deep(quick_depth(seeds or 1))), reductions, 8)


def _paper(seeds: int) -> Settings:
    return Settings((ReferenceValues(), paper_one_layer(seeds), *_deep(paper_depth(seeds))), (), 450)


def _deep(depth: Depth) -> tuple[Study, ...]:
    """The studies of deeper models; probes are of the six layers whose curve Fig. 4D shows."""
    six = depth.six_layer_trainings()
    return (TwoLayers(demo()), depth, TargetProbes("fig4e", six), Preconditioning("fig4f", six))


EXPERIMENT = Experiment(
    name="fig4",
    title="Linear attention learns gradient descent (Figs. 3B and 4)",
    introduction=(
        "Sequences come from linear systems with an unknown orthogonal matrix W* each, and tokens are constructed so "
        "that neighbouring observations are already bound. One layer of linear attention is compared with one step of "
        "gradient descent on the least-squares problem of the context (Proposition 1), deeper models with "
        "preconditioning steps followed by one gradient step (Proposition 2), and all of them with a mesa layer, which "
        "solves the problem.",
        "Proposition 2 is shown in two forms. A linear Transformer can only use coefficients that are shared by all "
        "time steps; the authors' control scales the matrix by its norm at every time step, which linear attention "
        "cannot do. Both are the best polynomials of their degree on the very sequences shown, so no schedule of steps "
        "can beat them.",
        "Linear probes show what the six layers hold: how well the next observation can be read off after every layer, "
        "and how well the preconditioned input of Proposition 2, the current observation multiplied by the inverse of "
        "the matrix of the earlier ones. Probes are scored on sequences on which they were not fitted.",
    ),
    settings=settings,
)
