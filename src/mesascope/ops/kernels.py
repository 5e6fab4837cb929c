"""The native kernels, where they were built: one compiled module that is found at the first use, or is not there.

The environment variable MESASCOPE_NATIVE=0 hides them, so that everything runs on plain torch.
"""

import math
import os
from collections.abc import Sequence
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
    if torch.compiler.is_compiling():
        return []
    return [transform.key() for transform in torch._C._functorch.get_interpreter_stack() or ()]


def computable(*operands: Tensor) -> bool:
    """Whether the kernels take these operands: on the CPU, all float32 or all float64, none of them empty.

    torch.vmap may map them, but torch.func.grad and its kin cannot differentiate operators.
    """
    first = operands[0]
    if any(transform != torch._C._functorch.TransformType.Vmap for transform in transforms()):
        return False
    return first.dtype in (torch.float32, torch.float64) and all(
        operand.device.type == "cpu" and operand.dtype == first.dtype and operand.numel() > 0 for operand in operands
    )


def kernel_module() -> ModuleType:
    """The compiled module for a caller that has asked whether there is one."""
    module = native_kernels()
    assert module is not None
    return module


_SMALLEST_RECYCLED = 2**20
"""Bytes from which memory is worth keeping: below, torch gets it from the C library without new pages."""


def uninitialised(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for a result in the dtype of `like`, a tensor that the kernels take.

    Large results live in memory that earlier ones have given back: new pages cost as much as computing what is written
    to them. At most 64 MiB are kept for it.
    """
    if math.prod(shape) * like.element_size() < _SMALLEST_RECYCLED:
        return like.new_empty(shape)
    kernels = kernel_module()
    make = kernels.recycled_float if like.dtype == torch.float32 else kernels.recycled_double
    recycled: Tensor = make(shape)
    return recycled
