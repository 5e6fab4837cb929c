"""Least squares with the inverse replaced by a few solver steps: the hypotheses of Proposition 2.

Each learner predicts C_t x~_t, where x~_t approximates A_t^-1 x_t with A_t = sum_{i=2..t} x_{i-1} x_{i-1}^T + ridge I
and C_t = sum_{i=2..t} s_i x_{i-1}^T. `degree` counts the products with A_t: degree 0 is one gradient step, and the
Transformer of k layers in Proposition 2 has room for degree k - 1 (k - 1 preconditioning steps and one gradient step).

Source: arXiv 2309.05858, Proposition 2, appendix C.3 and the controls "Proposition-2-linear / -nonlinear".

Differences from the paper: (1) textbook recurrences (see `mesascope.ops.solvers`); (2) the first step size is
free, where the text starts at x~ = x_t; (3) besides the authors' division of A_t by its Frobenius norm, which a linear
Transformer cannot do, coefficients shared by all sequences and time steps ("none") are offered.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require
from mesascope.learners.regression import (
    CausalGram,
    InContextData,
    Observations,
    Preconditioner,
    Regressors,
)
from mesascope.ops.solvers import (
    Apply,
    chebyshev,
    conjugate_gradients,
    momentum_richardson,
    neumann,
    richardson,
)

Scale = Literal["none", "frobenius"]
"""What A_t and x_t are divided by before a polynomial is applied: nothing, or ||A_t||_F at each (sequence, t)."""


@dataclass(frozen=True)
class FixedBounds:
    """Bounds on the spectrum that are the same for all sequences and time steps.

    Attributes:
        low: at most the smallest eigenvalue.
        high: at least the largest.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        require(self.low > 0, "low", self.low, "greater than 0")
        require(self.high >= self.low, "high", self.high, f"at least low ({self.low})")

    def __call__(self, gram: CausalGram) -> tuple[Tensor, Tensor]:
        """(low, high), broadcastable to `[B, T, 1]`."""
        like = gram.keys
        return like.new_tensor(self.low), like.new_tensor(self.high)


@dataclass(frozen=True)
class TraceBounds:
    """The ridge, and the ridge plus the trace of the rest: always valid, causal and cheap."""

    def __call__(self, gram: CausalGram) -> tuple[Tensor, Tensor]:
        """(low, high), each `[B, T, 1]`."""
        return gram.bounds()


@dataclass(frozen=True)
class ExactBounds:
    """The smallest and the largest eigenvalue of every A_t: a reference, in O(d^3) per time step."""

    def __call__(self, gram: CausalGram) -> tuple[Tensor, Tensor]:
        """(low, high), each `[B, T, 1]`."""
        return gram.extreme_eigenvalues()


SpectrumBounds = FixedBounds | TraceBounds | ExactBounds


@dataclass(frozen=True)
class NeumannRegression(Preconditioner):
    """The truncated Neumann series of A_t / c, with c the upper bound on the spectrum.

    Attributes:
        degree: last power of the series.
        ridge: positive penalty.
        bounds: where c comes from.
        regressors: x.
    """

    degree: int
    ridge: float = 1e-3
    bounds: SpectrumBounds = TraceBounds()
    regressors: Regressors = Observations()

    def __post_init__(self) -> None:
        _require_degree_and_ridge(self.degree, self.ridge)

    @property
    def method(self) -> str:
        return f"Neumann series, degree {self.degree}"

    def precondition(self, data: InContextData) -> Float[Tensor, "batch time d"]:
        gram = CausalGram(data.keys, self.ridge)
        _, high = self.bounds(gram)
        return neumann(gram.apply, data.queries, self.degree, high)


@dataclass(frozen=True)
class RichardsonRegression(Preconditioner):
    """Richardson iteration from zero. Equal to gradient descent from Phi_0 = 0 with the same step sizes and ridge.

    Attributes:
        step_sizes: one per step; k of them make degree k - 1.
        ridge: penalty, at least 0.
        regressors: x.
    """

    step_sizes: tuple[float, ...]
    ridge: float = 1e-3
    regressors: Regressors = Observations()

    def __post_init__(self) -> None:
        require(len(self.step_sizes) >= 1, "step_sizes", self.step_sizes, "at least one step size")
        require(self.ridge >= 0, "ridge", self.ridge, "at least 0")

    @property
    def degree(self) -> int:
        """Degree of the polynomial in A_t."""
        return len(self.step_sizes) - 1

    @property
    def method(self) -> str:
        return f"Richardson iteration, degree {self.degree}"

    def precondition(self, data: InContextData) -> Float[Tensor, "batch time d"]:
        gram = CausalGram(data.keys, self.ridge)
        return richardson(gram.apply, data.queries, self.step_sizes)


@dataclass(frozen=True)
class ChebyshevRegression(Preconditioner):
    """Chebyshev iteration for given bounds on the spectrum.

    Attributes:
        degree: products with A_t; degree + 1 steps from zero.
        ridge: positive penalty.
        bounds: the interval the iteration is optimal for. It diverges if eigenvalues exceed the upper end by much.
        regressors: x.
    """

    degree: int
    ridge: float = 1e-3
    bounds: SpectrumBounds = TraceBounds()
    regressors: Regressors = Observations()

    def __post_init__(self) -> None:
        _require_degree_and_ridge(self.degree, self.ridge)

    @property
    def method(self) -> str:
        return f"Chebyshev iteration, degree {self.degree}"

    def precondition(self, data: InContextData) -> Float[Tensor, "batch time d"]:
        gram = CausalGram(data.keys, self.ridge)
        low, high = self.bounds(gram)
        return chebyshev(gram.apply, data.queries, self.degree + 1, low, high)


@dataclass(frozen=True)
class TunedChebyshevRegression(Preconditioner):
    """Second-order Richardson with given numbers alpha_k, beta_k: the paper's "Chebyshev" with learned coefficients.

    Attributes:
        step_sizes: alpha_k, one per step from zero; k of them make degree k - 1. With scale "none" their unit is one
            over an eigenvalue of A_t.
        momenta: beta_k, as many. The first has nothing to act on.
        scale: "frobenius" divides A_t and x_t by ||A_t||_F at each (sequence, t); "none" leaves them.
        ridge: penalty; positive with "frobenius", which would divide by zero at t = 1 without.
        regressors: x.
    """

    step_sizes: tuple[float, ...]
    momenta: tuple[float, ...]
    scale: Scale = "none"
    ridge: float = 1e-3
    regressors: Regressors = Observations()

    def __post_init__(self) -> None:
        require(len(self.step_sizes) >= 1, "step_sizes", self.step_sizes, "at least one step size")
        same = len(self.momenta) == len(self.step_sizes)
        require(same, "momenta", self.momenta, f"as many as step_sizes ({len(self.step_sizes)})")
        require_scale(self.scale, self.ridge)

    @property
    def degree(self) -> int:
        """Degree of the polynomial in A_t."""
        return len(self.step_sizes) - 1

    @property
    def method(self) -> str:
        return f"tuned Chebyshev, degree {self.degree}, {scale_label(self.scale)}"

    def precondition(self, data: InContextData) -> Float[Tensor, "batch time d"]:
        apply, inputs = scaled_problem(data, self.scale, self.ridge)
        return momentum_richardson(apply, inputs, self.step_sizes, self.momenta)


@dataclass(frozen=True)
class ConjugateGradientRegression(Preconditioner):
    """Conjugate gradients: the best polynomial for every single (sequence, t), which no fixed schedule can beat.

    Attributes:
        steps: largest number of steps; degree steps - 1.
        tolerance: relative residual at which a system is finished.
        ridge: positive penalty.
        regressors: x.
    """

    steps: int
    tolerance: float = 0.0
    ridge: float = 1e-3
    regressors: Regressors = Observations()

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        require(self.tolerance >= 0, "tolerance", self.tolerance, "at least 0")
        require(self.ridge > 0, "ridge", self.ridge, "greater than 0")

    @property
    def method(self) -> str:
        return f"conjugate gradients, {self.steps} step{'s' if self.steps > 1 else ''}"

    def precondition(self, data: InContextData) -> Float[Tensor, "batch time d"]:
        gram = CausalGram(data.keys, self.ridge)
        return conjugate_gradients(gram.apply, data.queries, self.steps, self.tolerance)


def scaled_problem(data: InContextData, scale: Scale, ridge: float) -> tuple[Apply, Float[Tensor, "batch time d"]]:
    """Products with A_t, and x_t, both divided by ||A_t||_F at each (sequence, t) if `scale` is "frobenius"."""
    gram = CausalGram(data.keys, ridge)
    if scale == "none":
        return gram.apply, data.queries
    norm = gram.frobenius_norm()
    return lambda x: gram.apply(x) / norm, data.queries / norm


def require_scale(scale: Scale, ridge: float) -> None:
    """Raise InputError for an unknown scale or a ridge that does not fit it."""
    require(scale in ("none", "frobenius"), "scale", scale, "'none' or 'frobenius'")
    require(ridge >= 0, "ridge", ridge, "at least 0")
    require(ridge > 0 or scale == "none", "ridge", ridge, "greater than 0 when scale is 'frobenius'")


def scale_label(scale: Scale) -> str:
    """The scale in names of predictors."""
    return "global" if scale == "none" else "Frobenius norm"


def _require_degree_and_ridge(degree: int, ridge: float) -> None:
    require(degree >= 0, "degree", degree, "at least 0")
    require(ridge > 0, "ridge", ridge, "greater than 0")
