"""Features of queries and keys: functions `[..., D] -> [..., D']` without parameters, chosen in the configuration.

A layer applies a tuple of them, first to last. The empty tuple is the identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require


@dataclass(frozen=True)
class UnitNorm:
    """x / (||x|| + 1e-16): the queries and keys of each head divided by their Euclidean norm (arXiv 2309.05858, G).

    A zero stays zero. Half precision is divided in float32.
    """

    def size(self, d: int) -> int:
        """D' for D = `d`."""
        return d

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide / (wide.norm(dim=-1, keepdim=True) + 1e-16)).to(x.dtype)


@dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / sqrt(variance + epsilon) over the coordinates of each head, without parameters (arXiv 1607.06450).

    Queries and keys then have the norm sqrt(D), so that softmax logits reach sqrt(D) in place of 1 / sqrt(D) with
    `UnitNorm`. Half precision is computed in float32.
    """

    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        require(self.epsilon > 0, "epsilon", self.epsilon, "greater than 0")

    def size(self, d: int) -> int:
        """D' for D = `d`."""
        return d

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return torch.nn.functional.layer_norm(wide, wide.shape[-1:], eps=self.epsilon).to(x.dtype)


@dataclass(frozen=True)
class DPFP:
    """Deterministic parameter-free projection: products of pairs of rectified coordinates (arXiv 2102.11174, eq. 37).

    With r = [relu(x), relu(-x)] in R^2D, the feature number 2D (j - 1) + i is r_i r_{i+j} for j = 1 .. nu, indices of r
    modulo 2D; D' = 2 nu D. Features are never negative, and each is zero on most of space. The language models of
    arXiv 2309.05858 (appendix G) take nu = 3 after the projections of queries and keys. Whether they divide by the norm
    before or after it they do not say; `(DPFP(), UnitNorm())` does so after it.

    Difference from the authors' code of 2102.11174: that pairs r_i with r_{i-j}, which gives the same features in
    another order, so inner products are equal.

    Attributes:
        nu: how many neighbours each coordinate is paired with, from 1 to 2D - 1. For no features leave it out.
    """

    nu: int = 3

    def __post_init__(self) -> None:
        require(self.nu >= 1, "nu", self.nu, "at least 1")

    def size(self, d: int) -> int:
        """D' for D = `d`."""
        require(self.nu < 2 * d, "nu", self.nu, f"at most {2 * d - 1} for keys of {d} coordinates")
        return 2 * d * self.nu

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch features"]:
        r = torch.cat([x.relu(), (-x).relu()], -1)
        return torch.cat([r * r.roll(-j, -1) for j in range(1, self.nu + 1)], -1)


Norm = UnitNorm | LayerNorm
Feature = Norm | DPFP


def apply_features(features: Sequence[Feature], x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch features"]:
    """All `features` of x, one after the other."""
    for feature in features:
        x = feature(x)
    return x


def feature_size(features: Sequence[Feature], d: int) -> int:
    """D', the size of what `apply_features` makes of D = `d` coordinates.

    Raises:
        InputError: a feature is not defined for its input.
    """
    for feature in features:
        d = feature.size(d)
    return d
