"""The learners that a trained model is compared with, tuned on sequences of their own.

Source: arXiv 2309.05858, Propositions 1 and 2, appendix C.3 and the section on softmax attention.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mesascope.errors import require
from mesascope.learners import (
    Observations,
    Regressors,
    RidgeRegression,
    Scale,
    SoftmaxKernelRegression,
    TrueTransition,
    Zero,
    line_search,
    polynomial_moments,
)
from mesascope.learners.regression import labelled
from mesascope.predictor import Predictor
from mesascope.tasks import Sequences

RIDGES = tuple(10.0 ** (exponent / 2) for exponent in range(-8, 5))
BETAS = tuple(2.0 ** (exponent / 2) for exponent in range(-6, 11))
"""Grids of `learner_candidates`."""


@dataclass(frozen=True)
class Candidate:
    """A learner that a model may be running.

    Attributes:
        predictor: the learner.
        family: what candidates of different depth have in common.
        steps: depth, the number of steps with the last gradient step; None for a learner without steps.
    """

    predictor: Predictor
    family: str
    steps: int | None = None

    @property
    def name(self) -> str:
        return self.predictor.name


def learner_candidates(
    tuning: Sequences,
    max_steps: int = 7,
    regressors: Iterable[Regressors] = (Observations(),),
    ridge: float = 1e-3,
) -> tuple[Candidate, ...]:
    """The algorithms that are asked about when a model is trained on a task, tuned for its loss.

    For every kind of regressors: 1 to `max_steps` steps, with the best coefficients shared by all sequences and time
    steps (what a linear Transformer can realise) and with the matrix scaled by its norm at every time step (the
    authors' control); ridge regression; softmax-kernel regression. Besides, zero, and the oracle where the sequences
    have its latents. k tuned gradient or Chebyshev steps reach the best polynomial of degree k - 1, which is what is
    ranked.

    Args:
        tuning: sequences of the task, not those that the ranking is measured on.
        max_steps: largest depth.
        regressors: distinct kinds of x.
        ridge: in the matrix of the steps; that of ridge regression is searched among `RIDGES`, beta among `BETAS`.

    Raises:
        InputError: `max_steps` is not positive.
    """
    require(max_steps >= 1, "max_steps", max_steps, "at least 1")
    learners = [candidate for x in regressors for candidate in _with_regressors(tuning, max_steps, x, ridge)]
    oracle = [Candidate(TrueTransition(), "true W*")] if tuning.latents.states is not None else []
    return (*learners, Candidate(Zero(), "zero"), *oracle)


def _with_regressors(tuning: Sequences, max_steps: int, x: Regressors, ridge: float) -> Iterator[Candidate]:
    families: tuple[tuple[str, Scale], ...] = (("shared coefficients", "none"), ("scaled matrix", "frobenius"))
    for family, scale in families:
        moments = polynomial_moments(tuning, max_steps - 1, scale, ridge, x)
        for steps in range(1, max_steps + 1):
            yield Candidate(moments.fit(steps - 1), labelled(f"steps, {family}", x), steps)
    solved = line_search(lambda value: RidgeRegression(value, x), RIDGES, tuning, edge="allow")
    yield Candidate(solved.predictor, labelled("ridge regression", x))
    kernel = line_search(lambda value: SoftmaxKernelRegression(value, x), BETAS, tuning, edge="allow")
    yield Candidate(kernel.predictor, labelled("softmax kernel", x))
