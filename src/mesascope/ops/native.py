"""Linear and softmax attention by the native kernels, as operators that torch knows, and without them.

Under torch.compile each operator is one opaque call. They are differentiable once; vmap maps them over a further batch
dimension, and autocast computes them in float32. Where nobody looks at operators the kernels are called directly: for
after other work, which leaves the caches full of its data, the way through an operator takes a tenth of a millisecond.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mesascope.ops.kernels import kernels, unobserved
from mesascope.ops.operators import Operator


def direct_linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal linear attention of unobserved operands, `[B, T, H, D] -> [B, T, H, Dv]`."""
    output: Tensor = _DirectLinear.apply(q, k, v)  # type: ignore[no-untyped-call]
    return output


def linear_attention_operator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same of any operands that are computable."""
    output: Tensor = _linear(q, k, v)
    return output


def direct_softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention of short sequences and unobserved operands, `[B, T, H, D] -> [B, T, H, Dv]`."""
    output: Tensor = _DirectSoftmax.apply(q, k, v)  # type: ignore[no-untyped-call]
    return output


def softmax_attention_operator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same of any operands that are computable."""
    output: Tensor = _softmax(q, k, v)[0]
    return output


def _attend_linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    o: Tensor = kernels().linear_forward(q, k, v, "auto", torch.get_num_threads())
    return o


def _differentiate_linear(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = kernels().linear_backward(q, k, v, g, "auto", torch.get_num_threads())
    return gradients


def _attend_softmax(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    scale = 1 / math.sqrt(q.shape[-1])
    result: tuple[Tensor, Tensor] = kernels().softmax_forward(q, k, v, scale, torch.get_num_threads())
    return result


def _differentiate_softmax(
    q: Tensor, k: Tensor, v: Tensor, normaliser: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    normaliser, scale = normaliser.contiguous(), 1 / math.sqrt(q.shape[-1])
    gradients: tuple[Tensor, Tensor, Tensor]
    gradients = kernels().softmax_backward(q, k, v, normaliser, g, scale, torch.get_num_threads())
    return gradients


_linear = Operator("linear_attention", _attend_linear)
_linear_backward = Operator("linear_attention_backward", _differentiate_linear)
_softmax = Operator("softmax_attention", _attend_softmax)
_softmax_backward = Operator("softmax_attention_backward", _differentiate_softmax)


def _normaliser_shape(q: Tensor) -> tuple[int, ...]:
    batch, time, heads, _ = q.shape
    return batch, heads, time, 2


_linear.register_fake(lambda q, k, v: v.new_empty(v.shape))
_softmax.register_fake(lambda q, k, v: (v.new_empty(v.shape), q.new_empty(_normaliser_shape(q))))
for _operator in (_linear_backward, _softmax_backward):
    _operator.register_fake(lambda q, k, v, *_: tuple(operand.new_empty(operand.shape) for operand in (q, k, v)))


def _keep_operands(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _keep_operands_and_normaliser(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _linear_gradients(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _linear_backward(*ctx.saved_tensors, g)


def _softmax_gradients(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _softmax_backward(*ctx.saved_tensors, g)


_linear.register_autograd(_linear_gradients, setup_context=_keep_operands)
_softmax.register_autograd(_softmax_gradients, setup_context=_keep_operands_and_normaliser)


def _over_batches(mapped: Operator) -> None:
    """Let vmap map an operator: its operands have the batch first, so one more dimension joins it."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *operands: Tensor) -> tuple[Any, Any]:
        moved = [
            operand.expand(info.batch_size, *operand.shape) if dim is None else operand.movedim(dim, 0)
            for operand, dim in zip(operands, in_dims, strict=True)
        ]
        result = mapped(*(operand.flatten(0, 1) for operand in moved))
        if isinstance(result, Tensor):
            return result.unflatten(0, (info.batch_size, -1)), 0
        return tuple(part.unflatten(0, (info.batch_size, -1)) for part in result), (0,) * len(result)

    mapped.register_vmap(rule)


for _operator in (_linear, _linear_backward, _softmax, _softmax_backward):
    _over_batches(_operator)
for _operator in (_linear, _softmax):
    _operator.register_autocast(torch.float32)
for _operator in (_linear_backward, _softmax_backward):
    _operator.refuse_gradient()


def _direct_or_operator(
    direct: Callable[..., Any], operator: Operator, gradients: Sequence[Tensor]
) -> Callable[..., Any]:
    """The operator is left the graph of a second derivative, which it refuses, and gradients that are not in memory."""
    return direct if not torch.is_grad_enabled() and unobserved(*gradients) else operator


class _DirectLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return _attend_linear(q, k, v)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return _direct_or_operator(_differentiate_linear, _linear_backward, gradients)(*ctx.saved_tensors, *gradients)


class _DirectSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o, normaliser = _attend_softmax(q, k, v)
        ctx.save_for_backward(q, k, v, normaliser)
        return o

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return _direct_or_operator(_differentiate_softmax, _softmax_backward, gradients)(*ctx.saved_tensors, *gradients)
