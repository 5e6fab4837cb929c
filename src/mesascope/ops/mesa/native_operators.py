"""The native kernels of mesa attention as operators that torch knows.

One pass over the tokens forward, two backward (arXiv 2309.05858, eqs. 4-20 and appendix C.2); kept for the backward
pass are numbers of twice the size of k. Under torch.compile it is two opaque calls; vmap does not map it.
"""

from typing import Any

import torch
from torch import Tensor

from mesascope.ops.kernels import kernel_module
from mesascope.ops.operators import operator

_LAYOUT = "auto"


@operator("mesa_attention")
def mesa_forward(
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
    kernels = kernel_module()
    saved_size = kernels.mesa_saved_size_float if k.dtype == torch.float32 else kernels.mesa_saved_size_double
    buffers = _outputs(k, v, saved_size(*k.shape, v.shape[-1], _LAYOUT) if save else 0, final)
    o, saved, *finals = buffers
    start = (_contiguous(matrix), _contiguous(association), constant)
    written = (o, saved, *(_present(buffer) for buffer in finals))
    kernels.mesa_forward(q, k, v, ridge, write, log_forget, *start, *written, torch.get_num_threads(), _LAYOUT)
    return buffers


def _outputs(k: Tensor, v: Tensor, saved: Any, final: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for the results of `mesa_forward`."""
    (batch, _, heads, d), d_v = k.shape, v.shape[-1]
    sizes = ((batch, heads, d, d), (batch, heads, d_v, d)) if final else ((0,), (0,))
    return v.new_empty(v.shape), k.new_empty(saved), k.new_empty(sizes[0]), k.new_empty(sizes[1])


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
    """Gradients of q, k, v, ridge `[B, H, D]`, write; the penalties, dG_0, the sum of pairs; empty if not needed."""
    buffers = _gradient_buffers(q, k, v, ridge, write, log_forget, matrix, association, constant)
    start = (_contiguous(matrix), _contiguous(association), constant)
    written = (*buffers[:4], *(_present(buffer) for buffer in buffers[4:]))
    kernel_module().mesa_backward(
        q, k, v, ridge, write, log_forget, *start, saved, g, *written, torch.get_num_threads(), _LAYOUT
    )
    return buffers


def _gradient_buffers(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    write: Tensor | None,
    log_forget: Tensor | None,
    matrix: Tensor | None,
    association: Tensor | None,
    constant: bool,
    *_: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Memory for the results of `_backward`, from its operands."""
    (batch, _time, heads, d), d_v = k.shape, v.shape[-1]
    gated = write is not None or log_forget is not None
    return (
        q.new_empty(q.shape),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
        k.new_empty(batch, heads, d),
        k.new_empty(k.shape[:3] if gated else 0),
        k.new_empty(k.shape[:3] if constant else 0),
        k.new_empty(0 if association is None else (batch, heads, d_v, d)),
        k.new_empty(0 if matrix is None else (batch, heads, d, d)),
    )


def _present(buffer: Tensor) -> Tensor | None:
    """An operator returns tensors only, so that an empty one stands for none; the kernels want None."""
    return buffer if buffer.numel() else None


def _contiguous(matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else matrix.contiguous()


@mesa_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, save, final = others
    return _outputs(k, v, torch.library.get_ctx().new_dynamic_size() if save else 0, final)


_backward.register_fake(_gradient_buffers)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.constant, _, _ = inputs
    o, saved, *_ = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, saved, o)


def _gradients(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *operands, saved, o = ctx.saved_tensors
    q, k, _, _, write, log_forget, matrix, association = operands
    dq, dk, dv, dridge, dwrite, penalty, dassociation, pairs = _backward(*operands, ctx.constant, saved, g)
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


mesa_forward.register_autograd(_gradients, setup_context=_keep)
_backward.refuse_gradient()
