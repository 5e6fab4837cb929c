"""Every solver against a dense solve and, sharper, against its exact error on the ends of the spectrum."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mesascope.errors import InputError
from mesascope.learners import (
    chebyshev,
    conjugate_gradients,
    momentum_coefficients,
    momentum_richardson,
    neumann,
    richardson,
    richardson_step_size,
)

LOW, HIGH = 0.7, 12.0
KAPPA = HIGH / LOW


def system(d: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A symmetric matrix with known spectrum between LOW and HIGH, and its eigenvectors (columns, ascending)."""
    vectors, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))
    return torch.from_numpy(vectors * np.linspace(LOW, HIGH, d) @ vectors.T), torch.from_numpy(vectors)


def times(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x @ matrix


def signed_error(x: Tensor, vector: Tensor, eigenvalue: float) -> float:
    """(x* - x) / x* along an eigenvector that is the right-hand side."""
    return float(1 - eigenvalue * (x @ vector))


METHODS = {
    "neumann": lambda apply, b, steps: neumann(apply, b, steps, HIGH),
    "richardson": lambda apply, b, steps: richardson(apply, b, [richardson_step_size(LOW, HIGH)] * steps),
    "momentum": lambda apply, b, steps: momentum_richardson(
        apply, b, *([coefficient] * steps for coefficient in momentum_coefficients(LOW, HIGH))
    ),
    "chebyshev": lambda apply, b, steps: chebyshev(apply, b, steps, LOW, HIGH),
    "conjugate gradients": lambda apply, b, steps: conjugate_gradients(apply, b, steps),
}


@pytest.mark.parametrize("method", METHODS)
def test_converges_to_the_dense_solution(method: str) -> None:
    matrix, _ = system()
    b = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = METHODS[method](times(matrix), b, 700)
    expected = np.linalg.solve(matrix.numpy(), b.numpy()[..., None])[..., 0]
    np.testing.assert_allclose(x, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_zero_right_hand_side_gives_zero(method: str) -> None:
    matrix, _ = system()
    assert not METHODS[method](times(matrix), torch.zeros(2, 3, 8, dtype=torch.float64), 20).any()


@pytest.mark.parametrize("end", [0, -1])
@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_exact_error_at_the_ends_of_the_spectrum(steps: int, end: int) -> None:
    matrix, vectors = system()
    apply, b = times(matrix), vectors[:, end]
    value, sign = (LOW, 1.0) if end == 0 else (HIGH, -1.0)
    error = {name: signed_error(method(apply, b, steps), b, value) for name, method in METHODS.items()}
    # Richardson from zero: the error contracts by exactly (kappa - 1) / (kappa + 1), alternating at the upper end
    assert error["richardson"] == pytest.approx((sign * (KAPPA - 1) / (KAPPA + 1)) ** steps, rel=1e-10)
    # Neumann, degree K: (1 - lambda/c)^(K + 1)
    assert error["neumann"] == pytest.approx((1 - value / HIGH) ** (steps + 1), rel=1e-10, abs=1e-13)
    # Chebyshev: 1 / T_K(sigma), equal in size at both ends
    chebyshev_error = 1 / math.cosh(steps * math.acosh((HIGH + LOW) / (HIGH - LOW)))
    assert error["chebyshev"] == pytest.approx(sign**steps * chebyshev_error, rel=1e-10)
    # heavy ball: a double root +-rho of e_{k+1} = (1 - alpha lambda + beta) e_k - beta e_{k-1}, with e_0 = e_{-1} = 1
    rho = (math.sqrt(KAPPA) - 1) / (math.sqrt(KAPPA) + 1)
    heavy_ball = (1 + (1 - sign * rho) * steps) * (sign * rho) ** steps
    assert error["momentum"] == pytest.approx(heavy_ball, rel=1e-9)
    assert abs(error["conjugate gradients"]) < 1e-12


def test_chebyshev_is_optimal_and_each_method_faster_than_the_one_before() -> None:
    matrix, _ = system(d=40)
    b = torch.ones(40, dtype=torch.float64)
    solution = torch.linalg.solve(matrix, b)

    def energy(method: str) -> float:
        difference = METHODS[method](times(matrix), b, 12) - solution
        return float(difference @ matrix @ difference)

    energies = [energy(method) for method in ("neumann", "richardson", "momentum", "chebyshev", "conjugate gradients")]
    assert energies == sorted(energies, reverse=True)


def test_richardson_with_the_roots_of_the_chebyshev_polynomial_is_chebyshev() -> None:
    matrix, _ = system()
    b = torch.arange(1.0, 9.0, dtype=torch.float64)
    for steps in (1, 3, 6):
        nodes = [(HIGH + LOW) / 2 + (HIGH - LOW) / 2 * math.cos(math.pi * (j + 0.5) / steps) for j in range(steps)]
        expected = richardson(times(matrix), b, [1 / node for node in nodes])
        torch.testing.assert_close(chebyshev(times(matrix), b, steps, LOW, HIGH), expected, rtol=1e-11, atol=1e-13)


def test_richardson_takes_its_step_sizes_in_order_and_all_of_them() -> None:
    matrix, _ = system()
    b = torch.arange(1.0, 9.0, dtype=torch.float64)
    x = torch.zeros_like(b)
    for alpha in (0.1, 0.03, -0.02):
        x = x + alpha * (b - matrix @ x)
    torch.testing.assert_close(richardson(times(matrix), b, (0.1, 0.03, -0.02)), x, rtol=1e-13, atol=1e-13)


def test_momentum_with_coefficients_of_every_step() -> None:
    matrix, _ = system()
    b = torch.arange(1.0, 9.0, dtype=torch.float64)
    alphas, betas = (0.1, 0.03, -0.02, 0.05), (9.0, 0.3, -0.4, 0.2)
    old, x = torch.zeros_like(b), torch.zeros_like(b)
    for alpha, beta in zip(alphas, betas, strict=True):
        old, x = x, x + alpha * (b - matrix @ x) + beta * (x - old)
    torch.testing.assert_close(momentum_richardson(times(matrix), b, alphas, betas), x, rtol=1e-13, atol=1e-13)


def test_neumann_diverges_unscaled_and_is_the_series_when_scaled() -> None:
    matrix, _ = system()
    b = torch.arange(1.0, 9.0, dtype=torch.float64)
    assert neumann(times(matrix), b, 20).norm() > 1e15
    step = torch.eye(8, dtype=torch.float64) - matrix / 15
    series = sum(torch.linalg.matrix_power(step, power) for power in range(7)) / 15
    torch.testing.assert_close(neumann(times(matrix), b, 6, 15.0), series @ b, rtol=1e-12, atol=1e-12)


def test_bounds_may_differ_between_systems() -> None:
    scales = torch.tensor([[1.0], [50.0]], dtype=torch.float64)
    matrix, vectors = system()
    b = vectors[:, 0].expand(2, 8)
    x = chebyshev(lambda x: scales * (x @ matrix), b, 4, scales * LOW, scales * HIGH)
    expected = chebyshev(times(matrix), b[0], 4, LOW, HIGH)
    torch.testing.assert_close(x * scales, expected.expand(2, 8), rtol=1e-12, atol=1e-13)


def test_chebyshev_on_a_spectrum_of_one_point() -> None:
    b = torch.arange(1.0, 9.0, dtype=torch.float64)
    for steps in (1, 4):
        torch.testing.assert_close(chebyshev(lambda x: 3 * x, b, steps, 3.0, 3.0), b / 3, rtol=1e-14, atol=0)


def test_conjugate_gradients_minimise_the_energy_over_the_krylov_space() -> None:
    matrix, _ = system()
    a, b = matrix.numpy(), np.arange(1.0, 9.0)
    for steps in range(1, 9):
        krylov, _ = np.linalg.qr(np.stack([np.linalg.matrix_power(a / HIGH, j) @ b for j in range(steps)], axis=1))
        expected = krylov @ np.linalg.solve(krylov.T @ a @ krylov, krylov.T @ b)
        x = conjugate_gradients(times(matrix), torch.from_numpy(b), steps)
        np.testing.assert_allclose(x, expected, rtol=1e-8, atol=1e-9)


def test_conjugate_gradients_are_exact_after_as_many_steps_as_eigenvalues() -> None:
    vectors, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))
    matrix = torch.from_numpy(vectors * np.array([1, 1, 1, 4, 4, 9, 9, 9.0]) @ vectors.T)
    b = torch.arange(1.0, 9.0, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, b)
    assert (conjugate_gradients(times(matrix), b, 2) - expected).norm() > 1e-2 * expected.norm()
    torch.testing.assert_close(conjugate_gradients(times(matrix), b, 3), expected, rtol=1e-12, atol=1e-13)


def test_conjugate_gradients_stop_each_system_by_itself_without_nan() -> None:
    matrix, vectors = system()
    generic = torch.arange(1.0, 9.0, dtype=torch.float64)
    b = torch.stack([torch.zeros(8, dtype=torch.float64), vectors[:, 2], generic, 1e-180 * generic])
    x = conjugate_gradients(times(matrix), b, 200)
    assert bool(x.isfinite().all())
    torch.testing.assert_close(x[:3], torch.linalg.solve(matrix, b[:3].T).T, rtol=1e-12, atol=1e-13)
    tolerant = conjugate_gradients(times(matrix), b[:3], 200, tolerance=0.05)
    residual = (b[:3] - tolerant @ matrix).norm(dim=-1)
    assert bool((residual <= 0.05 * b[:3].norm(dim=-1)).all())
    assert residual[2] > 1e-6


def test_conjugate_gradients_of_a_zero_matrix_stay_at_zero() -> None:
    x = conjugate_gradients(torch.zeros_like, torch.ones(2, 3, dtype=torch.float64), 5)
    assert not x.any()


def test_messages_name_the_argument() -> None:
    b = torch.ones(2, dtype=torch.float64)
    with pytest.raises(InputError, match="degree: got -1"):
        neumann(torch.clone, b, -1)
    with pytest.raises(InputError, match=r"step_sizes: got .*at least one"):
        richardson(torch.clone, b, [])
    with pytest.raises(InputError, match="momenta: got 1, but it must be as many as step_sizes"):
        momentum_richardson(torch.clone, b, [1.0, 1.0], [0.0])
    with pytest.raises(InputError, match=r"low: got 0.0, but it must be greater than 0"):
        chebyshev(torch.clone, b, 2, 0.0, 1.0)
    with pytest.raises(InputError, match=r"high: got -1.0"):
        chebyshev(torch.clone, b, 2, 2.0, 1.0)
    with pytest.raises(InputError, match="steps: got 0"):
        conjugate_gradients(torch.clone, b, 0)
    with pytest.raises(InputError, match=r"tolerance: got -0.1"):
        conjugate_gradients(torch.clone, b, 1, -0.1)
