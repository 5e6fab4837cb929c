"""The native kernels, where they were built: one compiled module that is found at the first use, or is not there.

The environment variable MESASCOPE_NATIVE=0 hides them, so that everything runs on plain torch.
"""

import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

MODULE = "mesascope.ops._kernels"


@cache
def native_kernels() -> ModuleType | None:
    """The compiled module, or None where the installation has none or MESASCOPE_NATIVE is 0."""
    if os.environ.get("MESASCOPE_NATIVE") == "0":
        return None
    try:
        return import_module(MODULE)
    except ModuleNotFoundError as error:
        if error.name != MODULE:
            raise
        return None


def transforms() -> list[Any]:
    """Which transforms of torch.func, such as vmap and grad, the caller is inside of; none while it is compiled."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return []
    return [transform.key() for transform in torch._C._functorch.get_interpreter_stack() or ()]


_SUFFIX = {torch.float32: "_float32", torch.float64: "_float64"}
"""The dtypes that there are kernels for, and what the names of these end with."""


def addressable(*operands: Tensor) -> bool:
    """Whether operands lie in memory as the kernels read them: on the CPU, all float32 or all float64, none empty.

    In forward-mode differentiation they do not: tangents would be lost without an error.
    """
    first = operands[0]
    if torch.autograd.forward_ad._current_level >= 0 or first.dtype not in _SUFFIX:
        return False
    return all(x.is_cpu and x.dtype == first.dtype and x.numel() > 0 for x in operands)


def computable(*operands: Tensor) -> bool:
    """The same for kernels that torch.vmap may map; torch.func.grad and its kin cannot differentiate operators."""
    return addressable(*operands) and all(
        transform == torch._C._functorch.TransformType.Vmap for transform in transforms()
    )


_PLAIN = (Tensor, torch.nn.Parameter)


def unobserved(*operands: Tensor) -> bool:
    """Whether nothing happens to operands on their way through an operator but what the operator does.

    What does happen: torch.compile, torch.func, dispatch modes (such as fake tensors) and subclasses of tensors look at
    operators, and views that are negated when they are read are negated for them.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and all(type(operand) in _PLAIN and not operand.is_neg() for operand in operands)
    )


Address = tuple[int, ...]
"""Where a tensor is and how it is laid out: its address and its strides."""


def kernel(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    """A function of the compiled module for numbers of a dtype, for a caller that has asked whether there is one.

    It takes the sizes `[B, T, H, D, Dv]` and the `address` of each tensor, all of them of this dtype.
    """
    function: Callable[..., Any] = getattr(native_kernels(), name + _SUFFIX[dtype])
    return function


def address(tensor: Tensor) -> Address:
    """What the kernels are told of a tensor, which the caller keeps until they have returned."""
    return (tensor.data_ptr(), *tensor.stride())


def optional_address(tensor: Tensor | None) -> Address | None:
    """The same, or None."""
    return None if tensor is None else address(tensor)


def problem_shape(k: Tensor, v: Tensor) -> tuple[int, ...]:
    """`[B, T, H, D, Dv]` of keys and values."""
    return (*k.shape, v.shape[-1])


_SMALLEST_RECYCLED = 2**20
"""Bytes from which memory is worth keeping: below, torch gets it from the C library without new pages."""


def uninitialised(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for a result in the dtype of `like`, a tensor that the kernels take.

    Large results live in memory that earlier ones have given back: new pages cost as much as computing what is written
    to them. At most 64 MiB are kept for it.
    """
    if math.prod(shape) * like.element_size() < _SMALLEST_RECYCLED:
        return like.new_empty(shape)
    return recycled(like, shape)


def recycled(like: Tensor, shape: Sequence[int]) -> Tensor:
    """The same whatever the size, for small results beside large ones: of two ways to memory only one is warm."""
    memory: Tensor = kernel("recycled", like.dtype)(shape)
    return memory
