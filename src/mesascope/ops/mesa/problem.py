"""The sequence of symmetric matrices that mesa attention solves with."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mesascope.errors import InputError
from mesascope.ops.mesa.gated import gated_sum, remaining

Regularizer = Literal["initial", "constant"]

LARGEST_RESIDUAL = 1e-2
"""max |x_t - H_t y_t| / max |x_t| beyond which a solve is refused: near a condition number of 1e5 in float32 and 1e13
in float64. Rounding of the inputs then moves the solution by as much, so a better algorithm would not help."""


@dataclass(frozen=True)
class Problem:
    """H_t = m_{t,0} C_0 + sum_{i<=t} beta_i m_{t,i} k_i k_i^T + diag(ridge), the last times m_{t,0} if "initial".

    Attributes:
        k: `[B, H, T, D]`.
        write, log_forget: beta and log gamma, `[B, H, T]`, or None for 1 and 0.
        ridge: `[B, H, D]`.
        gram: C_0, `[B, H, D, D]`, symmetric, or None for 0.
        regularizer: whether the ridge is forgotten ("initial") or not ("constant").
    """

    k: Tensor
    write: Tensor | None
    log_forget: Tensor | None
    ridge: Tensor
    gram: Tensor | None
    regularizer: Regularizer

    @property
    def written(self) -> Tensor:
        """beta_i k_i."""
        return self.k if self.write is None else self.write[..., None] * self.k

    def fading(self) -> Tensor | None:
        """The part of H_0 that is forgotten, `[B, H, D, D]`."""
        if self.regularizer == "constant":
            return self.gram
        ridge = torch.diag_embed(self.ridge)
        return ridge if self.gram is None else self.gram + ridge

    def multiply(self, y: Tensor) -> Tensor:
        """H_t y_t."""
        from_start = self.ridge[:, :, None] * y if self.regularizer == "initial" else 0
        if self.gram is not None:
            from_start = from_start + y @ self.gram
        if self.log_forget is not None:
            from_start = remaining(self.log_forget)[..., None] * from_start
        if self.regularizer == "constant":
            from_start = from_start + self.ridge[:, :, None] * y
        return from_start + gated_sum(y, self.k, self.written, self.log_forget)

    def residual(self, x: Tensor, y: Tensor) -> tuple[Tensor, float]:
        """x_t - H_t y_t and its `relative_size`."""
        residual = x - self.multiply(y)
        return residual, relative_size(residual, x)

    def verify(self, relative_residual: float) -> None:
        """Raise an error unless a solve has succeeded."""
        if not relative_residual <= LARGEST_RESIDUAL:
            raise singular(self.ridge, self.log_forget, self.regularizer, self.k.dtype, relative_residual)


def singular(
    ridge: Tensor, log_forget: Tensor | None, regularizer: Regularizer, dtype: torch.dtype, relative_residual: float
) -> InputError:
    """The error for a problem that cannot be solved in a dtype, which names the cause."""
    found = f"the relative residual is {relative_residual:.2g}, {LARGEST_RESIDUAL:g} is allowed"
    smallest = f"{float(ridge.detach().min()):.3g}"
    precise = "" if dtype == torch.float64 else " or float64"
    if log_forget is not None and regularizer == "initial":
        return InputError(
            f"log_forget: so much was forgotten, the ridge (smallest {smallest}) included, that directions without "
            f'recent keys have no regularizer left in {dtype} ({found}); use regularizer="constant", forget less, '
            f"a larger ridge{precise}"
        )
    return InputError(
        f"ridge: the smallest is {smallest}, too small for keys of this size in {dtype} ({found}); use a larger ridge, "
        f"smaller keys{precise}"
    )


def relative_size(residual: Tensor, x: Tensor) -> float:
    """The largest max |residual| / max |x| over all vectors x that are finite; NaN where it has any.

    A right-hand side that is not finite, like the gradient of a loss that has overflowed, is no failure of a solve.
    """
    if x.numel() == 0:
        return 0.0
    limits = torch.finfo(x.dtype)
    size = x.abs().amax(-1)
    # vectors below the floor lose their digits to underflow, which is harmless
    relative = residual.abs().amax(-1) / size.clamp(min=limits.tiny / limits.eps)
    return float(torch.where(size.isfinite(), relative, 0.0).max())
