"""What mesa attention refuses, and operands as the backends expect them.

Shapes and types are always checked. Values are not while a function is traced by torch.compile or mapped by torch.vmap,
where they are not known.
"""

import math
from itertools import pairwise
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from mesascope.errors import InputError, require, suggest
from mesascope.ops.kernels import fitting, observed, transforms, unobserved
from mesascope.ops.mesa.problem import Regularizer
from mesascope.ops.operands import HALF, check_shapes, check_type, require_tensors

_REGULARIZERS = get_args(Regularizer)


class Operands(NamedTuple):
    """Checked operands in the dtype to compute in.

    Attributes:
        q, k: `[B, T, H, D]`.
        v: `[B, T, H, Dv]`.
        ridge: of any shape that `expand_ridge` takes.
        log_forget, write: `[B, T, H]` or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    ridge: Tensor
    log_forget: Tensor | None = None
    write: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """All tensors by the names of the arguments."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}

    def completed(self) -> "Operands":
        """The same with a ridge `[B, H, D]`, after a look at the values that `prepare` leaves out."""
        check_values(self.q, self.k, self.v, self.ridge)
        batch, _, heads, d = self.q.shape
        return self._replace(ridge=expand_ridge(self.ridge, batch, heads, d))

    def empty(self) -> bool:
        """Whether there is no token to compute."""
        return 0 in self.q.shape[:3]

    def empty_output(self) -> Tensor:
        """What comes out where there is no token: `[B, T, H, Dv]`, attached to every operand for autograd."""
        return self.v + sum(tensor.sum() for tensor in self.named().values())


def prepare(
    q: Tensor, k: Tensor, v: Tensor, ridge: Tensor, log_forget: Tensor | None, write: Tensor | None
) -> Operands:
    """Check all operands and bring half precision to float32.

    Whether q, k and v are finite and the ridge is positive is left to whoever reads them first: see `completed`.

    Raises:
        InputError: names the operand, what it is and what is allowed.
    """
    given = Operands(q, k, v, ridge, log_forget, write)
    ungated = log_forget is None and write is None
    if ungated and ridge is not None and not observed() and fitting(q, k, v, ridge):
        return given
    check_shapes(q, k, v)
    require_tensors(ridge=ridge)
    batch, _, heads, d = q.shape
    for name, gate in (("log_forget", log_forget), ("write", write)):
        if gate is not None:
            require_tensors(**{name: gate})
            require(gate.shape == q.shape[:3], name, tuple(gate.shape), f"of shape [B, T, H] = {tuple(q.shape[:3])}")
    uniform = unobserved(*given)
    if not uniform:
        given = Operands(**{name: operand.resolve_neg() for name, operand in given.named().items()})
        uniform = _check_types(given)
    ridge_axes(ridge, batch, heads, d)
    _check_gates(log_forget, write)
    dtype = compute_dtype(q.dtype)
    if uniform and q.dtype == dtype:
        return given
    return Operands(**{name: operand.to(dtype) for name, operand in given.named().items()})


def check_regularizer(regularizer: str) -> None:
    """Raise an error unless there is such a regularizer."""
    if regularizer not in _REGULARIZERS:
        known = f"one of {_REGULARIZERS}; {suggest(str(regularizer), _REGULARIZERS)}"
        require(False, "regularizer", regularizer, known)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which operands of a dtype are computed: half precision in float32."""
    return torch.float32 if dtype in HALF else dtype


RidgeAxes = tuple[int | None, int | None, int | None]
"""Which dimensions of a ridge run over rows, heads and coordinates; None where one number serves all."""


def ridge_axes(ridge: Tensor, batch: int, heads: int, d: int) -> RidgeAxes:
    """How a ridge of any of the shapes that are allowed is read.

    Raises:
        InputError: the shape is not allowed, or can be read in two ways.
    """
    shape = tuple(ridge.shape)
    diagonal = shape == (heads, d)
    per_head = len(shape) <= 2 and _broadcasts(shape, (batch, heads))
    if diagonal and per_head and shape != (1, 1):
        raise InputError(
            f"ridge: got shape {shape}, which can be read as [B, H] and as [H, D]; write it with three dimensions, "
            "ridge[:, :, None] for one per row and head or ridge[None] for one per head and coordinate"
        )
    if diagonal:
        return None, 0, 1
    if per_head:
        return 0 if len(shape) == 2 else None, len(shape) - 1 if shape else None, None
    if len(shape) == 3 and _broadcasts(shape, (batch, heads, d)):
        return 0, 1, 2
    raise InputError(
        f"ridge: got shape {shape}, but it must be broadcastable to [B, H] = [{batch}, {heads}], or [H, D] = "
        f"[{heads}, {d}], or have three dimensions and be broadcastable to [B, H, D] = [{batch}, {heads}, {d}]"
    )


def expand_ridge(ridge: Tensor, batch: int, heads: int, d: int) -> Tensor:
    """The ridge of every head and coordinate, `[B, H, D]`, from any of the shapes that are allowed."""
    of_coordinates = ridge_axes(ridge, batch, heads, d)[2] is not None
    return (ridge if of_coordinates else ridge[..., None]).expand(batch, heads, d)


def check_values(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor) -> None:
    """Raise an error unless the values that `prepare` leaves out are allowed."""
    check_ridge(ridge)
    check_finite({"q": q, "k": k, "v": v})


def check_cu_seqlens(cu_seqlens: Tensor, operands: Operands) -> list[int]:
    """The lengths of the sequences packed into operands of one row.

    Raises:
        InputError: `cu_seqlens` does not divide T tokens of one row into sequences.
    """
    require_tensors(cu_seqlens=cu_seqlens)
    if any(torch._C._functorch.is_batchedtensor(x) for x in (cu_seqlens, *operands.named().values())):
        raise InputError("cu_seqlens: packed sequences cannot be mapped by torch.vmap; pad them")
    batch, time = operands.q.shape[:2]
    require(batch == 1, "q", tuple(operands.q.shape), "of one row, B = 1, when sequences are packed with cu_seqlens")
    integer = not (cu_seqlens.is_floating_point() or cu_seqlens.is_complex() or cu_seqlens.dtype == torch.bool)
    require(integer, "cu_seqlens", cu_seqlens.dtype, "integers, for example of dtype torch.int32")
    fits = cu_seqlens.dim() == 1 and len(cu_seqlens) >= 2
    require(fits, "cu_seqlens", tuple(cu_seqlens.shape), "of shape [N + 1] for N >= 1 sequences")
    ends = cu_seqlens.tolist()
    require(ends[0] == 0, "cu_seqlens", f"{ends[0]} first", "0 first")
    require(ends[-1] == time, "cu_seqlens", f"{ends[-1]} last", f"T = {time} last")
    lengths = [end - start for start, end in pairwise(ends)]
    require(min(lengths) >= 0, "cu_seqlens", ends, "increasing")
    return lengths


def tracing() -> bool:
    """Whether values are unknown: inside torch.compile or torch.vmap."""
    return torch.compiler.is_compiling() or torch._C._functorch.TransformType.Vmap in transforms()


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    return all(size in (1, wanted) for size, wanted in zip(reversed(shape), reversed(target), strict=False))


def _check_types(operands: Operands) -> bool:
    """Whether all are of one type; if not, they may still be allowed to differ."""
    q = operands.q
    dtype, device = q.dtype, q.device
    if dtype.is_floating_point and all(x is None or (x.dtype == dtype and x.device == device) for x in operands):
        return True
    require(q.is_floating_point(), "q", q.dtype, "a floating-point tensor")
    for name, operand in operands.named().items():
        check_type(name, operand, q, may_be_float32=name not in ("k", "v"))
    return False


def without_copies(tensor: Tensor) -> Tensor:
    """A view of the same numbers in which dimensions that were only expanded have size 1."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _check_gates(log_forget: Tensor | None, write: Tensor | None) -> None:
    for name, gate in (("write", write), ("log_forget", log_forget)):
        if gate is None or not gate.numel() or tracing():
            continue
        low, high = extremes(gate)
        # written so that NaN is refused as well
        if name == "write" and not low >= 0:
            raise InputError(f"write: got a smallest value of {low:.3g}, but it must be at least 0")
        if name == "log_forget" and not high <= 0:
            raise InputError(f"log_forget: got a largest value of {high:.3g}, but it must be at most 0")
        _require_finite(name, low, high)


def check_ridge(ridge: Tensor) -> None:
    """Raise an error unless a ridge is positive and finite; do nothing while tracing."""
    if ridge.numel() and not tracing():
        check_ridge_range(*extremes(ridge))


def check_ridge_range(low: float, high: float) -> None:
    """Raise an error unless numbers from `low` to `high` are a ridge."""
    if not low > 0:
        raise InputError(f"ridge: got a smallest value of {low:.3g}, but it must be greater than 0")
    _require_finite("ridge", low, high)


def extremes(tensor: Tensor) -> tuple[float, float]:
    """The smallest and the largest number, both NaN if one is."""
    low, high = torch.aminmax(without_copies(tensor.detach()))
    return low.item(), high.item()


def _require_finite(name: str, low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"{name}: got values from {low:.3g} to {high:.3g}, but all of them must be finite")


def check_finite(tensors: dict[str, Tensor]) -> None:
    """Raise an error that names the first tensor with a value that is NaN or infinite; do nothing while tracing."""
    if tracing():
        return
    present = {name: tensor.detach() for name, tensor in tensors.items() if tensor.numel()}
    # a finite sum has finite terms only, and is the cheapest thing to ask; one that is not finite may have overflowed
    if not math.isfinite(sum(tensor.sum() for tensor in present.values())):
        for name, tensor in present.items():
            _require_finite(name, *extremes(tensor))
