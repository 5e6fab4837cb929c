"""The best polynomial preconditioner: what no schedule of solver steps with fixed coefficients can beat.

k steps of any solver whose coefficients do not depend on the sequence predict C_t q(A_t) x_t with one polynomial q of
degree k - 1 for all sequences and time steps. That prediction is linear in the coefficients of q, so the best q is a
least-squares fit, and its loss bounds from below the loss of every schedule of that degree: the reference curve of
Proposition 2 (arXiv 2309.05858), with coefficients for all t ("none", the global form, which a linear Transformer
realises) or for A_t and x_t divided by ||A_t||_F (the authors' control).

The global form is heavy-tailed: a few sequences with a large ||A_t||_F, to the power of the degree, decide the fit. On
the default task its loss at degree 6, on the sequences it was fitted to, is 0.30 for 2,000 of them and 0.32 for 60,000;
the Frobenius form has 0.204 for both. State the number of sequences beside a global curve.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require
from mesascope.learners.preconditioned import Scale, require_scale, scale_label, scaled_problem
from mesascope.learners.regression import (
    InContextData,
    Observations,
    Preconditioner,
    Regressors,
    chunks,
    in_context_data,
)
from mesascope.tasks.sequences import Sequences


@dataclass(frozen=True)
class PolynomialRegression(Preconditioner):
    """C_t q(A_t) x_t with q(A) = sum_j coefficients[j] A^j, the same for all sequences and time steps.

    Attributes:
        coefficients: of 1, A, A^2, ...
        scale: "frobenius" divides A_t and x_t by ||A_t||_F at each (sequence, t); "none" leaves them.
        ridge: multiple of the identity in A_t; positive with "frobenius".
        regressors: x.
    """

    coefficients: tuple[float, ...]
    scale: Scale = "none"
    ridge: float = 1e-3
    regressors: Regressors = Observations()

    def __post_init__(self) -> None:
        require(len(self.coefficients) >= 1, "coefficients", self.coefficients, "at least one number")
        require_scale(self.scale, self.ridge)

    @property
    def degree(self) -> int:
        """Degree of q."""
        return len(self.coefficients) - 1

    @property
    def method(self) -> str:
        return f"best polynomial, degree {self.degree}, {scale_label(self.scale)}"

    def precondition(self, data: InContextData) -> Float[Tensor, "batch time d"]:
        apply, inputs = scaled_problem(data, self.scale, self.ridge)
        solved = self.coefficients[-1] * inputs
        for coefficient in reversed(self.coefficients[:-1]):
            solved = apply(solved) + coefficient * inputs
        return solved


@dataclass(frozen=True)
class PolynomialMoments:
    """All that the mean loss of polynomials up to a degree depends on: a quadratic form in their coefficients.

    The columns are C_t (A_t / unit)^j x_t / unit, j = 0..degree, and coefficients here belong to them.

    Attributes:
        inner: mean inner products of the columns, `[degree + 1, degree + 1]`.
        cross: mean inner products of the columns with s_{t+1}, `[degree + 1]`.
        zero_loss: mean loss of predicting zero.
        unit: mean Frobenius norm of A_T, or 1 when `scale` is "frobenius".
        scale, ridge, regressors: as in `PolynomialRegression`.
    """

    inner: Float[Tensor, "columns columns"]
    cross: Float[Tensor, " columns"]
    zero_loss: float
    unit: float
    scale: Scale
    ridge: float
    regressors: Regressors

    @property
    def degree(self) -> int:
        """The highest degree these moments serve."""
        return self.cross.shape[0] - 1

    def loss(self, coefficients: Float[Tensor, " columns"]) -> Float[Tensor, ""]:
        """Mean loss, half squared error summed over dimensions, of the polynomial with these coefficients.

        Exact, not sampled: the loss on the sequences the moments were taken from. Differentiable.
        """
        size = coefficients.shape[0]
        inner, cross = self.inner[:size, :size], self.cross[:size]
        return self.zero_loss - cross @ coefficients + 0.5 * coefficients @ inner @ coefficients

    def fit(self, degree: int) -> PolynomialRegression:
        """The polynomial of `degree` with the least mean loss."""
        return self.regression(self._best_coefficients(degree))

    def optimum(self, degree: int) -> float:
        """The mean loss of the best polynomial of `degree`: a lower bound for every schedule of that degree."""
        return float(self.loss(self._best_coefficients(degree)))

    def regression(self, coefficients: Float[Tensor, " columns"]) -> PolynomialRegression:
        """The predictor with these coefficients, converted to powers of A_t itself."""
        powers = self.unit ** torch.arange(1, coefficients.shape[0] + 1, dtype=torch.float64)
        plain = tuple(float(value) for value in coefficients / powers)
        return PolynomialRegression(plain, self.scale, self.ridge, self.regressors)

    def _best_coefficients(self, degree: int) -> Tensor:
        require(0 <= degree <= self.degree, "degree", degree, f"between 0 and {self.degree}")
        size = degree + 1
        inner, cross = self.inner[:size, :size], self.cross[:size]
        length = inner.diagonal().sqrt()
        require(bool((length > 0).all()), "sequences", "zero columns", "sequences whose observations are not all zero")
        normalised = inner / length[:, None] / length
        # monomials of a matrix are nearly dependent at higher degrees; a singular direction cannot lower the loss
        solved = torch.linalg.lstsq(normalised, (cross / length)[:, None], driver="gelsd", rcond=1e-14)
        coefficients: Tensor = solved.solution[:, 0] / length
        return coefficients


@torch.no_grad()
def polynomial_moments(
    sequences: Sequences,
    degree: int,
    scale: Scale = "none",
    ridge: float = 1e-3,
    regressors: Regressors = Observations(),
) -> PolynomialMoments:
    """Moments over the batch and the scored time steps of `sequences`, for polynomials up to `degree`."""
    require(degree >= 0, "degree", degree, "at least 0")
    require_scale(scale, ridge)
    parts = chunks(sequences)
    unit = 1.0 if scale == "frobenius" else _mean_final_norm(parts, ridge, regressors)
    inner = torch.zeros(degree + 1, degree + 1, dtype=torch.float64)
    cross = torch.zeros(degree + 1, dtype=torch.float64)
    squares, count = 0.0, 0
    for part in parts:
        data = in_context_data(part, regressors)
        targets = part.targets.double()
        apply, power = scaled_problem(data, scale, ridge)
        power = power / unit
        columns = [data.associate(power)]
        for _ in range(degree):
            power = apply(power) / unit
            columns.append(data.associate(power))
        stacked = torch.stack(columns, dim=-1)
        if part.scored is not None:
            stacked, targets = stacked[:, part.scored], targets[:, part.scored]
        flat = stacked.flatten(0, 2)
        inner += flat.T @ flat
        cross += flat.T @ targets.flatten()
        squares += float(targets.square().sum())
        count += targets.shape[0] * targets.shape[1]
    return PolynomialMoments(inner / count, cross / count, 0.5 * squares / count, unit, scale, ridge, regressors)


def fit_polynomial(
    degree: int,
    scale: Scale,
    sequences: Sequences,
    ridge: float = 1e-3,
    regressors: Regressors = Observations(),
) -> PolynomialRegression:
    """The polynomial of `degree` with the least mean loss on `sequences`; evaluate it on other sequences."""
    return polynomial_moments(sequences, degree, scale, ridge, regressors).fit(degree)


def _mean_final_norm(parts: list[Sequences], ridge: float, regressors: Regressors) -> float:
    total, count = 0.0, 0
    for part in parts:
        keys = in_context_data(part, regressors).keys
        last = keys.mT @ keys + ridge * torch.eye(keys.shape[-1], dtype=keys.dtype)
        total += float(torch.linalg.matrix_norm(last).sum())
        count += part.batch_size
    require(total > 0, "sequences", "all zero", "sequences whose observations are not all zero")
    return total / count
