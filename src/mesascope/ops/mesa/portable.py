"""The backends in plain torch, for any device."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mesascope.ops.mesa import chunked, digits, reference
from mesascope.ops.mesa.case import Case
from mesascope.ops.mesa.checks import check_values
from mesascope.ops.mesa.state import MesaState
from mesascope.ops.operands import autocast

Attend = Callable[[Case], tuple[Tensor, MesaState | None]]
"""A backend: the output, and the state where it is wanted."""


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Keep autocast from lowering the precision of the operations inside."""
    return torch.autocast(device.type, enabled=False) if autocast(device) else nullcontext()


def _checked(attend: Attend) -> Attend:
    """The same, which refuses values that only the native kernels look at by themselves."""

    def checked(case: Case) -> tuple[Tensor, MesaState | None]:
        check_values(case.q, case.k, case.v, case.ridge)
        with full_precision(case.q.device):
            return attend(case)

    return checked


def _expanding(attend: Attend) -> Attend:
    """The same for a ridge of any shape."""
    return lambda case: attend(case.expanded())


def _with_all_digits(attend: Attend) -> Attend:
    """The same, computed in float64 where float32 would lose digits that are promised."""

    def precise(case: Case) -> tuple[Tensor, MesaState | None]:
        if not digits.too_few(case):
            return attend(case)
        output, final = attend(case.to(torch.float64))
        return output.to(case.q.dtype), None if final is None else final.to(dtype=case.q.dtype)

    return precise


PORTABLE: dict[str, Attend] = {
    "reference": _checked(_expanding(reference.attend)),
    # the ridge is expanded in float64, too, so that its gradient is summed in it
    "chunked": _checked(_with_all_digits(_expanding(chunked.attend))),
}
