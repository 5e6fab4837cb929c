"""What queries, keys and values must be, whatever is computed from them."""

from typing import Any

import torch
from torch import Tensor

from mesascope.errors import require

HALF = (torch.float16, torch.bfloat16)


def check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise an error unless q and k are `[B, T, H, D]` with D > 0, and v is `[B, T, H, Dv]`.

    Raises:
        InputError: names the operand, its shape and what is allowed.
    """
    tensors = isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)
    if tensors and q.dim() == v.dim() == 4 and q.shape[-1] > 0 and k.shape == q.shape and v.shape[:3] == q.shape[:3]:
        return  # before sizes are put into words, which torch.compile would take for constants
    require_tensors(q=q, k=k, v=v)
    require(q.dim() == 4 and q.shape[-1] > 0, "q", tuple(q.shape), "of shape [B, T, H, D] with D > 0")
    require(k.shape == q.shape, "k", tuple(k.shape), f"of the shape of q {tuple(q.shape)}")
    batch, time, heads, _ = q.shape
    require(False, "v", tuple(v.shape), f"of shape [{batch}, {time}, {heads}, Dv]")


def require_tensors(**operands: Any) -> None:
    """Raise an error that names the first operand that is no tensor, and what it is."""
    for name, operand in operands.items():
        if not isinstance(operand, Tensor):
            known = operand if operand is None or isinstance(operand, (bool, int, float)) else type(operand).__name__
            require(False, name, known, "a tensor")


def check_types(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise an error unless all are on one device and of one floating-point dtype, which may be narrow and differ under
    torch.autocast.

    Raises:
        InputError: names the operand, what it is and what is allowed.
    """
    require(q.is_floating_point(), "q", q.dtype, "a floating-point tensor")
    for name, operand in (("k", k), ("v", v)):
        check_type(name, operand, q, may_be_float32=False)


def check_type(name: str, operand: Tensor, q: Tensor, *, may_be_float32: bool) -> None:
    """Raise an error unless an operand is on the device of q and of its dtype.

    Narrow dtypes may differ under torch.autocast, where some layers give float32 and others half precision; and from a
    q of half precision where the operand may be float32, for what is small may keep its digits.
    """
    require(operand.device == q.device, name, str(operand.device), f"on the device of q ({q.device})")
    narrow = {q.dtype, operand.dtype} <= {*HALF, torch.float32}
    mixed = narrow and (autocast(q.device) or (may_be_float32 and operand.dtype == torch.float32))
    require(mixed or operand.dtype == q.dtype, name, operand.dtype, f"of the dtype of q ({q.dtype})")


def autocast(device: torch.device) -> bool:
    """Whether torch.autocast is active for a device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
