"""Iterative solvers of A x = b for symmetric positive definite A, given only products with A.

`apply` maps `[..., d]` to A times it, for a whole batch of systems; coefficients are numbers or tensors that broadcast
against b, for example `[B, T, 1]`, one per system. All start at x = 0 unless they say otherwise, so K steps make a
polynomial of degree K - 1 in A, applied to b. m and M are the smallest and largest eigenvalue, kappa = M / m.

| solver | converges if | error after K steps shrinks like |
|---|---|---|
| neumann, scale c | c > M / 2 | (1 - m/c)^K for c >= M |
| richardson | 0 < alpha < 2 / M | ((kappa - 1) / (kappa + 1))^K at alpha = 2 / (m + M) |
| momentum_richardson | m, M bound the spectrum | ((sqrt kappa - 1) / (sqrt kappa + 1))^K |
| chebyshev | m, M bound the spectrum | 1 / T_K((M + m) / (M - m)), optimal for the bounds |
| conjugate_gradients | always | at least as fast as chebyshev; exact after d steps |

Source: Saad, Iterative Methods for Sparse Linear Systems (2nd ed.), chapters 4, 6, 12; roles in arXiv 2309.05858,
Proposition 2 and appendix C.3.

Differences from the paper: (1) eq. 9 as printed has no right-hand side and does not solve the system; these are the
textbook recurrences. (2) In the authors' code the Richardson update lacks its step size, and momentum is added to a
Neumann series instead of to the residual iteration.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from mesascope.errors import require

Apply = Callable[[Tensor], Tensor]
Coefficient = float | Tensor


def neumann(
    apply: Apply, b: Float[Tensor, "*batch d"], degree: int, scale: Coefficient = 1.0
) -> Float[Tensor, "*batch d"]:
    """The truncated Neumann series (1/c) sum_{j=0..degree} (I - A/c)^j b with c = `scale`."""
    require(degree >= 0, "degree", degree, "at least 0")
    x = b
    for _ in range(degree):
        x = b + x - apply(x) / scale
    return x / scale


def richardson(
    apply: Apply, b: Float[Tensor, "*batch d"], step_sizes: Sequence[Coefficient]
) -> Float[Tensor, "*batch d"]:
    """x <- x + alpha (b - A x), once for every alpha in `step_sizes`."""
    return momentum_richardson(apply, b, step_sizes, [0.0] * len(step_sizes))


def momentum_richardson(
    apply: Apply, b: Float[Tensor, "*batch d"], step_sizes: Sequence[Coefficient], momenta: Sequence[Coefficient]
) -> Float[Tensor, "*batch d"]:
    """Second-order Richardson: x_{k+1} = x_k + alpha_k (b - A x_k) + beta_k (x_k - x_{k-1}), x_{-1} = x_0 = 0.

    Args:
        step_sizes: alpha_k, one per step.
        momenta: beta_k, one per step. The first has nothing to act on.
    """
    require(len(step_sizes) >= 1, "step_sizes", list(step_sizes), "at least one")
    require(len(momenta) == len(step_sizes), "momenta", len(momenta), f"as many as step_sizes ({len(step_sizes)})")
    previous, x = torch.zeros_like(b), step_sizes[0] * b
    for alpha, beta in zip(step_sizes[1:], momenta[1:], strict=True):
        previous, x = x, x + alpha * (b - apply(x)) + beta * (x - previous)
    return x


def richardson_step_size(low: Coefficient, high: Coefficient) -> Coefficient:
    """The step size 2 / (m + M) that contracts the error most in every step."""
    return 2 / (low + high)


def momentum_coefficients(low: Coefficient, high: Coefficient) -> tuple[Coefficient, Coefficient]:
    """The step size and momentum with the fastest asymptotic rate for a spectrum in [`low`, `high`]."""
    root_low, root_high = low**0.5, high**0.5
    return 4 / (root_high + root_low) ** 2, ((root_high - root_low) / (root_high + root_low)) ** 2


def chebyshev(
    apply: Apply, b: Float[Tensor, "*batch d"], steps: int, low: Coefficient, high: Coefficient
) -> Float[Tensor, "*batch d"]:
    """Chebyshev iteration: the best `steps` steps for a spectrum in [`low`, `high`], 0 < low <= high."""
    require(steps >= 1, "steps", steps, "at least 1")
    low, high = torch.as_tensor(low, dtype=b.dtype), torch.as_tensor(high, dtype=b.dtype)
    require(bool((low > 0).all()), "low", float(low.detach().min()), "greater than 0")
    require(
        bool((high >= low).all()),
        "high",
        float((high - low).detach().min()),
        "at least low (their smallest difference is given)",
    )
    theta, delta = (high + low) / 2, (high - low) / 2
    # rho / delta instead of rho: a spectrum of one point, delta = 0, then needs no special case
    ratio = 1 / theta
    correction = ratio * b
    x, residual = correction, b
    for _ in range(steps - 1):
        residual = residual - apply(correction)
        next_ratio = 1 / (2 * theta - delta.square() * ratio)
        correction = next_ratio * (delta.square() * ratio * correction + 2 * residual)
        x, ratio = x + correction, next_ratio
    return x


def conjugate_gradients(
    apply: Apply, b: Float[Tensor, "*batch d"], steps: int, tolerance: float = 0.0
) -> Float[Tensor, "*batch d"]:
    """Conjugate gradients, at most `steps` steps; every system of the batch stops by itself.

    Args:
        tolerance: a system is finished once its residual is at most this fraction of ||b||; 0 stops at an exact zero.
    """
    return counted_conjugate_gradients(apply, b, steps, tolerance)[0]


def counted_conjugate_gradients(
    apply: Apply, b: Float[Tensor, "*batch d"], steps: int, tolerance: float = 0.0
) -> tuple[Float[Tensor, "*batch d"], Integer[Tensor, "*batch"]]:
    """As `conjugate_gradients`, and the number of steps that each system took."""
    require(steps >= 1, "steps", steps, "at least 1")
    require(tolerance >= 0, "tolerance", tolerance, "at least 0")
    x, residual, direction = torch.zeros_like(b), b, b
    square = b.square().sum(-1, keepdim=True)
    goal = tolerance**2 * square
    taken = torch.zeros_like(square, dtype=torch.int64)
    for _ in range(steps):
        product = apply(direction)
        curvature = (direction * product).sum(-1, keepdim=True)
        active = (square > goal) & (curvature > 0)
        if not bool(active.any()):
            break
        step = _divide(square, curvature, active)
        x, residual = x + step * direction, residual - step * product
        new_square = residual.square().sum(-1, keepdim=True)
        direction = residual + _divide(new_square, square, active) * direction
        square, taken = new_square, taken + active
    return x, taken[..., 0]


def _divide(numerator: Tensor, denominator: Tensor, where: Tensor) -> Tensor:
    """The quotient where it is wanted and zero elsewhere, with no constant added to any denominator."""
    return torch.where(where, numerator / torch.where(where, denominator, 1.0), 0.0)
