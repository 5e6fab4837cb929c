"""Mesa attention by the native kernels: fast on a CPU, exact, differentiable once.

Here is decided in which precision, and what the kernels cannot do is composed in torch; they are called in
`native_operators.py`.
"""

import math

import torch
from torch import Tensor

from mesascope.errors import InputError
from mesascope.ops.kernels import native_kernels, unobserved
from mesascope.ops.mesa.case import Case
from mesascope.ops.mesa.checks import check_finite, check_ridge
from mesascope.ops.mesa.digits import enough, largest_eigenvalue
from mesascope.ops.mesa.gated import remaining_at_end
from mesascope.ops.mesa.native_operators import Evidence, Inputs, differentiable_mesa_forward, mesa_forward
from mesascope.ops.mesa.portable import PORTABLE
from mesascope.ops.mesa.problem import Regularizer
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


_LEAST_LOG_FORGET = {torch.float32: -40.0, torch.float64: -300.0}
"""`least_log_forget` of csrc/gates.h: what forgets more is taken for this, which shows where no key comes after it."""


def _accurate(case: Case, evidence: Evidence) -> bool:
    """Whether the kernels have kept their promise in the dtype of the operands."""
    # seen in what comes out, if anything does, which is cheaper than reading the operands once more before
    seen_finite = math.isfinite(evidence.zero)
    if not seen_finite or case.v.shape[-1] == 0:
        check_finite({"q": case.q, "k": case.k, "v": case.v})
    # not finite, though the operands are: it has overflowed
    return seen_finite and enough(evidence.gain, evidence.condition, case.k.dtype, case.log_forget)


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

    Where gains and condition numbers say that float32 has lost too many digits it is computed again in float64; where
    float64 has, by the chunked form, which verifies its solutions and refines them. So is an output that overflows.

    After other work, which leaves the caches full of its data, an operation of torch takes tens of microseconds instead
    of one: without a state there are next to none but the kernels.
    """
    given = case
    if case.state is not None or case.return_state:
        check_ridge(case.ridge)  # by the kernels that is done too late for what is composed here
        case = case.expanded()
    q, k, v, ridge, log_forget, write, regularizer, state, return_state = case
    if state is not None and not _usable(state, ridge):
        return PORTABLE["chunked"](given)
    # the gradient of a state takes two products with its inverse
    if k.dtype == torch.float32 and torch.is_grad_enabled() and state is not None and state.matrix.requires_grad:
        return _in_double(given)
    matrix = association = None
    if state is not None:
        matrix, association = (state.matrix + state.matrix.mT) / 2, state.association
    constant = regularizer == "constant" and log_forget is not None
    start, largest = matrix, None
    if matrix is not None and regularizer == "initial":
        largest = largest_eigenvalue(torch.linalg.inv_ex(matrix.detach()).inverse)
    elif matrix is not None:
        # where nothing is forgotten the ridge may as well be: H_0 = C_0 + ridge
        hessian = matrix if constant else matrix.double() + torch.diag_embed(ridge.double())
        start = hessian if constant else torch.linalg.inv(hessian)
        largest = largest_eigenvalue(hessian)
    start, largest, association = (
        None if x is None else x.to(k.dtype).contiguous() for x in (start, largest, association)
    )
    inputs = Inputs(q, k, v, ridge, write, log_forget, start, largest, association, constant)
    tracked = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
    final_matrix = final_association = None
    if tracked:
        o, evidence = differentiable_mesa_forward(inputs)
    else:
        o, evidence, _, final_matrix, final_association = mesa_forward(inputs, final=return_state)
    if not _accurate(case, evidence):
        return _in_double(given) if k.dtype == torch.float32 else PORTABLE["chunked"](given)
    if not return_state:
        return o, None
    vanished = log_forget is not None and bool((log_forget < _LEAST_LOG_FORGET[k.dtype]).any())
    if final_matrix is None or final_association is None or regularizer == "constant" or vanished:
        final_matrix, final_association = _final_state(k, v, ridge, log_forget, write, regularizer, matrix, association)
    return o, MesaState(regularizer, final_matrix, final_association)


def _in_double(case: Case) -> tuple[Tensor, MesaState | None]:
    """The same in float64, given back in float32."""
    o, final = compute(case.to(torch.float64))
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
