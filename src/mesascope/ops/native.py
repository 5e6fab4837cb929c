"""Linear and softmax attention by the native kernels, as operators that torch knows.

Under torch.compile each is one opaque call. They are differentiable once; vmap maps them over a further batch
dimension, and autocast computes them in float32.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mesascope.ops.kernels import address, kernel, problem_shape, uninitialised
from mesascope.ops.operators import Operator, operator


@operator("linear_attention")
def native_linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal linear attention, `[B, T, H, D] -> [B, T, H, Dv]`."""
    o = uninitialised(v, v.shape)
    _run("linear_forward", (q, k, v, o), "auto")
    return o


@operator("linear_attention_backward")
def _linear_backward(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _gradient_buffers(q, k, v)
    _run("linear_backward", (q, k, v, g, *gradients), "auto")
    return gradients


@operator("softmax_attention")
def _softmax(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    o, normaliser = uninitialised(v, v.shape), uninitialised(q, _normaliser_shape(q))
    _run("softmax_forward", (q, k, v, o, normaliser), 1 / math.sqrt(q.shape[-1]))
    return o, normaliser


@operator("softmax_attention_backward")
def _softmax_backward(q: Tensor, k: Tensor, v: Tensor, normaliser: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _gradient_buffers(q, k, v)
    _run("softmax_backward", (q, k, v, normaliser.contiguous(), g, *gradients), 1 / math.sqrt(q.shape[-1]))
    return gradients


def native_softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention of short sequences, `[B, T, H, D] -> [B, T, H, Dv]`."""
    output: Tensor = _softmax(q, k, v)[0]
    return output


def _run(name: str, tensors: Sequence[Tensor], option: str | float) -> None:
    q, _, v, *_ = tensors
    if any(tensor.dtype != q.dtype for tensor in tensors):
        raise TypeError(f"{name}: got tensors of {[tensor.dtype for tensor in tensors]}, but all must be of one dtype")
    kernel(name, q.dtype)(problem_shape(q, v), *map(address, tensors), option, torch.get_num_threads())


def _normaliser_shape(q: Tensor) -> tuple[int, ...]:
    batch, time, heads, _ = q.shape
    return batch, heads, time, 2


def _gradient_buffers(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return uninitialised(q, q.shape), uninitialised(k, k.shape), uninitialised(v, v.shape)


native_linear_attention.register_fake(lambda q, k, v: v.new_empty(v.shape))
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


native_linear_attention.register_autograd(_linear_gradients, setup_context=_keep_operands)
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


for _operator in (native_linear_attention, _linear_backward, _softmax, _softmax_backward):
    _over_batches(_operator)
for _operator in (native_linear_attention, _softmax):
    _operator.register_autocast(torch.float32)
for _operator in (_linear_backward, _softmax_backward):
    _operator.refuse_gradient()
