"""Iterative mesa attention converges to the exact one, at the rate that is promised."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mesascope.errors import InputError
from mesascope.ops import mesa_attention
from mesascope.ops.mesa.approximate import (
    mesa_attention_chebyshev,
    mesa_attention_conjugate_gradients,
    mesa_attention_neumann,
)

from .mesa_cases import REGULARIZERS, Case, draw, relative

SHAPE = (2, 20, 2, 3, 2)
METHODS: dict[str, Callable[..., Tensor]] = {
    "neumann": lambda *operands, steps, **gates: mesa_attention_neumann(*operands, steps=steps, **gates),
    "chebyshev": lambda *operands, steps, **gates: mesa_attention_chebyshev(*operands, steps=steps, **gates),
    "conjugate gradients": lambda *operands, steps, **gates: (
        mesa_attention_conjugate_gradients(*operands, tolerance=1e-14, max_steps=steps, **gates).output
    ),
}


@pytest.mark.parametrize("gates", ["plain", "forget and write"])
@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_converges(method: str, regularizer: str, gates: str) -> None:
    operands = draw(Case(SHAPE, regularizer, gates, "diagonal"))
    options = {name: value for name, value in operands.options().items() if name != "state"}
    inputs = (operands.q, operands.k, operands.v, operands.ridge)
    exact = mesa_attention(*inputs, **options, backend="reference")
    assert relative(METHODS[method](*inputs, steps=3000, **options), exact) <= 1e-6


def test_neumann_is_the_series_of_the_scaled_matrix() -> None:
    """One token with key k: (1/c) sum_j (I - H/c)^j q with H = ridge I + k k^T and c = ridge + ||k||^2."""
    q, k, v = (torch.randn(1, 1, 1, 3, generator=torch.Generator().manual_seed(s)).double() for s in range(3))
    hessian = 0.5 * np.eye(3) + np.outer(k, k)
    scale = 0.5 + float(k.square().sum())
    solved = np.zeros(3)
    for power in range(6):
        solved += np.linalg.matrix_power(np.eye(3) - hessian / scale, power) @ q.numpy().ravel() / scale
    found = mesa_attention_neumann(q, k, v, torch.tensor([0.5]).double(), steps=5)
    np.testing.assert_allclose(found.numpy().ravel(), v.numpy().ravel() * (k.numpy().ravel() @ solved), rtol=1e-12)


def test_chebyshev_keeps_its_promise() -> None:
    operands = draw(Case((1, 30, 1, 4, 4)))
    exact = mesa_attention(operands.q, operands.k, operands.v, operands.ridge)
    energy = operands.k.square().sum((-1, -2)).cumsum(1)
    kappa = ((energy + operands.ridge) / operands.ridge).max()
    for steps in (5, 10, 20, 40):
        found = mesa_attention_chebyshev(operands.q, operands.k, operands.v, operands.ridge, steps=steps)
        rate = (kappa.sqrt() - 1) / (kappa.sqrt() + 1)
        # the promise is for queries; the output can be larger by the norm of G_t
        assert relative(found, exact) <= 20 * float(2 * rate**steps)
    assert relative(found, exact) < 0.05


def test_conjugate_gradients_count_their_steps_and_stop_by_the_residual() -> None:
    operands = draw(Case((2, 30, 2, 5, 5)))
    inputs = (operands.q, operands.k, operands.v, operands.ridge)
    exact = mesa_attention(*inputs)
    previous = torch.zeros(2, 30, 2, dtype=torch.int64)
    for tolerance in (1e-1, 1e-3, 1e-12):
        result = mesa_attention_conjugate_gradients(*inputs, tolerance=tolerance)
        assert result.iterations.shape == (2, 30, 2)
        assert bool((result.iterations >= previous).all())
        assert relative(result.output, exact) <= 50 * tolerance
        previous = result.iterations
    assert int(previous.max()) <= 6  # five coordinates: exact after five steps but for rounding
    # H_1 has two different eigenvalues
    assert bool((previous[:, 0] <= 2).all())
    few = mesa_attention_conjugate_gradients(*inputs, tolerance=0.0, max_steps=2)
    assert int(few.iterations.max()) == 2
    zero = mesa_attention_conjugate_gradients(torch.zeros_like(operands.q), *inputs[1:])
    assert not zero.iterations.any()
    assert not zero.output.any()


@pytest.mark.parametrize("method", METHODS)
def test_gradients_approach_the_exact_ones(method: str) -> None:
    operands = draw(Case((1, 6, 1, 2, 2), "constant", "forget and write")).with_gradients()
    inputs = list(operands.tensors().values())
    options = {name: value for name, value in operands.options().items() if name != "state"}
    attend = (METHODS[method], mesa_attention)
    found, exact = (
        torch.autograd.grad(
            operands.loss({"o": function(operands.q, operands.k, operands.v, operands.ridge, **options, **extra)}),
            inputs,
        )
        for function, extra in zip(attend, ({"steps": 300}, {}), strict=True)
    )
    for gradient, truth in zip(found, exact, strict=True):
        assert relative(gradient, truth) <= 1e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(0, 5, 2, 3, 4), (2, 0, 2, 3, 4)], ids=str)
def test_empty_and_half_precision(method: str, shape: tuple[int, ...]) -> None:
    operands = draw(Case(shape)).to(torch.bfloat16)
    output = METHODS[method](operands.q, operands.k, operands.v, operands.ridge, steps=3)
    assert output.shape == operands.v.shape
    assert output.dtype == torch.bfloat16
    assert (
        mesa_attention_conjugate_gradients(operands.q, operands.k, operands.v, operands.ridge).iterations.shape
        == shape[:3]
    )


def test_bad_settings() -> None:
    operands = draw(Case((1, 3, 1, 2, 2)))
    inputs = (operands.q, operands.k, operands.v, operands.ridge)
    with pytest.raises(InputError, match="steps: got -1, but it must be at least 0"):
        mesa_attention_neumann(*inputs, steps=-1)
    with pytest.raises(InputError, match="steps: got 0, but it must be at least 1"):
        mesa_attention_chebyshev(*inputs, steps=0)
    with pytest.raises(InputError, match="max_steps: got 0, but it must be at least 1"):
        mesa_attention_conjugate_gradients(*inputs, max_steps=0)
    with pytest.raises(InputError, match=r"tolerance: got -1\.0, but it must be at least 0"):
        mesa_attention_conjugate_gradients(*inputs, tolerance=-1.0)
