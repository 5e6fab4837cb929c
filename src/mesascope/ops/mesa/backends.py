"""The backends of mesa attention, and the one place where one of them is chosen.

A backend is a function `attend(*case) -> (output, state or None)` of operands that were checked: all in one dtype,
float32 or float64, on one device, and with no empty dimension but Dv.
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

from torch import Tensor

from mesascope.errors import InputError, suggest
from mesascope.ops.mesa import chunked, reference
from mesascope.ops.mesa.problem import Regularizer
from mesascope.ops.mesa.state import MesaState

Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Regularizer, MesaState | None, bool]
"""q, k `[B, T, H, D]`; v `[B, T, H, Dv]`; ridge `[B, H, D]`, often expanded; log_forget and write `[B, T, H]` or None;
regularizer; state to start from (with "initial" the ridge is inside it and the operand is not used) or None; whether
the state after the last token is wanted."""

Attend = Callable[
    [Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Regularizer, MesaState | None, bool],
    tuple[Tensor, MesaState | None],
]

PORTABLE: dict[str, Attend] = {"reference": reference.attend, "chunked": chunked.attend}
NATIVE = "mesascope.ops.mesa.native"
"""A module with `available() -> bool`, `supports(*case) -> bool` and `attend(*case)`."""


def native_available() -> bool:
    """Whether there are compiled kernels that run on this machine."""
    module = _native()
    return module is not None and bool(module.available())


def native_supports(case: Case) -> bool:
    """Whether the compiled kernels, if there are any, compute this case."""
    module = _native()
    return module is not None and bool(module.available() and module.supports(*case))


def choose(backend: str, case: Case) -> Attend:
    """The function behind a name.

    "auto" is native where there are compiled kernels, all operands are on the CPU and the kernels support the case;
    chunked otherwise.

    Raises:
        InputError: there is no such backend, or no compiled kernels for it.
    """
    if backend == "auto":
        backend = "native" if case[0].device.type == "cpu" and native_supports(case) else "chunked"
    if backend in PORTABLE:
        return PORTABLE[backend]
    if backend != "native":
        known = ("auto", "native", *PORTABLE)
        raise InputError(f"backend: got {backend!r}, but it must be one of {known}; {suggest(backend, known)}")
    module = _native()
    if module is None or not module.available():
        raise InputError(
            "backend: got 'native', but this installation has no compiled kernels for this machine; install mesascope "
            'again where there is a C++ compiler, or use backend="chunked" (backend="auto" chooses by itself)'
        )
    attend: Attend = module.attend
    return attend


def _native() -> ModuleType | None:
    try:
        return import_module(NATIVE)
    except ModuleNotFoundError as error:
        if error.name != NATIVE:
            raise
        return None
