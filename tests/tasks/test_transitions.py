"""Laws of the transition matrices. Thresholds are 5 standard errors of the stated statistic."""

import math

import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.tasks import ContractingGaussian, ContractingReal, FixedOrthogonal, Orthogonal, haar_orthogonal

MANY = 4000


def test_haar_matrices_are_orthogonal(generator: torch.Generator) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        w = haar_orthogonal(50, 10, generator, dtype)
        assert w.dtype == dtype
        torch.testing.assert_close(w @ w.mT, torch.eye(10, dtype=dtype).expand_as(w), rtol=0, atol=tolerance)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_haar_moments(n: int, generator: torch.Generator) -> None:
    """E[W_ij] = 0, E[W_ij^2] = 1/n, E[tr W] = 0, E[(tr W)^2] = 1, E[tr W^2] = 1, half of all determinants are -1."""
    w = haar_orthogonal(MANY, n, generator, torch.float64)
    trace, squared_trace = w.diagonal(dim1=1, dim2=2).sum(-1), (w @ w).diagonal(dim1=1, dim2=2).sum(-1)
    # var(W_ij) = 1/n, and both traces have variances of order one (E[(tr W)^4] = 3 at most)
    assert float(w.mean(0).abs().max()) < 5 / math.sqrt(n * MANY)
    assert float((w.square().mean(0) - 1 / n).abs().max()) < 5 * math.sqrt(2) / n / math.sqrt(MANY)
    assert abs(float(trace.mean())) < 5 / math.sqrt(MANY)
    assert abs(float(trace.square().mean()) - 1) < 5 * math.sqrt(2) / math.sqrt(MANY)
    assert abs(float(squared_trace.mean()) - 1) < 5 * math.sqrt(2) / math.sqrt(MANY)
    negative = float((torch.linalg.det(w) < 0).double().mean())
    assert abs(negative - 0.5) < 5 * 0.5 / math.sqrt(MANY)


def test_haar_law_does_not_change_under_rotation(generator: torch.Generator) -> None:
    """The distribution of any linear functional of W is that of a coordinate of a uniform unit vector."""
    n, w = 4, haar_orthogonal(MANY, 4, generator, torch.float64)
    a, b = (torch.nn.functional.normalize(torch.randn(n, generator=generator).double(), dim=0) for _ in range(2))
    functional = torch.einsum("i,bij,j->b", a, w, b)
    # moments of one coordinate of a unit vector in R^n: E x^2 = 1/n, E x^4 = 3 / (n (n + 2))
    for power, moment in ((1, 0.0), (2, 1 / n), (3, 0.0), (4, 3 / (n * (n + 2)))):
        sample = functional**power
        assert abs(float(sample.mean()) - moment) < 5 * float(sample.std()) / math.sqrt(MANY)


def test_without_the_sign_correction_the_moments_fail(generator: torch.Generator) -> None:
    """The control: the plain Q of a QR decomposition is orthogonal but not Haar."""
    q = torch.linalg.qr(torch.randn(MANY, 3, 3, generator=generator, dtype=torch.float64))[0]
    assert abs(float(q.diagonal(dim1=1, dim2=2).sum(-1).mean())) > 5 / math.sqrt(MANY)


def test_every_sequence_has_its_own_matrix(generator: torch.Generator) -> None:
    w = Orthogonal().sample(3, 4, generator, torch.float64)
    assert not torch.allclose(w[0], w[1])
    assert not torch.allclose(w[1], w[2])


def test_fixed_orthogonal_is_one_matrix_for_every_call(generator: torch.Generator) -> None:
    teacher = FixedOrthogonal(7)
    first = teacher.sample(3, 5, generator, torch.float64)
    torch.randn(10, generator=generator)
    assert torch.equal(first, first[:1].expand(3, 5, 5))
    assert torch.equal(teacher.sample(2, 5, generator, torch.float64), first[:2])
    assert torch.equal(teacher.sample(2, 5, generator, torch.float32), first[:2].float())
    torch.testing.assert_close(first[0] @ first[0].T, torch.eye(5, dtype=torch.float64))
    assert not torch.allclose(FixedOrthogonal(8).sample(1, 5, generator, torch.float64)[0], first[0])


def test_fixed_orthogonal_takes_nothing_from_the_generator(generator: torch.Generator) -> None:
    before = generator.get_state()
    FixedOrthogonal().sample(2, 3, generator, torch.float32)
    assert torch.equal(generator.get_state(), before)


def test_contracting_real_spectrum(generator: torch.Generator) -> None:
    n, w = 6, ContractingReal(0.3, 0.9).sample(500, 6, generator, torch.float64)
    eigenvalues = np.linalg.eigvals(w.numpy())
    assert np.abs(eigenvalues.imag).max() < 1e-6
    ordered = np.sort(eigenvalues.real, axis=-1)
    assert ordered.min() > 0.3 - 1e-6
    np.testing.assert_allclose(ordered[:, -1], 0.9, atol=1e-6)
    others = ordered[:, :-1]
    # n - 1 of them are uniform: mean 0.6, variance 0.6^2 / 12
    error = 0.6 / math.sqrt(12 * others.size)
    assert abs(others.mean() - 0.6) < 5 * error
    assert abs(others.var() - 0.03) < 5 * 0.03 / math.sqrt(others.size)
    assert others.size == 500 * (n - 1)


def test_contracting_real_is_accurate_in_float32(generator: torch.Generator) -> None:
    """W* is formed in float64, so a badly conditioned basis costs no accuracy."""
    state = generator.get_state()
    single = ContractingReal().sample(300, 10, generator, torch.float32)
    generator.set_state(state)
    double = ContractingReal().sample(300, 10, generator, torch.float64)
    assert torch.equal(single, double.float())


def test_contracting_gaussian_moduli(generator: torch.Generator) -> None:
    w = ContractingGaussian(0.3, 0.9).sample(300, 5, generator, torch.float64)
    eigenvalues = np.linalg.eigvals(w.numpy())
    moduli = np.abs(eigenvalues)
    assert moduli.min() > 0.3 - 1e-9
    assert moduli.max() < 0.9 + 1e-9
    assert (np.abs(eigenvalues.imag) > 1e-3).mean() > 0.2, "complex eigenvalues keep their angle"


def test_contracting_gaussian_keeps_eigenvalues_inside_the_band() -> None:
    """With the band [0.001, 1] only moduli above 1 change, and they become 1."""
    state = torch.Generator().manual_seed(3)
    w = ContractingGaussian(1e-3, 1.0).sample(20, 3, state, torch.float64)
    gaussian = torch.randn(20, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for restricted, free in zip(w.numpy(), gaussian.numpy(), strict=True):
        eigenvalues = np.linalg.eigvals(free)
        expected = eigenvalues / np.maximum(np.abs(eigenvalues), 1.0)
        actual = np.linalg.eigvals(restricted)
        distance = np.abs(actual[:, None] - expected[None, :])
        assert distance.min(0).max() < 1e-9


@pytest.mark.parametrize("transition", [ContractingReal, ContractingGaussian])
def test_the_band_must_make_sense(transition: type[ContractingReal] | type[ContractingGaussian]) -> None:
    with pytest.raises(InputError, match=r"low: got 0, but it must be greater than 0"):
        transition(low=0)
    with pytest.raises(InputError, match=r"high: got 0.2, but it must be between low \(0.3\) and 1"):
        transition(high=0.2)
    with pytest.raises(InputError, match=r"high: got 1.1"):
        transition(high=1.1)
