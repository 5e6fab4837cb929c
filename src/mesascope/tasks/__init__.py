"""Where sequences come from."""

from mesascope.tasks.dynamics import ClipSequence, ClipStates, Dynamics, GaussianEmission, MLPFeatures
from mesascope.tasks.few_shot import EOSLayout, FewShotRegression, PairLayout, PrefixLayout
from mesascope.tasks.presets import (
    contracting_linear,
    fixed_teacher,
    fully_observed_linear,
    nonlinear,
    partially_observed_linear,
)
from mesascope.tasks.sequences import Latents, Sequences, shift_right
from mesascope.tasks.tokens import ConstructedTokens, PlainTokens, TokenScheme, WindowTokens
from mesascope.tasks.transitions import (
    ContractingGaussian,
    ContractingReal,
    FixedOrthogonal,
    Orthogonal,
    Transition,
    haar_orthogonal,
)

__all__ = [
    "ClipSequence",
    "ClipStates",
    "ConstructedTokens",
    "ContractingGaussian",
    "ContractingReal",
    "Dynamics",
    "EOSLayout",
    "FewShotRegression",
    "FixedOrthogonal",
    "GaussianEmission",
    "Latents",
    "MLPFeatures",
    "Orthogonal",
    "PairLayout",
    "PlainTokens",
    "PrefixLayout",
    "Sequences",
    "TokenScheme",
    "Transition",
    "WindowTokens",
    "contracting_linear",
    "fixed_teacher",
    "fully_observed_linear",
    "haar_orthogonal",
    "nonlinear",
    "partially_observed_linear",
    "shift_right",
]
