"""What a Transformer computes for each token alone: linear maps, the MLP W_2 gelu(W_1 x), and LayerNorm.

Once attention is fast, these are most of a training step, and their matrices are so small that torch spends much of it
around the multiplications. In float32 on a CPU native kernels compute them, with the rounding errors of float32; where
torch.compile, torch.func, autocast or a dispatch mode looks on, tokens are few or rows wide, torch does. Derivatives of
derivatives are torch's.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require
from mesascope.ops.kernels import kernels, unobserved

_FEWEST_TOKENS, _TOKENS_PER_COLUMN, _LARGEST_MATRIX, _WIDEST_NORM = 2048, 48, 2**16, 63
"""The native kernels compute so many tokens and more, at least so many for each number of a row, with matrices of up to
so many weights, and LayerNorm of rows up to so wide: none where `mesascope bench dense` has found torch faster on an
AMD processor with AVX-512."""

_MOST_MAPS = 3
"""For so many maps of the same rows there is a kernel."""


def linear_maps(x: Float[Tensor, "*tokens width"], *weights: Float[Tensor, "_ width"]) -> tuple[Tensor, ...]:
    """W x for each of several W, `[..., width] -> [..., outputs]`; one pass over x is enough for up to three.

    Raises:
        InputError: the shapes do not fit.
    """
    for index, weight in enumerate(weights):
        if weight.dim() != 2 or x.dim() == 0 or weight.shape[1] != x.shape[-1]:
            require(
                False, f"weights[{index}]", tuple(weight.shape), f"of shape [outputs, width] for x {tuple(x.shape)}"
            )
    if len(weights) <= _MOST_MAPS and uses_kernel(x, *weights):
        native: tuple[Tensor, ...] = NativeMaps.apply(x, *weights)  # type: ignore[no-untyped-call]
        return native
    return linear_maps_product(x, *weights)


def linear_maps_product(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """The same in torch, on any device."""
    return tuple(torch.nn.functional.linear(x, weight) for weight in weights)


def gelu_mlp(
    x: Float[Tensor, "*tokens width"], W_1: Float[Tensor, "hidden width"], W_2: Float[Tensor, "width hidden"]
) -> Float[Tensor, "*tokens width"]:
    """W_2 gelu(W_1 x), `[..., width] -> [..., width]`, where gelu(h) is h times the normal distribution function of h.

    The native kernel keeps only x for the backward pass and computes the hidden layer again.

    Raises:
        InputError: the shapes do not fit.
    """
    if W_1.dim() != 2 or x.dim() == 0 or x.shape[-1] != W_1.shape[1] or W_2.shape != W_1.shape[::-1]:
        _explain(x, W_1, W_2)
    if uses_kernel(x, W_1, W_2):
        native: Tensor = NativeMLP.apply(x, W_1, W_2)  # type: ignore[no-untyped-call]
        return native
    return gelu_mlp_product(x, W_1, W_2)[0]


def gelu_mlp_product(x: Tensor, W_1: Tensor, W_2: Tensor) -> tuple[Tensor, ...]:
    """The same in torch, on any device; its result as a tuple of one."""
    hidden = torch.nn.functional.gelu(torch.nn.functional.linear(x, W_1))
    return (torch.nn.functional.linear(hidden, W_2),)


def layer_norm(
    x: Float[Tensor, "*tokens width"], scale: Float[Tensor, " width"], shift: Float[Tensor, " width"], epsilon: float
) -> Float[Tensor, "*tokens width"]:
    """scale (x - mean) / sqrt(variance + epsilon) + shift, mean and variance being those of each token.

    Raises:
        InputError: the shapes do not fit.
    """
    if x.dim() == 0 or scale.shape != x.shape[-1:] or shift.shape != x.shape[-1:]:
        require(x.dim() > 0, "x", tuple(x.shape), "of shape [..., width]")
        for name, weight in (("scale", scale), ("shift", shift)):
            require(weight.shape == x.shape[-1:], name, tuple(weight.shape), f"of shape {tuple(x.shape[-1:])}")
    if norm_uses_kernel(x, scale, shift):
        native: Tensor = NativeNorm.apply(x, scale, shift, epsilon)  # type: ignore[no-untyped-call]
        return native
    return layer_norm_in_torch(x, scale, shift, epsilon)[0]


def layer_norm_in_torch(x: Tensor, scale: Tensor, shift: Tensor, epsilon: float) -> tuple[Tensor, ...]:
    """The same in torch, on any device; its result as a tuple of one."""
    return (torch.nn.functional.layer_norm(x, scale.shape, scale, shift, epsilon),)


def _explain(x: Tensor, W_1: Tensor, W_2: Tensor) -> None:
    """Raise the error of an MLP whose shapes do not fit; not on the way of others, which words would hold up."""
    require(W_1.dim() == 2, "W_1", tuple(W_1.shape), "of shape [hidden, width]")
    hidden, width = W_1.shape
    require(x.dim() > 0 and x.shape[-1] == width, "x", tuple(x.shape), f"of shape [..., {width}]")
    require(False, "W_2", tuple(W_2.shape), f"of shape [{width}, {hidden}]")


def uses_kernel(x: Tensor, *weights: Tensor) -> bool:
    """Whether maps or an MLP of these rows are left to the native kernels."""
    return (
        unobserved(x, *weights)
        and x.numel() >= max(1, x.shape[-1] * max(_FEWEST_TOKENS, _TOKENS_PER_COLUMN * x.shape[-1]))
        and x.dtype == torch.float32
        and all(0 < weight.numel() <= _LARGEST_MATRIX for weight in weights)
        and not torch.is_autocast_enabled("cpu")
    )


def norm_uses_kernel(x: Tensor, scale: Tensor, shift: Tensor) -> bool:
    """Whether LayerNorm of these rows is left to the native kernels."""
    return uses_kernel(x, scale, shift) and x.shape[-1] <= _WIDEST_NORM


class NativeMaps(torch.autograd.Function):
    """`linear_maps` of up to three matrices by the kernel, for float32 operands that it can read."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        ctx.set_materialize_grads(False)  # a map that is not used has no gradient, not one of zeros
        return tuple(kernels().maps_forward(x.contiguous(), _rows(weights), torch.get_num_threads()))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        used = [index for index, g in enumerate(gradients) if g is not None]
        pulled = [g for g in gradients if g is not None]
        if torch.is_grad_enabled() or not unobserved(*pulled):
            return _differentiate(linear_maps_product, (x, *weights), gradients, ctx.needs_input_grad)
        maps, pulled = _rows([weights[index] for index in used]), [g.contiguous() for g in pulled]
        run, needs_dx, threads = kernels().maps_backward, ctx.needs_input_grad[0], torch.get_num_threads()
        *dweights, dx = run(x.contiguous(), maps, pulled, needs_dx, threads)
        of_maps = dict(zip(used, dweights, strict=True))
        return dx, *(of_maps.get(index) for index in range(len(weights)))


def _rows(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Matrices whose rows lie anywhere, each in one piece."""
    return [matrix if matrix.stride(1) == 1 else matrix.contiguous() for matrix in matrices]


class NativeMLP(torch.autograd.Function):
    """`gelu_mlp` by the kernel, for float32 operands that it can read."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_1: Tensor, W_2: Tensor) -> Tensor:
        ctx.save_for_backward(x, W_1, W_2)
        y: Tensor = kernels().mlp_forward(x.contiguous(), W_1.contiguous(), W_2.contiguous(), torch.get_num_threads())
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled() or not unobserved(*gradients):
            return _differentiate(gelu_mlp_product, inputs, gradients, ctx.needs_input_grad)
        operands = [operand.contiguous() for operand in (*inputs, *gradients)]
        found: tuple[Tensor, ...] = kernels().mlp_backward(*operands, torch.get_num_threads())
        return found


class NativeNorm(torch.autograd.Function):
    """`layer_norm` by the kernel, for float32 operands that it can read."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(x, scale, shift)
        ctx.epsilon = epsilon
        operands = [operand.contiguous() for operand in (x, scale, shift)]
        y: Tensor = kernels().norm_forward(*operands, epsilon, torch.get_num_threads())
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, epsilon = ctx.saved_tensors, ctx.epsilon
        if torch.is_grad_enabled() or not unobserved(*gradients):
            in_torch = functools.partial(layer_norm_in_torch, epsilon=epsilon)
            return *_differentiate(in_torch, inputs, gradients, ctx.needs_input_grad[:3]), None
        operands = [operand.contiguous() for operand in (*inputs, *gradients)]
        return *kernels().norm_backward(*operands, epsilon, torch.get_num_threads()), None


def _differentiate(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """By torch, for a derivative of the gradient and for gradients that are not in memory."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [operand.view_as(operand) for operand in inputs]  # of which none has been computed from another
        outputs = function(*aliases)
    pairs = [(y, g) for y, g in zip(outputs, gradients, strict=True) if g is not None and y.requires_grad]
    wanted = [alias for alias, need in zip(aliases, needed, strict=True) if need]
    outputs, pulled = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, pulled, create_graph=create_graph, allow_unused=True))
    return tuple(next(found) if need else None for need in needed)
