"""Calls of the native kernels of mesa attention, and their gradient.

One pass over the tokens forward, two backward (arXiv 2309.05858, eqs. 4-20 and appendix C.2); kept for the backward
pass are numbers of two to three times the size of k.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mesascope.ops.kernels import kernels, stored
from mesascope.ops.mesa.checks import check_ridge_range

_LAYOUT = "auto"


class Inputs(NamedTuple):
    """What the kernels read, all of one dtype, on the CPU.

    Attributes:
        q, k: `[B, T, H, D]`.
        v: `[B, T, H, Dv]`.
        ridge: of any shape that `expand_ridge` takes.
        write, log_forget: `[B, T, H]` or None.
        matrix: H_0^-1, or C_0 if `constant`, `[B, H, D, D]`, contiguous; or None.
        largest: the largest eigenvalue of H_0, or C_0 if `constant`, `[B, H]`, contiguous; with a matrix.
        association: G_0, `[B, H, Dv, D]`, contiguous; or None.
        constant: whether the ridge is not forgotten.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    ridge: Tensor
    write: Tensor | None
    log_forget: Tensor | None
    matrix: Tensor | None
    largest: Tensor | None
    association: Tensor | None
    constant: bool


class Evidence(NamedTuple):
    """What tells how many digits are kept, the largest over all heads and tokens.

    Attributes:
        gain: write_t k_t . H^-1 k_t, with what H was before a chunk of tokens; the ridge if `constant`.
        condition: an estimate of the condition number of H_t for queries of all directions alike, |H_t| |H_t^-1| /
            sqrt(D) with the Frobenius norm of H_t^-1.
        zero: 0; NaN if k or o is not finite, or has overflowed in a sum. Without columns of v nothing is known of q.
        smallest_ridge, largest_ridge: over all coordinates.
    """

    gain: float
    condition: float
    zero: float
    smallest_ridge: float
    largest_ridge: float


class Results(NamedTuple):
    """What the forward kernel writes and returns.

    Attributes:
        o: `[B, T, H, Dv]`.
        evidence: see there.
        saved: what the backward kernel needs, or None.
        matrix, association: the final H_T^-1, or C_T if `constant`, and G_T; None unless asked for.
    """

    o: Tensor
    evidence: Evidence
    saved: Tensor | None
    matrix: Tensor | None
    association: Tensor | None


def mesa_forward(inputs: Inputs, *, final: bool) -> Results:
    """The forward pass, without gradients."""
    return _run(inputs, save=False, final=final)


def differentiable_mesa_forward(inputs: Inputs) -> tuple[Tensor, Evidence]:
    """`o`, differentiable once, and `evidence`."""
    o, evidence = _MesaAttention.apply(*inputs)  # type: ignore[no-untyped-call]
    return o, evidence


def _run(inputs: Inputs, *, save: bool, final: bool) -> Results:
    o, evidence, *optional = kernels().mesa_forward(*inputs, save, final, _LAYOUT, torch.get_num_threads())
    results = Results(o, Evidence(*evidence), *optional)
    # nothing was computed if there is an error
    check_ridge_range(results.evidence.smallest_ridge, results.evidence.largest_ridge)
    return results


class _Gradients(NamedTuple):
    """What the backward kernel writes; None what is not needed.

    Attributes:
        q, k, v, ridge, write: of the shapes of the operands; no `ridge` where it is in the state.
        penalty: sum_d ridge_d w_(t,d) q~_(t,d), `[B, T, H]`.
        association: `[B, H, Dv, D]`.
        pairs: -dL/dH_0, `[B, H, D, D]`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    ridge: Tensor | None
    write: Tensor | None
    penalty: Tensor | None
    association: Tensor | None
    pairs: Tensor | None


class _MesaAttention(torch.autograd.Function):
    # not with `setup_context`, for which every call inspects the signature: torch.func cannot use the kernels anyway
    @staticmethod
    def forward(ctx: Any, *operands: Any) -> tuple[Tensor, Evidence]:
        inputs = Inputs(*operands)
        o, evidence, saved, *_ = _run(inputs, save=True, final=False)
        *tensors, ctx.constant = inputs
        # the gradient of log_forget needs the output
        ctx.save_for_backward(*tensors, saved, None if inputs.log_forget is None else o)
        return o, evidence

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: None) -> tuple[Tensor | None, ...]:
        *tensors, saved, o = ctx.saved_tensors
        inputs = Inputs._make([*tensors, ctx.constant])
        if not torch.is_grad_enabled():
            return _backward(inputs, saved, o, g)
        gradients: tuple[Tensor | None, ...] = _MesaGradients.apply(saved, o, g, *inputs)  # type: ignore[no-untyped-call]
        return gradients


class _MesaGradients(torch.autograd.Function):
    """The gradients where they are part of a graph, which leads to an error: zeros would be wrong."""

    @staticmethod
    def forward(ctx: Any, saved: Tensor, o: Tensor | None, g: Tensor, *inputs: Any) -> tuple[Tensor | None, ...]:
        return _backward(Inputs(*inputs), saved, o, g)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "mesa attention: the native kernels are differentiable once; use backend='chunked' or 'reference'"
        )


def _backward(inputs: Inputs, saved: Tensor, o: Tensor | None, g: Tensor) -> tuple[Tensor | None, ...]:
    g = stored(g)
    if torch._C._functorch.is_batchedtensor(g) or torch._C._functorch.is_legacy_batchedtensor(g):
        raise RuntimeError(
            "mesa attention: its gradients cannot be mapped (torch.vmap, is_grads_batched, vectorize); "
            "ask for one at a time"
        )
    found = _Gradients(*kernels().mesa_backward(*inputs, saved, g, _LAYOUT, torch.get_num_threads()))
    dforget = None if inputs.log_forget is None else _forget_gradient(inputs, found, o, g)
    dmatrix = None if inputs.matrix is None else _matrix_gradient(inputs, found)
    dwrite = None if inputs.write is None else found.write
    return found.q, found.k, found.v, found.ridge, dwrite, dforget, dmatrix, None, found.association, None


def _forget_gradient(inputs: Inputs, found: _Gradients, o: Tensor | None, g: Tensor) -> Tensor:
    assert found.write is not None
    assert o is not None
    terms = (g * o).sum(-1, dtype=torch.float64) - (found.q * inputs.q).sum(-1, dtype=torch.float64)
    terms -= found.write.double() * (1 if inputs.write is None else inputs.write)
    if found.penalty is not None:
        terms += found.penalty
    # of both signs: summed in float64, or the first tokens of a long sequence keep few digits
    return terms.flip(1).cumsum(1).flip(1).to(o.dtype)


def _matrix_gradient(inputs: Inputs, found: _Gradients) -> Tensor:
    assert inputs.matrix is not None
    assert found.pairs is not None
    gradient = -found.pairs.double()
    if not inputs.constant:
        # pairs are -dL/dH_0, and R_0 = H_0^-1
        start = torch.linalg.inv(inputs.matrix.double())
        gradient = -start @ gradient @ start
    return ((gradient + gradient.mT) / 2).to(inputs.matrix.dtype)
