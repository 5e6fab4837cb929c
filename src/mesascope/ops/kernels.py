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


def computable(*operands: Tensor) -> bool:
    """Whether the kernels take these operands: on the CPU, all float32 or all float64, none of them empty.

    torch.vmap may map them, but torch.func.grad and its kin cannot differentiate operators, and forward mode would lose
    its tangents without an error.
    """
    first = operands[0]
    if torch.autograd.forward_ad._current_level >= 0 or any(
        transform != torch._C._functorch.TransformType.Vmap for transform in transforms()
    ):
        return False
    return first.dtype in _SUFFIX and all(x.is_cpu and x.dtype == first.dtype and x.numel() > 0 for x in operands)


_PLAIN = (Tensor, torch.nn.Parameter)


def in_memory(*operands: Tensor) -> bool:
    """Whether operands are plain tensors with numbers in memory.

    Those that are not: fake tensors and other subclasses, batched ones of vmap, and gradients only known to be zero.
    """
    return all(type(x) in _PLAIN and torch._C._has_storage(x) and not x._is_zerotensor() for x in operands)


def stored(tensor: Tensor) -> Tensor:
    """The same numbers, in memory: some tensors are only known to be zero, and some are negated when they are read."""
    if tensor._is_zerotensor():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def unobserved(*operands: Tensor) -> bool:
    """Whether kernels can be called directly, with the same effect as through an operator that torch knows.

    Not where torch.compile, torch.jit, torch.func, forward-mode differentiation or a dispatch mode wants to see
    operators, nor where the dispatcher has to bring operands into memory first.
    """
    return (
        not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and torch.autograd.forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and in_memory(*operands)
        and not any(x.is_neg() for x in operands)
    )


Address = tuple[int, ...]
"""Where a tensor is and how it is laid out: its address and its strides."""


def kernel(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    """A function of the compiled module for numbers of a dtype, for a caller that has asked whether there is one.

    It takes sizes, those of attention being `[B, T, H, D, Dv]`, and the `address` of each tensor, all of this dtype.
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
    """The same for a result of any size; beside large ones a second way to get memory costs more than the memory."""
    memory: Tensor = kernel("recycled", like.dtype)(shape)
    return memory
