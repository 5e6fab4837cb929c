"""Learning algorithms as predictors: the hypotheses a trained model is compared with."""

from mesascope.learners.baselines import TrueTransition, Zero
from mesascope.learners.gradient_descent import GradientDescent, best_step_size
from mesascope.learners.kernel import SoftmaxKernelRegression
from mesascope.learners.polynomial import (
    PolynomialMoments,
    PolynomialRegression,
    fit_polynomial,
    polynomial_moments,
)
from mesascope.learners.preconditioned import (
    ChebyshevRegression,
    ConjugateGradientRegression,
    ExactBounds,
    FixedBounds,
    NeumannRegression,
    RichardsonRegression,
    Scale,
    SpectrumBounds,
    TraceBounds,
    TunedChebyshevRegression,
)
from mesascope.learners.regression import (
    CausalGram,
    Features,
    InContextData,
    Observations,
    Preconditioner,
    Regressors,
    Window,
    in_context_data,
)
from mesascope.learners.ridge import PairRegression, RidgeRegression
from mesascope.learners.tuning import (
    LineSearch,
    TunedSchedule,
    line_search,
    mean_loss,
    refined_line_search,
    tune_chebyshev,
    tune_step_sizes,
)
from mesascope.ops.solvers import (
    chebyshev,
    conjugate_gradients,
    momentum_coefficients,
    momentum_richardson,
    neumann,
    richardson,
    richardson_step_size,
)

__all__ = [
    "CausalGram",
    "ChebyshevRegression",
    "ConjugateGradientRegression",
    "ExactBounds",
    "Features",
    "FixedBounds",
    "GradientDescent",
    "InContextData",
    "LineSearch",
    "NeumannRegression",
    "Observations",
    "PairRegression",
    "PolynomialMoments",
    "PolynomialRegression",
    "Preconditioner",
    "Regressors",
    "RichardsonRegression",
    "RidgeRegression",
    "Scale",
    "SoftmaxKernelRegression",
    "SpectrumBounds",
    "TraceBounds",
    "TrueTransition",
    "TunedChebyshevRegression",
    "TunedSchedule",
    "Window",
    "Zero",
    "best_step_size",
    "chebyshev",
    "conjugate_gradients",
    "fit_polynomial",
    "in_context_data",
    "line_search",
    "mean_loss",
    "momentum_coefficients",
    "momentum_richardson",
    "neumann",
    "polynomial_moments",
    "refined_line_search",
    "richardson",
    "richardson_step_size",
    "tune_chebyshev",
    "tune_step_sizes",
]
