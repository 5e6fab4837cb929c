"""The native kernels, where they were built: one compiled module that is found with this one, or is not there.

The environment variable MESASCOPE_NATIVE=0 hides them, so that everything runs on plain torch.
"""

import os
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

MODULE = "mesascope.ops._kernels"
NEEDED_BY_KERNELS = "a C++ compiler and a torch that has torch.Tensor.__dlpack_c_exchange_api__"


def find_kernels() -> ModuleType | None:
    """The compiled module, or None where the installation has none or MESASCOPE_NATIVE is 0.

    It reads and makes tensors by the exchange table of DLPack, which older versions of torch do not have.
    """
    if os.environ.get("MESASCOPE_NATIVE") == "0" or not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        return None
    try:
        return import_module(MODULE)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == MODULE:
            return None
        raise ImportError(
            f"{error}; install mesascope again, or set MESASCOPE_NATIVE=0 to do without kernels"
        ) from error


_KERNELS = find_kernels()  # not at the first use, which torch.compile would trace


def native_kernels() -> ModuleType | None:
    """What `find_kernels` has found."""
    return _KERNELS


def transforms() -> list[Any]:
    """Which transforms of torch.func, such as vmap and grad, the caller is inside of; none while it is compiled."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return []
    return [transform.key() for transform in torch._C._functorch.get_interpreter_stack() or ()]


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
    known = first.dtype in (torch.float32, torch.float64)
    return known and all(x.is_cpu and x.dtype == first.dtype and x.numel() > 0 for x in operands)


def stored(tensor: Tensor) -> Tensor:
    """The same numbers, in memory: some tensors are only known to be zero, and some are negated when they are read."""
    if tensor._is_zerotensor():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def readable(*operands: Tensor | None) -> bool:
    """Whether there are kernels, and they can read all operands but None where these are.

    Such operands are plain tensors on the CPU, all float32 or all float64, and neither negated views nor only known to
    be zero.
    """
    compiled = native_kernels()
    return compiled is not None and bool(compiled.takes(*operands))


def fitting(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor | None = None) -> bool:
    """Whether there are kernels, and nothing but values to find fault with in operands that they can read as they are.

    One call in place of a look at every shape and dtype, which takes tens of microseconds after other work. False as
    well where telling takes a closer look: a ridge of more dimensions than one.
    """
    compiled = native_kernels()
    return compiled is not None and bool(compiled.fitting(q, k, v, ridge))


def observed() -> bool:
    """Whether torch.compile, torch.jit, torch.func, forward-mode differentiation or a dispatch mode sees operators."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def unobserved(*operands: Tensor | None) -> bool:
    """Whether kernels can be called directly, with the same effect as through an operator that torch knows.

    Not where anybody wants to see operators, nor where the dispatcher has to bring operands into memory first.
    """
    return not observed() and readable(*operands)


def kernels() -> Any:
    """The compiled module, for a caller that has asked whether there is one.

    Its functions take and return tensors. They check sizes and types, so that nothing is read that is not there, but
    leave it to their callers to say in words what is wrong. Large results live in memory that earlier ones have given
    back, of which at most 64 MiB are kept: new pages cost as much as computing what is written to them.
    """
    return native_kernels()
