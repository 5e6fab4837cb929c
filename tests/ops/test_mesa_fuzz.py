"""Every backend on operands anywhere in memory and of extreme values: as exact as their condition allows, or refused.

Ridges from 1e-6 to 1e6, keys a thousand times larger or smaller, zero or repeated, forgetting until nothing is left,
strengths that are zero; values and every gradient, in float64 and float32.
"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mesascope.errors import InputError

from .fuzz_cases import Fuzz, fuzzes
from .mesa_cases import FAST, Operands

NOTHING = 1e-12
"""Results are compared with what they are or with this, if they are smaller: forgetting makes them underflow."""

LARGEST_GAIN = {torch.float32: 32.0, torch.float64: 1e5}
"""The |k|^2 write / ridge of one token that errors of gradients may be proportional to, at most."""


def condition(operands: Operands) -> float:
    """An upper bound of the condition numbers of H_t."""
    squares = operands.k.square().sum(-1)
    if operands.write is not None:
        squares = squares * operands.write
    largest, smallest = operands.ridge.amax(), operands.ridge.amin()
    if operands.matrix is not None:
        eigenvalues = torch.linalg.eigvalsh(operands.matrix)
        if operands.regularizer == "constant":
            largest = largest + eigenvalues.max()
        else:
            largest, smallest = 1 / eigenvalues.min(), 1 / eigenvalues.max()
    if operands.log_forget is not None and operands.regularizer == "initial":
        smallest = smallest * operands.log_forget.sum(1).min().exp()
    return float((largest + squares.sum(1).max()) / smallest)


def differentiate(fuzz: Fuzz, drawn: Operands, backend: str) -> dict[str, Tensor]:
    """Results, and gradients of what was drawn, for operands laid out in memory as `fuzz` says."""
    leaves = drawn.with_gradients()
    results = fuzz.lay_out(leaves).run(backend)
    inputs = {name: tensor for name, tensor in leaves.tensors().items() if not leaves.unused(name)}
    gradients = torch.autograd.grad(leaves.loss(results), list(inputs.values()), materialize_grads=True)
    named = {f"gradient of {name}": value for name, value in zip(inputs, gradients, strict=True)}
    return {name: result.detach() for name, result in results.items()} | named


def sizes(exact: dict[str, Tensor], drawn: Operands) -> dict[str, float]:
    """What errors are relative to: for a gradient, at least what the loss would change by with the operand itself.

    Terms of a gradient may cancel, which no algorithm can prevent.
    """
    loss = sum(float(exact[name].norm()) * exact[name].numel() ** 0.5 for name in ("output", "matrix", "association"))
    result = {name: max(float(value.norm()), NOTHING) for name, value in exact.items()}
    for name, tensor in drawn.tensors().items():
        own = tensor.numel() ** 0.5 if name == "log_forget" else float(tensor.norm())
        if own > 0 and (gradient := f"gradient of {name}") in result:
            result[gradient] = max(result[gradient], loss / own)
    return result


def check(found: dict[str, Tensor], exact: dict[str, Tensor], sizes: dict[str, float], bound: float) -> None:
    """Raise an error unless everything is as exact as it can be, the output to 2 %.

    The first keys of a sequence, where each shrinks the inverse by its gain, lose more digits of a gradient.
    """
    for name, result in found.items():
        gain = min(bound, LARGEST_GAIN[result.dtype]) if name.startswith("gradient") else 0.0
        allowed = torch.finfo(result.dtype).eps * (100 + (30 + gain) * bound)
        error = float((result.double() - exact[name]).norm()) / sizes[name]
        limit = min(allowed, 2e-2) if name == "output" else allowed
        assert error <= limit, f"{name}: error {error:.1e}, {limit:.1e} is allowed"


@settings(max_examples=100)
@given(fuzzes)
def test_every_backend_is_right_or_says_that_it_is_not(fuzz: Fuzz) -> None:
    drawn = fuzz.operands()
    bound = condition(fuzz.lay_out(drawn))
    try:
        exact = differentiate(fuzz, drawn, "reference")
    except InputError:
        exact = None
    for dtype, backend in itertools.product((torch.float64, torch.float32), FAST):
        rounding = torch.finfo(dtype).eps
        try:
            found = differentiate(fuzz, drawn.to(dtype), backend)
        except InputError as error:
            assert str(error).startswith(("ridge: ", "log_forget: ", "state"))  # noqa: PT017 (either is right)
            assert rounding * bound > 1e-4, f"{backend} in {dtype} refuses a condition of {bound:.1e}"
        else:
            assert all(bool(found[name].isfinite().all()) for name in ("output", "matrix", "association")), backend
            if exact is not None and rounding * bound < 1:  # else it is singular, and finite is all it can be
                check(found, exact, sizes(exact, drawn), bound)


def test_an_error_of_a_thousandth_is_found() -> None:
    """The allowed errors are small where the condition is."""
    fuzz = Fuzz((2, 9, 2, 3, 2), "constant", "forget and write", True, 0.5, "random", "mild", ("contiguous",), 0)
    drawn = fuzz.operands()
    exact = differentiate(fuzz, drawn, "reference")
    assert condition(drawn) < 200
    for name, result in exact.items():
        with pytest.raises(AssertionError, match=f"{name}: error"):
            check({name: 1.001 * result}, exact, sizes(exact, drawn), condition(drawn))
