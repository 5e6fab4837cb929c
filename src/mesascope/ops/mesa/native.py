"""Mesa attention by the native kernels: fast on a CPU, exact, differentiable once.

One pass over the tokens forward, two backward (arXiv 2309.05858, eqs. 4-20 and appendix C.2); kept for the backward
pass are numbers of twice the size of k. Under torch.compile it is two opaque calls; vmap does not map it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mesascope.errors import InputError
from mesascope.ops.kernels import computable, kernel_module, native_kernels
from mesascope.ops.mesa import chunked
from mesascope.ops.mesa.gated import remaining_at_end
from mesascope.ops.mesa.problem import LARGEST_RESIDUAL, Regularizer
from mesascope.ops.mesa.state import MesaState
from mesascope.ops.operators import operator

_LAYOUT = "auto"


def available() -> bool:
    """Whether there are compiled kernels."""
    return native_kernels() is not None


def supports(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    log_forget: Tensor | None,
    write: Tensor | None,
    regularizer: Regularizer,
    state: MesaState | None,
    return_state: bool,
) -> bool:
    """Whether the kernels compute this case: operands on the CPU."""
    return computable(q, k) and v.device == k.device


@torch.no_grad()
def _usable(state: MesaState) -> bool:
    """Whether an inverse is still positive definite; the chunked form says what is wrong with one that is not."""
    return state.regularizer == "constant" or not bool(torch.linalg.cholesky_ex(state.matrix)[1].any())


_LARGEST_GAIN = {torch.float32: 32.0, torch.float64: 1e5}
"""|k|^2 write / ridge of one token, with which the first inverses and their rounding grow, up to which each dtype keeps
its promise. In float32 the gradient of the keys had an error of 1.7e-4 at 100 and below 1e-5 at 10."""


@dataclass(frozen=True)
class _Conditioning:
    """Upper bounds for all heads and tokens.

    Attributes:
        condition: of the condition number of H_t.
        gain: of k_t^T H_0^-1 k_t, of one token.
    """

    condition: float
    gain: float

    def allow(self, dtype: torch.dtype) -> bool:
        """Whether the kernels are accurate in this dtype, so that no solution needs to be verified."""
        solvable = self.condition * torch.finfo(dtype).eps <= LARGEST_RESIDUAL
        return solvable and self.gain <= _LARGEST_GAIN[dtype]


@torch.no_grad()
def _conditioning(
    k: Tensor,
    ridge: Tensor,
    log_forget: Tensor | None,
    write: Tensor | None,
    regularizer: Regularizer,
    state: MesaState | None,
) -> _Conditioning:
    squares = torch.linalg.vector_norm(k, dim=-1).square()
    if write is not None:
        squares = squares * write
    largest, smallest = ridge.amax(-1), ridge.amin(-1)
    if state is not None:
        spread = state.matrix.diagonal(dim1=-2, dim2=-1)
        if regularizer == "constant":
            largest = largest + spread.sum(-1)
        else:
            largest, smallest = 1 / spread.amin(-1), 1 / spread.amax(-1)
    if log_forget is not None and regularizer == "initial":
        smallest = smallest * log_forget.sum(1).exp()
    condition, gain = (largest + squares.sum(1)) / smallest, squares.amax(1) / smallest
    return _Conditioning(float(condition.max()), float(gain.max()))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    log_forget: Tensor | None,
    write: Tensor | None,
    regularizer: Regularizer,
    state: MesaState | None,
    return_state: bool,
) -> tuple[Tensor, MesaState | None]:
    """Mesa attention of checked operands; see `Attend`.

    Where bounds that are cheap to tell say that float32 could lose too many digits it is computed in float64, and where
    float64 could by the chunked form, which verifies its solutions and refines them.

    Raises:
        InputError: the operands are not on the CPU, or the problem is singular in float64.
    """
    if not computable(q, k):
        raise InputError(f"backend: got 'native', but the kernels compute on the CPU and q is on {q.device}")
    bounds = _conditioning(k, ridge, log_forget, write, regularizer, state)
    # the gradient of a state takes two products with its inverse
    tracked_state = torch.is_grad_enabled() and state is not None and state.matrix.requires_grad
    if state is not None and not _usable(state):
        return chunked.attend(q, k, v, ridge, log_forget, write, regularizer, state, return_state)
    if not bounds.allow(k.dtype) or (k.dtype == torch.float32 and tracked_state):
        case = (q, k, v, ridge, log_forget, write, regularizer, state, return_state)
        return _in_double(*case) if k.dtype == torch.float32 else chunked.attend(*case)
    matrix = association = None
    if state is not None:
        matrix, association = (state.matrix + state.matrix.mT) / 2, state.association
    constant = regularizer == "constant" and log_forget is not None
    start = matrix
    if regularizer == "constant" and not constant and matrix is not None:
        # nothing is forgotten, so the ridge may as well be: H_0 = C_0 + ridge
        start = torch.linalg.inv(matrix.double() + torch.diag_embed(ridge.double())).to(k.dtype)
    operands = (q, k, v, ridge[:, None], write, log_forget, start, association)
    tracked = torch.is_grad_enabled() and any(operand is not None and operand.requires_grad for operand in operands)
    o, _, final_matrix, final_association = _forward(*operands, constant, tracked, return_state)
    if not return_state:
        return o, None
    if tracked or regularizer == "constant":
        final_matrix, final_association = _final_state(k, v, ridge, log_forget, write, regularizer, matrix, association)
    return o, MesaState(regularizer, final_matrix, final_association)


def _in_double(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    log_forget: Tensor | None,
    write: Tensor | None,
    regularizer: Regularizer,
    state: MesaState | None,
    return_state: bool,
) -> tuple[Tensor, MesaState | None]:
    """The same in float64, given back in float32."""
    forget, strength = (None if gate is None else gate.double() for gate in (log_forget, write))
    start = None if state is None else state.to(dtype=torch.float64)
    q64, k64, v64, ridge64 = (operand.double() for operand in (q, k, v, ridge))
    o, final = attend(q64, k64, v64, ridge64, forget, strength, regularizer, start, return_state)
    return o.to(q.dtype), None if final is None else final.to(dtype=q.dtype)


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


@operator("mesa_attention")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    write: Tensor | None,
    log_forget: Tensor | None,
    matrix: Tensor | None,
    association: Tensor | None,
    constant: bool,
    save: bool,
    final: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """o, what the backward pass needs, the final matrix and G_T; empty what is not asked for.

    `matrix` is H_0^-1, or C_0 if `constant`.
    """
    (batch, time, heads, d), d_v = k.shape, v.shape[-1]
    kernels = kernel_module()
    saved_size = kernels.mesa_saved_size_float if k.dtype == torch.float32 else kernels.mesa_saved_size_double
    saved = k.new_empty(saved_size(batch, time, heads, d, d_v, _LAYOUT) if save else 0)
    states = (k.new_empty(batch, heads, d, d), k.new_empty(batch, heads, d_v, d)) if final else (None, None)
    o = torch.empty(v.shape, dtype=v.dtype)
    start = (_contiguous(matrix), _contiguous(association), constant)
    threads = torch.get_num_threads()
    kernels.mesa_forward(q, k, v, ridge, write, log_forget, *start, o, saved, *states, threads, _LAYOUT)
    return o, saved, _given(states[0], k), _given(states[1], k)


@operator("mesa_attention_backward")
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    write: Tensor | None,
    log_forget: Tensor | None,
    matrix: Tensor | None,
    association: Tensor | None,
    constant: bool,
    saved: Tensor,
    g: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, ridge `[B, H, D]`, write, the penalties, the sum of pairs and dG_0; empty if not needed."""
    (batch, _, heads, d), d_v = k.shape, v.shape[-1]
    dq, dk, dv = (torch.empty(operand.shape, dtype=operand.dtype) for operand in (q, k, v))
    dridge = k.new_empty(batch, heads, d)
    dwrite = None if write is None and log_forget is None else k.new_empty(k.shape[:3])
    penalty = k.new_empty(k.shape[:3]) if constant else None
    pairs = None if matrix is None else k.new_empty(batch, heads, d, d)
    dassociation = None if association is None else k.new_empty(batch, heads, d_v, d)
    start = (_contiguous(matrix), _contiguous(association), constant)
    gradients = (dq, dk, dv, dridge, dwrite, penalty, dassociation, pairs)
    threads = torch.get_num_threads()
    kernel_module().mesa_backward(q, k, v, ridge, write, log_forget, *start, saved, g, *gradients, threads, _LAYOUT)
    return dq, dk, dv, dridge, _given(dwrite, k), _given(penalty, k), _given(pairs, k), _given(dassociation, k)


def _given(tensor: Tensor | None, like: Tensor) -> Tensor:
    """An operator returns tensors only: an empty one stands for none."""
    return like.new_empty(0) if tensor is None else tensor


def _contiguous(matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else matrix.contiguous()


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    write: Tensor | None,
    log_forget: Tensor | None,
    matrix: Tensor | None,
    association: Tensor | None,
    constant: bool,
    save: bool,
    final: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (batch, _, heads, d), d_v = k.shape, v.shape[-1]
    saved = k.new_empty(torch.library.get_ctx().new_dynamic_size() if save else 0)
    states = ((batch, heads, d, d), (batch, heads, d_v, d)) if final else ((0,), (0,))
    return v.new_empty(v.shape), saved, k.new_empty(states[0]), k.new_empty(states[1])


@_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    write: Tensor | None,
    log_forget: Tensor | None,
    matrix: Tensor | None,
    association: Tensor | None,
    constant: bool,
    saved: Tensor,
    g: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (batch, _, heads, d), d_v = k.shape, v.shape[-1]
    gated = write is not None or log_forget is not None
    return (
        q.new_empty(q.shape),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
        k.new_empty(batch, heads, d),
        k.new_empty(k.shape[:3] if gated else 0),
        k.new_empty(k.shape[:3] if constant else 0),
        k.new_empty(0 if matrix is None else (batch, heads, d, d)),
        k.new_empty(0 if association is None else (batch, heads, d_v, d)),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.constant, _, _ = inputs
    o, saved, *_ = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, saved, o)


def _gradients(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *operands, saved, o = ctx.saved_tensors
    q, k, _, _, write, log_forget, matrix, association = operands
    dq, dk, dv, dridge, dwrite, penalty, pairs, dassociation = _backward(*operands, ctx.constant, saved, g)
    dforget = dmatrix = None
    if log_forget is not None:
        terms = (g * o).sum(-1, dtype=torch.float64) - (dq * q).sum(-1, dtype=torch.float64)
        terms -= dwrite.double() * (1 if write is None else write)
        if ctx.constant:
            terms += penalty
        # of both signs: summed in float64, or the first tokens of a long sequence keep few digits
        dforget = terms.flip(1).cumsum(1).flip(1).to(k.dtype)
    if matrix is not None:
        dmatrix = -pairs.double()
        if not ctx.constant:
            # pairs are -dL/dH_0, and R_0 = H_0^-1
            start = torch.linalg.inv(matrix.double())
            dmatrix = -start @ dmatrix @ start
        dmatrix = ((dmatrix + dmatrix.mT) / 2).to(k.dtype)
    without_ridge = matrix is not None and not ctx.constant
    return (
        *(dq, dk, dv, None if without_ridge else dridge[:, None]),
        *(None if write is None else dwrite, dforget, dmatrix, None if association is None else dassociation),
        *(None, None, None),
    )


_forward.register_autograd(_gradients, setup_context=_keep)
_backward.refuse_gradient()
