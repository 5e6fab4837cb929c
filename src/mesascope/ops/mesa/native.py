"""Mesa attention by the native kernels: fast on a CPU, exact, differentiable once.

Here is decided in which precision, and what the kernels cannot do is composed in torch; they are called in
`native_operators.py`.
"""

import math
from typing import Any

import torch
from torch import Tensor

from mesascope.errors import InputError
from mesascope.ops.kernels import native_kernels, unobserved
from mesascope.ops.mesa.case import Case
from mesascope.ops.mesa.checks import check_finite, check_ridge, expand_ridge, without_copies
from mesascope.ops.mesa.gated import remaining_at_end
from mesascope.ops.mesa.native_operators import Evidence, Inputs, differentiable_mesa_forward, mesa_forward
from mesascope.ops.mesa.portable import PORTABLE
from mesascope.ops.mesa.problem import LARGEST_RESIDUAL, Regularizer
from mesascope.ops.mesa.state import MesaState


def available() -> bool:
    """Whether there are compiled kernels."""
    return native_kernels() is not None


def supports(case: Case) -> bool:
    """Whether the kernels compute this case: operands on the CPU whose values are known."""
    state = () if case.state is None else (case.state.matrix, case.state.association)
    return unobserved(case.q, case.k, case.v, case.ridge, case.write, case.log_forget, *state)


@torch.no_grad()
def _usable(state: MesaState, ridge: Tensor) -> bool:
    """Whether tokens can have left such a state; the chunked form verifies what it computes from others.

    With "initial" an inverse is positive definite. With "constant" a sum of k k^T has no negative eigenvalues but
    those of rounding, and H_t no pivot below the ridge, which the kernels count on.
    """
    matrix = state.matrix
    if state.regularizer == "constant":
        matrix = matrix.double() + 1e-3 * torch.diag_embed(ridge.double())
    return not bool(torch.linalg.cholesky_ex(matrix)[1].any())


_LARGEST_GAIN = {torch.float32: 256.0, torch.float64: 1e5}
"""|k|^2 write / ridge of one token, with which the first inverses and their rounding grow, up to which each dtype keeps
its promise. In float32 the largest error, of the gradient of the values, is 2e-5 at 100 and 2e-4 at 1000: see
`test_large_gains_are_computed_in_float64`."""

_LARGEST_GATED_GAIN = {torch.float32: 32.0, torch.float64: 1e5}
"""The same with gates: the gradient of log_forget, a sum of terms of both signs, has an error above 1e-4 at 100."""

_LARGEST_CONDITION = {dtype: LARGEST_RESIDUAL / torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}
"""The condition number of H_t up to which no solution needs to be verified."""


def _accurate(case: Case, condition: float, gain: float) -> bool:
    """Whether the kernels keep their promise in the dtype of a case.

    Args:
        case: what is computed.
        condition, gain: upper bounds, for all heads and tokens, of the condition number of H_t and of k_t^T H_0^-1 k_t.
    """
    dtype, gated = case.k.dtype, case.log_forget is not None or case.write is not None
    return condition <= _LARGEST_CONDITION[dtype] and gain <= (_LARGEST_GATED_GAIN if gated else _LARGEST_GAIN)[dtype]


@torch.no_grad()
def _bounds(case: Case, evidence: Evidence) -> tuple[float, float]:
    """The condition number and the gain of the head where each is largest."""
    total, largest_square, _ = evidence.of_heads.unbind(-1)
    ridge = without_copies(_expanded(case).ridge)
    largest, smallest = ridge.amax(-1), ridge.amin(-1)
    if case.state is not None:
        spread = case.state.matrix.diagonal(dim1=-2, dim2=-1)
        if case.regularizer == "constant":
            largest = largest + spread.sum(-1)
        else:
            largest, smallest = 1 / spread.amin(-1), 1 / spread.amax(-1)
    if case.log_forget is not None and case.regularizer == "initial":
        smallest = smallest * case.log_forget.sum(1).exp()
    condition, gain = (largest + total) / smallest, largest_square / smallest
    return float(condition.max()), float(gain.max())


def _well_conditioned(case: Case, evidence: Evidence) -> bool:
    """Whether the kernels are accurate in the dtype of the operands; looked at head by head only where it matters."""
    # seen in what comes out, if anything does, which is cheaper than reading the operands once more before
    seen_finite = math.isfinite(evidence.zero)
    if not seen_finite or case.v.shape[-1] == 0:
        check_finite({"q": case.q, "k": case.k, "v": case.v})
    if not seen_finite:  # finite operands: it has overflowed
        return False
    if case.state is None and case.log_forget is None:
        condition = (evidence.largest_ridge + evidence.total) / evidence.smallest_ridge
        if _accurate(case, condition, evidence.largest / evidence.smallest_ridge):
            return True
    return _accurate(case, *_bounds(case, evidence))


def _expanded(case: Case) -> Case:
    """The same with a ridge `[B, H, D]`."""
    batch, _, heads, d = case.k.shape
    return case._replace(ridge=expand_ridge(case.ridge, batch, heads, d))


def attend(case: Case) -> tuple[Tensor, MesaState | None]:
    """Mesa attention of checked operands; see `Attend` and `compute`.

    Raises:
        InputError: there are no kernels for the operands, a value is not allowed, or float64 is not precise enough.
    """
    if not supports(case):
        raise InputError(
            f"backend: got 'native', but the kernels compute plain tensors on the CPU (q is a {type(case.q).__name__} "
            f"on {case.q.device}), not inside torch.vmap, torch.func.grad, forward-mode differentiation, a tracer or a "
            'dispatch mode; use backend="chunked" or "auto"'
        )
    return compute(case)


def compute(case: Case) -> tuple[Tensor, MesaState | None]:
    """The same for a case that the kernels support.

    Where bounds that are cheap to tell say that float32 could lose too many digits it is computed in float64, and where
    float64 could by the chunked form, which verifies its solutions and refines them. So is an output that overflows.

    After other work, which leaves the caches full of its data, an operation of torch takes tens of microseconds instead
    of one: without a state there are next to none but the kernels.
    """
    if case.state is not None or case.return_state:
        check_ridge(case.ridge)  # by the kernels that is done too late for what is composed here
        case = _expanded(case)
    q, k, v, ridge, log_forget, write, regularizer, state, return_state = case
    if state is not None and not _usable(state, ridge):
        return PORTABLE["chunked"](case)
    # the gradient of a state takes two products with its inverse
    if k.dtype == torch.float32 and torch.is_grad_enabled() and state is not None and state.matrix.requires_grad:
        return _in_double(case)
    matrix = association = None
    if state is not None:
        matrix, association = (state.matrix + state.matrix.mT) / 2, state.association
    constant = regularizer == "constant" and log_forget is not None
    start = matrix
    if regularizer == "constant" and not constant and matrix is not None:
        # nothing is forgotten, so the ridge may as well be: H_0 = C_0 + ridge
        start = torch.linalg.inv(matrix.double() + torch.diag_embed(ridge.double())).to(k.dtype)
    start, association = (None if x is None else x.contiguous() for x in (start, association))
    inputs = Inputs(q, k, v, ridge, write, log_forget, start, association, constant)
    tracked = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
    final_matrix = final_association = None
    if tracked:
        o, evidence = differentiable_mesa_forward(inputs)
    else:
        o, evidence, _, final_matrix, final_association = mesa_forward(inputs, final=return_state)
    if not _well_conditioned(case, evidence):
        return _in_double(case) if k.dtype == torch.float32 else PORTABLE["chunked"](case)
    if not return_state:
        return o, None
    if final_matrix is None or final_association is None or regularizer == "constant":
        final_matrix, final_association = _final_state(k, v, ridge, log_forget, write, regularizer, matrix, association)
    return o, MesaState(regularizer, final_matrix, final_association)


def _in_double(case: Case) -> tuple[Tensor, MesaState | None]:
    """The same in float64, given back in float32."""
    changed: dict[str, Any] = {
        name: value.double() for name, value in case._asdict().items() if isinstance(value, Tensor)
    }
    state = None if case.state is None else case.state.to(dtype=torch.float64)
    o, final = compute(case._replace(**changed, state=state))
    return o.to(case.q.dtype), None if final is None else final.to(dtype=case.q.dtype)


def _final_state(
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    log_forget: Tensor | None,
    write: Tensor | None,
    regularizer: Regularizer,
    matrix: Tensor | None,
    association: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The state after the last token as a differentiable function of everything, in float64.

    What the kernels return has no gradient, and is H_T^-1 also for the "constant" regularizer if nothing is forgotten.
    """
    keys, values = (operand.transpose(1, 2).double() for operand in (k, v))
    weights = None if write is None else write.transpose(1, 2).double()
    kept = torch.ones((), dtype=torch.float64)
    if log_forget is not None:
        forget = log_forget.transpose(1, 2).double()
        left, kept = remaining_at_end(forget), forget.sum(-1).exp()[..., None, None]
        weights = left if weights is None else weights * left
    written = keys if weights is None else keys * weights[..., None]
    gram = written.mT @ keys
    if regularizer == "initial":
        start = torch.diag_embed(ridge.double()) if matrix is None else torch.linalg.inv(matrix.double())
        gram = torch.linalg.inv(gram + kept * start)
    elif matrix is not None:
        gram = gram + kept * matrix.double()
    final_association = values.mT @ written
    if association is not None:
        final_association = final_association + kept * association.double()
    return gram.to(k.dtype), final_association.to(k.dtype)
