"""Tuning the numbers of a learner, on sequences that are not those it is evaluated on.

Nothing here draws at random: the result is a function of the sequences passed, whose generator the caller seeds. The
tuned sequences must not be the evaluated ones; draw both from generators of different seeds.

Schedules of solver steps are tuned by Adam on the exact loss over the given sequences. A schedule is a polynomial in
A_t whose coefficients depend on its numbers, and the loss is a quadratic form in those coefficients
(`PolynomialMoments`), so the cost of a step of Adam does not depend on the number of sequences. On the default task the
result is within 1e-8 of the best polynomial of the same degree, up to degree 6.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from mesascope.errors import DivergenceError, InputError, require
from mesascope.learners.gradient_descent import GradientDescent
from mesascope.learners.polynomial import PolynomialMoments, polynomial_moments
from mesascope.learners.preconditioned import Scale, TunedChebyshevRegression
from mesascope.learners.regression import Observations, Regressors
from mesascope.predictor import Predictor, loss_per_time_step
from mesascope.tasks.sequences import Sequences

P = TypeVar("P", bound=Predictor)


@dataclass(frozen=True)
class LineSearch(Generic[P]):
    """The outcome of a line search.

    Attributes:
        value: the grid value with the least mean loss.
        predictor: the predictor made from it.
        grid: what was tried, ascending.
        losses: mean loss of each, on the tuning sequences.
    """

    value: float
    predictor: P
    grid: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def on_edge(self) -> bool:
        """Whether the best value is the first or the last of the grid, so that a better one may lie outside."""
        return self.value in (self.grid[0], self.grid[-1])


@dataclass(frozen=True)
class TunedSchedule(Generic[P]):
    """A learner with tuned step coefficients.

    Attributes:
        predictor: the learner.
        loss: its mean loss on the tuning sequences.
        optimum: mean loss there of the best polynomial of the same degree, which `loss` cannot be below.
        losses: mean loss before each step of Adam.
    """

    predictor: P
    loss: float
    optimum: float
    losses: tuple[float, ...]


@torch.no_grad()
def mean_loss(predictor: Predictor, sequences: Sequences) -> float:
    """Half squared error summed over dimensions, averaged over the batch and the scored time steps."""
    losses = loss_per_time_step(predictor.predict(sequences), sequences.targets)
    return float(losses[sequences.scored_indices].mean())


def line_search(
    make_predictor: Callable[[float], P],
    grid: Sequence[float],
    sequences: Sequences,
    edge: Literal["error", "allow"] = "error",
) -> LineSearch[P]:
    """The value of `grid` whose predictor has the least mean loss on `sequences`.

    Args:
        make_predictor: maps a value to a predictor.
        grid: values to try, in any order; at least three different ones.
        sequences: tuning sequences, not those of the evaluation.
        edge: what to do when the best value is the smallest or largest of the grid: raise, or return it (it is then
            marked by `on_edge`).

    Raises:
        InputError: the best value lies on the edge of the grid, or no loss is finite.
    """
    ordered = tuple(sorted({float(value) for value in grid}))
    require(len(ordered) >= 3, "grid", ordered, "at least three different values")
    predictors = [make_predictor(value) for value in ordered]
    losses = tuple(mean_loss(predictor, sequences) for predictor in predictors)
    finite = [index for index, loss in enumerate(losses) if loss < float("inf")]
    require(bool(finite), "grid", ordered, "such that at least one loss is finite")
    best = min(finite, key=lambda index: losses[index])
    result = LineSearch(ordered[best], predictors[best], ordered, losses)
    if result.on_edge and edge == "error":
        raise InputError(
            f"grid: the best of {len(ordered)} values, {result.value:g}, is an end of the grid [{ordered[0]:g}, "
            f"{ordered[-1]:g}], so the optimum may lie outside; widen the grid, or pass edge='allow'"
        )
    return result


def refined_line_search(
    make_predictor: Callable[[float], P], grid: Sequence[float], sequences: Sequences, rounds: int = 3
) -> LineSearch[P]:
    """A line search over positive values that is then refined around its best value.

    Every round also tries the geometric means of the best value so far and its two neighbours. With one minimum of the
    loss, the best value lies within a factor r^(2^-rounds) of it on a grid whose neighbours differ by a factor r.

    Args:
        make_predictor, sequences: as in `line_search`.
        grid: positive values to start with; the best of them must not be the first or the last.
        rounds: refinements, two evaluations each.

    Raises:
        InputError: as `line_search`, or a value of the grid is not positive.
    """
    require(min(grid, default=1.0) > 0, "grid", tuple(grid), "positive")
    require(rounds >= 0, "rounds", rounds, "at least 0")
    found = line_search(make_predictor, grid, sequences)
    for _ in range(rounds):
        best = found.grid.index(found.value)
        between = [math.sqrt(found.value * found.grid[best + side]) for side in (-1, 1)]
        tried = dict(zip(found.grid, found.losses, strict=True))
        tried |= {value: mean_loss(make_predictor(value), sequences) for value in between}
        values = tuple(sorted(tried))
        value = min(found.value, *between, key=lambda value: tried[value])
        found = LineSearch(value, make_predictor(value), values, tuple(tried[value] for value in values))
    return found


def tune_chebyshev(
    degree: int,
    scale: Scale,
    sequences: Sequences,
    steps: int = 2000,
    learning_rate: float = 0.02,
    ridge: float = 1e-3,
    regressors: Regressors = Observations(),
) -> TunedSchedule[TunedChebyshevRegression]:
    """Second-order Richardson whose alpha_k, beta_k, k = 1..degree+1, are tuned for the loss of the prediction.

    Starts at alpha = 1, beta = 0 in units in which the typical norm of A_t at the end of a sequence is 1.

    Args:
        degree: products with A_t.
        scale: "frobenius" divides A_t by its Frobenius norm at each (sequence, t); "none" is the global form.
        sequences: tuning sequences.
        steps: steps of Adam.
        learning_rate: of Adam, in the units of the start; it decays to zero along a cosine.
        ridge: in A_t.
        regressors: x.

    Raises:
        DivergenceError: the loss is not finite.
    """
    moments = polynomial_moments(sequences, degree, scale, ridge, regressors)
    start = torch.stack([torch.ones(degree + 1), torch.zeros(degree + 1)]).double()
    best, losses = _adam(lambda numbers: _loss(moments, numbers[0], numbers[1]), start, steps, learning_rate)
    step_sizes = tuple(float(alpha) / moments.unit for alpha in best[0])
    momenta = (0.0, *(float(beta) for beta in best[1, 1:]))
    predictor = TunedChebyshevRegression(step_sizes, momenta, scale, ridge, regressors)
    return _tuned(predictor, moments, losses)


def tune_step_sizes(
    num_steps: int,
    sequences: Sequences,
    steps: int = 2000,
    learning_rate: float = 0.02,
    ridge: float = 0.0,
    regressors: Regressors = Observations(),
) -> TunedSchedule[GradientDescent]:
    """Gradient descent from Phi_0 = 0 whose step sizes eta_1 .. eta_k are tuned for the loss of the prediction.

    The order of the steps does not matter, so equal step sizes would stay equal; the start spreads them between 1/2 and
    2, in units in which the typical norm of A_t at the end of a sequence is 1. Largest first in the result.

    Args:
        num_steps: k.
        sequences: tuning sequences.
        steps: steps of Adam.
        learning_rate: of Adam, on the logarithms of the step sizes; it decays to zero along a cosine.
        ridge: penalty in L_t.
        regressors: x.

    Raises:
        DivergenceError: the loss is not finite.
    """
    require(num_steps >= 1, "num_steps", num_steps, "at least 1")
    moments = polynomial_moments(sequences, num_steps - 1, "none", ridge, regressors)
    start = torch.linspace(-1, 1, num_steps, dtype=torch.float64) * torch.tensor(2.0).log()
    still = torch.zeros(num_steps, dtype=torch.float64)
    best, losses = _adam(lambda logs: _loss(moments, logs.exp(), still), start, steps, learning_rate)
    step_sizes = sorted((float(eta) / moments.unit for eta in best.exp()), reverse=True)
    return _tuned(GradientDescent(tuple(step_sizes), 0.0, ridge, regressors), moments, losses)


def _tuned(predictor: P, moments: PolynomialMoments, losses: tuple[float, ...]) -> TunedSchedule[P]:
    optimum = moments.optimum(moments.degree)
    return TunedSchedule(predictor, min(losses), optimum, losses)


def _loss(moments: PolynomialMoments, step_sizes: Tensor, momenta: Tensor) -> Tensor:
    """Loss of second-order Richardson from zero, via the coefficients of its polynomial in A_t / unit."""
    constant = torch.zeros_like(step_sizes)
    constant[0] = 1.0
    previous, current = torch.zeros_like(step_sizes), step_sizes[0] * constant
    for alpha, beta in zip(step_sizes[1:], momenta[1:], strict=True):
        product = torch.cat([current.new_zeros(1), current[:-1]])
        previous, current = current, current + alpha * (constant - product) + beta * (current - previous)
    return moments.loss(current)


def _adam(
    loss: Callable[[Tensor], Tensor], start: Tensor, steps: int, learning_rate: float
) -> tuple[Tensor, tuple[float, ...]]:
    """The best of the visited points, and the loss at each of them."""
    require(steps >= 1, "steps", steps, "at least 1")
    require(learning_rate > 0, "learning_rate", learning_rate, "greater than 0")
    numbers = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([numbers], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    best, losses = start, []
    with torch.enable_grad():
        for step in range(steps):
            value = loss(numbers)
            losses.append(float(value.detach()))
            if not losses[-1] < float("inf"):
                raise DivergenceError(
                    f"the loss is {losses[-1]} at step {step} of the tuning; use a learning_rate below {learning_rate}"
                )
            if losses[-1] <= min(losses):
                best = numbers.detach().clone()
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            schedule.step()
    return best, tuple(losses)
