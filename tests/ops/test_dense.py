"""Linear maps and the MLP of single tokens: values, gradients and who computes them."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor

from called_kernels import CalledKernels
from mesascope.errors import InputError
from mesascope.ops import dense
from mesascope.ops.dense import (
    gelu_mlp,
    gelu_mlp_product,
    layer_norm,
    layer_norm_in_torch,
    linear_maps,
    linear_maps_product,
)
from mesascope.ops.kernels import native_kernels
from oracles.dynamics import gelu

from .dense_cases import as_tuple, both_passes
from .mesa_cases import relative

ROUNDING = 1e-6
"""Relative error of a result in float32: of sums of some hundred products, or of a product for every row."""

needs_kernels = pytest.mark.skipif(native_kernels() is None, reason="this run is without compiled kernels")

# tokens, width, hidden: no multiple of a register, several blocks of rows, several groups of them, one row
MLPS = [((2, 3), 5, 7), ((4, 50), 40, 160), ((1100,), 16, 33), ((1,), 1, 1), ((3, 7, 11), 24, 64)]
MAPS = [
    ((2, 3), 5, (7,)),
    ((4, 50), 40, (80, 80, 80)),
    ((1100,), 16, (33, 10)),
    ((1,), 1, (1, 2, 3)),
    ((9, 9), 10, (40,)),
]


@pytest.fixture(autouse=True)
def _few_tokens_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels compute all of these small problems, which are otherwise left to torch."""
    monkeypatch.setattr(dense, "_FEWEST_TOKENS", 1)
    monkeypatch.setattr(dense, "_TOKENS_PER_COLUMN", 0)


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def mlp_operands(tokens: tuple[int, ...], width: int, hidden: int) -> list[Tensor]:
    return drawn((*tokens, width), (hidden, width), (width, hidden))


def map_operands(tokens: tuple[int, ...], width: int, outputs: tuple[int, ...]) -> list[Tensor]:
    return drawn((*tokens, width), *((size, width) for size in outputs))


@pytest.mark.parametrize(("tokens", "width", "hidden"), MLPS)
def test_mlp_in_float32_is_that_of_float64(tokens: tuple[int, ...], width: int, hidden: int) -> None:
    operands = mlp_operands(tokens, width, hidden)
    exact = both_passes(gelu_mlp, operands)
    x, W_1, W_2 = (operand.numpy() for operand in operands)
    np.testing.assert_allclose(exact[0].detach().numpy(), gelu(x @ W_1.T) @ W_2.T, rtol=1e-10, atol=1e-10)
    for found, expected in zip(both_passes(gelu_mlp, [x.float() for x in operands]), exact, strict=True):
        assert found.dtype == torch.float32
        assert relative(found, expected) < ROUNDING


@pytest.mark.parametrize(("tokens", "width", "outputs"), MAPS)
def test_maps_in_float32_are_those_of_float64(tokens: tuple[int, ...], width: int, outputs: tuple[int, ...]) -> None:
    operands = map_operands(tokens, width, outputs)
    exact = both_passes(linear_maps, operands)
    for y, weight in zip(exact, operands[1:], strict=False):
        np.testing.assert_allclose(y.detach().numpy(), operands[0].numpy() @ weight.numpy().T, rtol=1e-10, atol=1e-10)
    for found, expected in zip(both_passes(linear_maps, [x.float() for x in operands]), exact, strict=True):
        assert found.dtype == torch.float32
        assert relative(found, expected) < ROUNDING


def norm_operands(tokens: tuple[int, ...], width: int) -> list[Tensor]:
    """Tokens that lie far from zero."""
    x, scale, shift = drawn((*tokens, width), (width,), (width,))
    return [3 + x, scale, shift]


norm = functools.partial(layer_norm, epsilon=1e-5)


@pytest.mark.parametrize(("tokens", "width"), [((2, 3), 5), ((4, 50), 40), ((1100,), 16), ((3, 7, 11), 27)])
def test_layer_norm_in_float32_is_that_of_float64(tokens: tuple[int, ...], width: int) -> None:
    operands = norm_operands(tokens, width)
    exact = both_passes(norm, operands)
    x, scale, shift = (operand.numpy() for operand in operands)
    normalised = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(exact[0].detach().numpy(), scale * normalised + shift, rtol=1e-10, atol=1e-10)
    for found, expected in zip(both_passes(norm, [x.float() for x in operands]), exact, strict=True):
        assert found.dtype == torch.float32
        assert relative(found, expected) < 3 * ROUNDING  # the numbers given are rounded before their mean is taken off


@needs_kernels
def test_gelu_of_the_kernels_is_accurate_far_from_zero_and_near_it() -> None:
    """The derivative too; far below zero, where torch's own has no digits left, the relative error stays as small."""
    h = torch.cat([torch.linspace(-6, 6, 4001), torch.tensor([-30.0, -1e-30, 0, 1e-30, 30])])
    one, x = torch.ones(1, 1), h[:, None].requires_grad_()
    y = gelu_mlp(x, one, one)
    (slope,) = torch.autograd.grad(y.sum(), x)
    h = h.detach().double()
    distribution = torch.erfc(-h / 2**0.5) / 2
    expected = h * distribution
    assert (y[:, 0] - expected).abs().max() < 4e-7
    assert (slope[:, 0] - distribution - h * torch.exp(-(h**2) / 2) / (2 * torch.pi) ** 0.5).abs().max() < 4e-7
    shown = (h.abs() <= 6) & (h != 0)
    assert (y[:, 0] / expected - 1)[shown].abs().max() < 3e-6


def test_numbers_that_are_not_finite_come_through() -> None:
    x = torch.tensor([[torch.nan, 1.0], [torch.inf, 0.0], [1.0, 2.0]])
    for function, weights in (
        (gelu_mlp, [torch.eye(2), torch.eye(2)]),
        (lambda *t: linear_maps(*t)[0], [torch.eye(2)]),
        (norm, [torch.ones(2), torch.zeros(2)]),
    ):
        y = function(x, *weights)
        assert y[0].isnan().all()
        assert not y[1].isfinite().all()
        assert y[2].isfinite().all()


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> CalledKernels:
    return CalledKernels(monkeypatch, dense)


# more weights than one thread sums gradients of at once
FUNCTIONS = [
    pytest.param(gelu_mlp, gelu_mlp_product, mlp_operands((4, 10), 6, 90), "mlp", id="mlp"),
    pytest.param(linear_maps, linear_maps_product, map_operands((4, 10), 6, (90, 6)), "maps", id="maps"),
    pytest.param(
        norm, functools.partial(layer_norm_in_torch, epsilon=1e-5), norm_operands((4, 10), 6), "norm", id="norm"
    ),
]


@needs_kernels
@pytest.mark.parametrize(("function", "in_torch", "operands", "name"), FUNCTIONS)
def test_kernels_compute_both_passes_in_float32_alone(
    function: Any, in_torch: Any, operands: list[Tensor], name: str, called: CalledKernels
) -> None:
    single = [x.float() for x in operands]
    both_passes(function, operands)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        function(*single)
    assert called.names == []
    both_passes(function, single)
    assert called.names == [f"{name}_forward", f"{name}_backward"]


@needs_kernels
def test_few_tokens_wide_rows_and_large_matrices_are_left_to_torch(
    called: CalledKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "_FEWEST_TOKENS", 5)
    linear_maps(torch.randn(2, 2, 3), torch.randn(4, 3))
    linear_maps(torch.randn(5, 257), torch.randn(256, 257))
    layer_norm(torch.randn(5, 64), torch.randn(64), torch.randn(64), 1e-5)
    monkeypatch.setattr(dense, "_TOKENS_PER_COLUMN", 2)
    linear_maps(torch.randn(5, 3), torch.randn(4, 3))
    assert called.names == []
    linear_maps(torch.randn(6, 3), torch.randn(4, 3))
    monkeypatch.setattr(dense, "_TOKENS_PER_COLUMN", 0)
    linear_maps(torch.randn(5, 256), torch.randn(256, 256))
    layer_norm(torch.randn(5, 63), torch.randn(63), torch.randn(63), 1e-5)
    assert called.names == ["maps_forward", "maps_forward", "norm_forward"]


@pytest.mark.parametrize(("function", "in_torch", "operands", "name"), FUNCTIONS)
def test_operands_may_lie_anywhere(function: Any, in_torch: Any, operands: list[Tensor], name: str) -> None:
    single = [x.float() for x in operands]
    expected = both_passes(in_torch, operands)
    for scattered in (
        [x.transpose(0, -1).contiguous().transpose(0, -1) for x in single],
        [torch.stack([x, x], dim=-1)[..., 0] for x in single],
        [torch.cat([x, x], dim=-1)[..., : x.shape[-1]] for x in single],
    ):
        inputs = [x.detach().requires_grad_() for x in scattered]
        results = as_tuple(function(*inputs))
        # gradients that are one number, expanded
        gradients = torch.autograd.grad(sum(y.sum() for y in results), inputs)
        for found, y in zip(results, expected, strict=False):
            assert relative(found, y) < ROUNDING
        by_torch = [x.detach().requires_grad_() for x in operands]
        total = sum(y.sum() for y in in_torch(*by_torch))
        for found, y in zip(gradients, torch.autograd.grad(total, by_torch), strict=True):
            assert relative(found, y) < ROUNDING


@pytest.mark.parametrize(("function", "in_torch", "operands", "name"), FUNCTIONS)
def test_only_what_needs_a_gradient_gets_one(function: Any, in_torch: Any, operands: list[Tensor], name: str) -> None:
    single = [x.float() for x in operands]
    single[1].requires_grad_()
    first, *_ = as_tuple(function(*single))
    (found,) = torch.autograd.grad(first.sum(), single[1:2])  # of two maps the other is not used
    by_torch = [x.detach().requires_grad_() for x in operands]
    (expected,) = torch.autograd.grad(in_torch(*by_torch)[0].sum(), by_torch[1:2])
    assert relative(found, expected) < ROUNDING
    assert not any(x.requires_grad for x in (single[0], *single[2:]))


@pytest.mark.parametrize(("function", "in_torch", "operands", "name"), FUNCTIONS)
def test_derivatives_of_derivatives_are_those_of_torch(
    function: Any, in_torch: Any, operands: list[Tensor], name: str
) -> None:
    def twice(compute: Any, inputs: list[Tensor]) -> list[Tensor]:
        inputs = [x.detach().requires_grad_() for x in inputs]
        total = sum(y.square().sum() for y in as_tuple(compute(*inputs)))
        first = torch.autograd.grad(total, inputs, create_graph=True)
        return list(torch.autograd.grad(sum(x.square().sum() for x in first), inputs))

    for found, expected in zip(twice(function, [x.float() for x in operands]), twice(in_torch, operands), strict=True):
        assert relative(found, expected) < 10 * ROUNDING


@pytest.mark.parametrize(("function", "in_torch", "operands", "name"), FUNCTIONS)
def test_layers_may_share_weights(function: Any, in_torch: Any, operands: list[Tensor], name: str) -> None:
    """Also where gradients are differentiated: the input of the second layer then depends on the weights."""
    x, *weights = operands
    weights[0] = torch.randn(9, 9, dtype=x.dtype) if name == "maps" else weights[0]

    def first(compute: Any, *inputs: Tensor) -> Tensor:
        return as_tuple(compute(*inputs))[0]

    def gradients(compute: Any, inputs: list[Tensor]) -> list[Tensor]:
        x, *weights = (operand.detach().clone().requires_grad_() for operand in inputs)
        shared = [weights[0], weights[0]] if name == "maps" else weights
        start = torch.nn.functional.pad(x, (0, 3)) if name == "maps" else x
        y = first(compute, first(compute, start, *shared), *shared)
        wanted = [x, weights[0]]
        results = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        return [*results, *torch.autograd.grad(sum(g.square().sum() for g in results), wanted)]

    expected = gradients(in_torch, [x, *weights])
    for found, theirs in zip(gradients(function, [x.float(), *(w.float() for w in weights)]), expected, strict=True):
        assert relative(found, theirs) < 10 * ROUNDING


@pytest.mark.parametrize(("function", "in_torch", "operands", "name"), FUNCTIONS)
def test_activations_may_be_computed_again(function: Any, in_torch: Any, operands: list[Tensor], name: str) -> None:
    single = [x.float() for x in operands]

    def checkpointed(*inputs: Tensor) -> Any:
        return torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=False)

    for found, expected in zip(both_passes(checkpointed, single), both_passes(function, single), strict=True):
        assert torch.equal(found, expected)


def test_maps_whose_result_is_not_used_have_no_gradient() -> None:
    x, used, unused = (operand.float().requires_grad_() for operand in map_operands((4, 10), 6, (9, 6)))
    with torch.no_grad():
        unused[0, 0] = torch.inf
    for create_graph in (False, True):
        y, _ = linear_maps(x, used, unused)
        dx, dused, dunused = torch.autograd.grad(
            y.sum(), (x, used, unused), create_graph=create_graph, allow_unused=True
        )
        assert dunused is None
        torch.testing.assert_close(dx, used.sum(0).expand_as(x))
        torch.testing.assert_close(dused, x.sum((0, 1)).expand_as(used))


def test_maps_may_be_frozen() -> None:
    x, trained, frozen = (operand.float() for operand in map_operands((4, 10), 6, (9, 6)))
    trained.requires_grad_()
    for create_graph in (False, True):
        y, z = linear_maps(x, trained, frozen)
        (found,) = torch.autograd.grad(y.sum() + z.sum(), trained, create_graph=create_graph)
        torch.testing.assert_close(found, x.sum((0, 1)).expand_as(trained))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own use of it
@pytest.mark.parametrize(("function", "in_torch", "operands", "name"), FUNCTIONS)
def test_transforms_see_through(function: Any, in_torch: Any, operands: list[Tensor], name: str) -> None:
    single = [x.float() for x in operands]

    def first(compute: Any) -> Callable[..., Tensor]:
        def value(*inputs: Tensor) -> Tensor:
            return as_tuple(compute(*inputs))[0]

        return value

    expected = first(in_torch)(*single)
    weights = (None,) * len(single[1:])
    torch.testing.assert_close(torch.vmap(first(function), in_dims=(0, *weights))(*single), expected)
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)) for x in single]
        tangents = [torch.autograd.forward_ad.unpack_dual(first(f)(*duals)).tangent for f in (function, in_torch)]
        torch.testing.assert_close(*tangents)
        # gradients that have a tangent
        inputs = [x.detach().requires_grad_() for x in single]
        slopes = []
        for f in (function, in_torch):
            y = first(f)(*inputs)
            g = torch.autograd.forward_ad.make_dual(torch.ones_like(y), 2 * torch.ones_like(y))
            (dx,) = torch.autograd.grad(y, inputs[:1], g)
            slopes.append(torch.autograd.forward_ad.unpack_dual(dx).tangent)
        torch.testing.assert_close(*slopes)
    # a batch of gradients at once, through the backward pass of the kernels
    inputs = [x.detach().requires_grad_() for x in single]
    y = first(function)(*inputs)
    batch = torch.eye(y.numel()).reshape(-1, *y.shape)[:3]
    found = torch.autograd.grad(y, inputs[:1], batch, is_grads_batched=True, retain_graph=True)[0]
    one_by_one = torch.stack([torch.autograd.grad(y, inputs[:1], g, retain_graph=True)[0] for g in batch])
    torch.testing.assert_close(found, one_by_one)


@pytest.mark.parametrize(("function", "in_torch", "operands", "name"), FUNCTIONS)
def test_no_tokens(function: Any, in_torch: Any, operands: list[Tensor], name: str) -> None:
    x, *weights = (x.float() for x in operands)
    results = both_passes(function, [x[:0], *weights])
    assert results[0].shape == (0, *in_torch(x, *weights)[0].shape[1:])
    assert all((gradient == 0).all() for gradient in results[-len(weights) :])


@needs_kernels
def test_kernels_of_no_rows_leave_gradients_of_zero() -> None:
    """Asked directly: nobody else asks them."""
    native, x, scale = native_kernels(), torch.empty(0, 20), torch.ones(20)
    assert native is not None
    W_1, W_2 = torch.randn(2, 80, 20).unbind()
    for gradients in (
        native.maps_backward(x, [W_1], [torch.empty(0, 80)], True, 2)[:1],
        native.mlp_backward(x, W_1, W_2.T.contiguous(), x, 2)[1:],
        native.norm_backward(x, scale, scale, x, 1e-5, 2)[1:],
    ):
        assert all((gradient == 0).all() for gradient in gradients)


def test_no_maps_and_no_columns() -> None:
    assert linear_maps(torch.empty(5, 0)) == ()
    assert linear_maps(torch.randn(5, 3)) == ()
    assert bool((linear_maps(torch.empty(5, 0), torch.empty(2, 0))[0] == 0).all())


@needs_kernels
@pytest.mark.parametrize(("function", "in_torch", "operands", "name"), FUNCTIONS)
def test_the_result_does_not_depend_on_the_number_of_threads(
    function: Any, in_torch: Any, operands: list[Tensor], name: str
) -> None:
    x, *weights = (x.float() for x in operands)
    inputs = [x.repeat(40, 1, 1), *weights]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(both_passes(function, inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("unchecked_shapes")
def test_shapes_that_do_not_fit_are_named() -> None:
    x, W_1, W_2 = torch.randn(2, 5), torch.randn(7, 5), torch.randn(5, 7)
    with pytest.raises(InputError, match=r"W_1: got \(7,\).* of shape \[hidden, width\]"):
        gelu_mlp(x, torch.randn(7), W_2)
    with pytest.raises(InputError, match=r"x: got \(2, 4\).* of shape \[..., 5\]"):
        gelu_mlp(torch.randn(2, 4), W_1, W_2)
    with pytest.raises(InputError, match=r"W_2: got \(7, 5\).* of shape \[5, 7\]"):
        gelu_mlp(x, W_1, W_1)
    with pytest.raises(InputError, match=r"weights\[1\]: got \(5, 7\).* of shape \[outputs, width\] for x \(2, 5\)"):
        linear_maps(x, W_1, W_2)
    one = torch.ones(5)
    with pytest.raises(InputError, match=r"shift: got \(4,\).* of shape \(5,\)"):
        norm(x, one, torch.ones(4))
    with pytest.raises(InputError, match=r"scale: got \(1, 5\).* of shape \(5,\)"):
        norm(x, one[None], one)
    with pytest.raises(InputError, match=r"x: got \(\).* of shape \[..., width\]"):
        norm(one[0], one, one)
