"""Where the transition matrix W* of a sequence comes from. Each type draws a batch of them from a generator."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require


def haar_orthogonal(
    batch_size: int, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "batch n n"]:
    """Orthogonal matrices drawn from the Haar measure, `[B, n, n]`.

    QR of a Gaussian matrix with the signs of R's diagonal moved into Q, without which Q is not Haar
    (Mezzadri, arXiv math-ph/0609050).
    """
    q, r = torch.linalg.qr(torch.randn(batch_size, n, n, generator=generator, dtype=dtype))
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(dtype)
    return q * signs[:, None, :]


@dataclass(frozen=True)
class Orthogonal:
    """A fresh Haar orthogonal W* for every sequence."""

    def sample(
        self, batch_size: int, n: int, generator: torch.Generator, dtype: torch.dtype
    ) -> Float[Tensor, "batch n n"]:
        return haar_orthogonal(batch_size, n, generator, dtype)


@dataclass(frozen=True)
class FixedOrthogonal:
    """One Haar orthogonal W* for all sequences of the task (the fixed-teacher control of Fig. 12).

    Attributes:
        seed: names the matrix; the same seed is the same matrix, whatever generator draws the sequences.
    """

    seed: int = 42

    def sample(
        self, batch_size: int, n: int, generator: torch.Generator, dtype: torch.dtype
    ) -> Float[Tensor, "batch n n"]:
        own = torch.Generator().manual_seed(self.seed)
        return haar_orthogonal(1, n, own, torch.float64).to(dtype).expand(batch_size, n, n)


@dataclass(frozen=True)
class ContractingReal:
    """W* = M diag(lambda) M^-1 with Gaussian M and a real spectrum: the sampler of the authors' code (Fig. 11).

    n - 1 eigenvalues are uniform in [low, high], the last is exactly `high`; their order is random. W* is not normal,
    so states can grow before they shrink: use a clip.
    """

    low: float = 0.3
    high: float = 0.9

    def __post_init__(self) -> None:
        _require_band(self.low, self.high)

    def sample(
        self, batch_size: int, n: int, generator: torch.Generator, dtype: torch.dtype
    ) -> Float[Tensor, "batch n n"]:
        # a Gaussian M can be badly conditioned, so it is inverted in float64 whatever the dtype of the sequences
        basis = torch.randn(batch_size, n, n, generator=generator, dtype=torch.float64)
        uniform = torch.rand(batch_size, n, generator=generator, dtype=torch.float64)
        eigenvalues = self.low + (self.high - self.low) * uniform
        eigenvalues[:, -1] = self.high
        order = torch.rand(batch_size, n, generator=generator, dtype=torch.float64).argsort(-1)
        eigenvalues = eigenvalues.gather(-1, order)
        return torch.linalg.solve(basis.mT, (basis * eigenvalues[:, None, :]).mT).mT.to(dtype)


@dataclass(frozen=True)
class ContractingGaussian:
    """A Gaussian W* whose eigenvalues have their moduli restricted to [low, high]: the wording of the paper (Fig. 11).

    Complex eigenvalues keep their angle.
    """

    low: float = 0.3
    high: float = 0.9

    def __post_init__(self) -> None:
        _require_band(self.low, self.high)

    def sample(
        self, batch_size: int, n: int, generator: torch.Generator, dtype: torch.dtype
    ) -> Float[Tensor, "batch n n"]:
        matrix = torch.randn(batch_size, n, n, generator=generator, dtype=torch.float64)
        eigenvalues, vectors = torch.linalg.eig(matrix)
        moduli = eigenvalues.abs()
        eigenvalues = eigenvalues * (moduli.clamp(self.low, self.high) / moduli)
        scaled = vectors * eigenvalues[:, None, :]
        return torch.linalg.solve(vectors.mT, scaled.mT).mT.real.to(dtype)


Transition = Orthogonal | FixedOrthogonal | ContractingReal | ContractingGaussian


def _require_band(low: float, high: float) -> None:
    require(low > 0, "low", low, "greater than 0")
    require(low <= high <= 1, "high", high, f"between low ({low}) and 1")
