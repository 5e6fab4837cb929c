"""Mesa attention by the native kernels: fast on a CPU, exact, differentiable once.

One pass over the tokens forward, two backward (arXiv 2309.05858, eqs. 4-20 and appendix C.2); kept for the backward
pass are numbers of twice the size of k. Under torch.compile it is two opaque calls; vmap does not map it.
"""

from typing import Any

import torch
from torch import Tensor

from mesascope.ops.kernels import computable, kernel_module, native_kernels
from mesascope.ops.mesa.gated import remaining_at_end
from mesascope.ops.mesa.problem import LARGEST_RESIDUAL, Regularizer
from mesascope.ops.mesa.state import MesaState

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
    """Whether the kernels compute this case to the precision of `mesa_attention`: sizes, types and conditioning.

    A case that may be ill conditioned, by an upper bound, is one for the chunked form, which verifies its solutions.
    """
    if not computable(q, k, v) or (regularizer == "constant" and (log_forget is not None or state is not None)):
        return False
    return bool((_condition(k, ridge, log_forget, write, state) * torch.finfo(k.dtype).eps <= LARGEST_RESIDUAL).all())


@torch.no_grad()
def _condition(
    k: Tensor, ridge: Tensor, log_forget: Tensor | None, write: Tensor | None, state: MesaState | None
) -> Tensor:
    """An upper bound of the condition numbers of all H_t of every head, `[B, H]`."""
    keys = k if write is None else k * write.sqrt()[..., None]
    energy = torch.linalg.vector_norm(keys, dim=(1, 3)).square()
    if state is None:
        largest, smallest = ridge.amax(-1), ridge.amin(-1)
    else:
        spread = state.matrix.diagonal(dim1=-2, dim2=-1)
        largest, smallest = 1 / spread.amin(-1), 1 / spread.amax(-1)
    if log_forget is not None:
        smallest = smallest * log_forget.sum(1).exp()
    return (largest + energy) / smallest


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
    """Mesa attention of checked operands; see `Attend`."""
    inverse = association = None
    if state is not None:
        inverse, association = (state.matrix + state.matrix.mT) / 2, state.association
    operands = (q, k, v, ridge[:, None], write, log_forget, inverse, association)
    tracked = torch.is_grad_enabled() and any(operand is not None and operand.requires_grad for operand in operands)
    o, _, final_inverse, final_association = _forward(*operands, tracked, return_state)
    if not return_state:
        return o, None
    if tracked:
        final_inverse, final_association = _final_state(k, v, ridge, log_forget, write, inverse, association)
    return o, MesaState("initial", final_inverse, final_association)


def _final_state(
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    log_forget: Tensor | None,
    write: Tensor | None,
    inverse: Tensor | None,
    association: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """H_T^-1 and G_T as differentiable functions of everything, in float64: what the kernels return has no gradient."""
    keys, values = (operand.transpose(1, 2).double() for operand in (k, v))
    weights = None if write is None else write.transpose(1, 2).double()
    kept = torch.ones((), dtype=torch.float64)
    if log_forget is not None:
        forget = log_forget.transpose(1, 2).double()
        left, kept = remaining_at_end(forget), forget.sum(-1).exp()[..., None, None]
        weights = left if weights is None else weights * left
    written = keys if weights is None else keys * weights[..., None]
    start = torch.diag_embed(ridge.double()) if inverse is None else torch.linalg.inv(inverse.double())
    final_inverse = torch.linalg.inv(written.mT @ keys + kept * start)
    final_association = values.mT @ written
    if association is not None:
        final_association = final_association + kept * association.double()
    return final_inverse.to(k.dtype), final_association.to(k.dtype)


@torch.library.custom_op("mesascope::mesa_attention", mutates_args=(), device_types="cpu")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    write: Tensor | None,
    log_forget: Tensor | None,
    inverse: Tensor | None,
    association: Tensor | None,
    save: bool,
    final: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """o, what the backward pass needs, H_T^-1 and G_T; the last three are empty where they are not asked for."""
    (batch, time, heads, d), d_v = k.shape, v.shape[-1]
    kernels = kernel_module()
    saved_size = kernels.mesa_saved_size_float if k.dtype == torch.float32 else kernels.mesa_saved_size_double
    saved = k.new_empty(saved_size(batch, time, heads, d, d_v, _LAYOUT) if save else 0)
    states = (k.new_empty(batch, heads, d, d), k.new_empty(batch, heads, d_v, d)) if final else (None, None)
    o = torch.empty(v.shape, dtype=v.dtype)
    start = (_contiguous(inverse), _contiguous(association))
    threads = torch.get_num_threads()
    kernels.mesa_forward(q, k, v, ridge, write, log_forget, *start, o, saved, *states, threads, _LAYOUT)
    return o, saved, _given(states[0], k), _given(states[1], k)


@torch.library.custom_op("mesascope::mesa_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    write: Tensor | None,
    log_forget: Tensor | None,
    inverse: Tensor | None,
    association: Tensor | None,
    saved: Tensor,
    g: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, ridge `[B, H, D]`, write, the sum of pairs and that of the association; or empty."""
    (batch, _, heads, d), d_v = k.shape, v.shape[-1]
    dq, dk, dv = (torch.empty(operand.shape, dtype=operand.dtype) for operand in (q, k, v))
    dridge = k.new_empty(batch, heads, d)
    dwrite = None if write is None and log_forget is None else k.new_empty(k.shape[:3])
    pairs = None if inverse is None else k.new_empty(batch, heads, d, d)
    dassociation = None if association is None else k.new_empty(batch, heads, d_v, d)
    start = (_contiguous(inverse), _contiguous(association))
    gradients = (dq, dk, dv, dridge, dwrite, dassociation, pairs)
    threads = torch.get_num_threads()
    kernel_module().mesa_backward(q, k, v, ridge, write, log_forget, *start, saved, g, *gradients, threads, _LAYOUT)
    return dq, dk, dv, dridge, _given(dwrite, k), _given(pairs, k), _given(dassociation, k)


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
    inverse: Tensor | None,
    association: Tensor | None,
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
    inverse: Tensor | None,
    association: Tensor | None,
    saved: Tensor,
    g: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (batch, _, heads, d), d_v = k.shape, v.shape[-1]
    gated = write is not None or log_forget is not None
    return (
        q.new_empty(q.shape),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
        k.new_empty(batch, heads, d),
        k.new_empty(k.shape[:3] if gated else 0),
        k.new_empty(0 if inverse is None else (batch, heads, d, d)),
        k.new_empty(0 if association is None else (batch, heads, d_v, d)),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    o, saved, _, _ = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:-2], saved, o)


def _gradients(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    q, k, v, ridge, write, log_forget, inverse, association, saved, o = ctx.saved_tensors
    dq, dk, dv, dridge, dwrite, pairs, dassociation = _backward(
        q, k, v, ridge, write, log_forget, inverse, association, saved, g
    )
    dforget = dinverse = None
    if log_forget is not None:
        own = (g * o).sum(-1, dtype=torch.float64) - (dq * q).sum(-1, dtype=torch.float64)
        own -= dwrite.double() * (1 if write is None else write)
        # terms of both signs: summed in float64, or the first tokens of a long sequence keep few digits
        dforget = own.flip(1).cumsum(1).flip(1).to(k.dtype)
    if inverse is not None:
        # dL/dH_0 = -sum of pairs, and R_0 = H_0^-1
        start = torch.linalg.inv(inverse.double())
        outer = start @ pairs.double() @ start
        dinverse = ((outer + outer.mT) / 2).to(k.dtype)
    return (
        dq,
        dk,
        dv,
        None if inverse is not None else dridge[:, None],
        None if write is None else dwrite,
        dforget,
        dinverse,
        None if association is None else dassociation,
        None,
        None,
    )


_forward.register_autograd(_gradients, setup_context=_keep)
