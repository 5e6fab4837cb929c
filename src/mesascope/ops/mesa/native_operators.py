"""Calls of the native kernels of mesa attention, and their gradient.

One pass over the tokens forward, two backward (arXiv 2309.05858, eqs. 4-20 and appendix C.2); kept for the backward
pass are numbers of twice the size of k.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mesascope.ops.kernels import address, kernel, optional_address, problem_shape, uninitialised

_LAYOUT = "auto"


class Inputs(NamedTuple):
    """What the kernels read, all of one dtype, on the CPU.

    Attributes:
        q, k: `[B, T, H, D]`.
        v: `[B, T, H, Dv]`.
        ridge: `[B, H, D]`.
        write, log_forget: `[B, T, H]` or None.
        matrix: H_0^-1, or C_0 if `constant`, `[B, H, D, D]`, contiguous; or None.
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
    association: Tensor | None
    constant: bool

    def arguments(self) -> tuple[Any, ...]:
        """In the order of the kernels."""
        q, k, v, ridge, *optional, constant = self
        operands = (address(q), address(k), address(v), address(ridge), *map(optional_address, optional))
        return (problem_shape(k, v), *operands, constant)


class Summary(NamedTuple):
    """Of all heads together.

    Attributes:
        total, largest: the largest sum and the maximum over time of write |k|^2.
        zero: 0, or NaN unless q, k, v are finite.
        smallest_ridge, largest_ridge: over all coordinates.
    """

    total: float
    largest: float
    zero: float
    smallest_ridge: float
    largest_ridge: float


class Results(NamedTuple):
    """What the forward kernel writes and returns.

    Attributes:
        o: `[B, T, H, Dv]`.
        evidence: `[B, H, 3]`: the sum and the maximum over time of write |k|^2, and 0; NaN unless q, k, v are finite.
        summary: the largest of them.
        saved: what the backward kernel needs, or None.
        matrix, association: the final H_T^-1, or C_T if `constant`, and G_T; None unless asked for.
    """

    o: Tensor
    evidence: Tensor
    summary: Summary
    saved: Tensor | None
    matrix: Tensor | None
    association: Tensor | None


def mesa_forward(inputs: Inputs, *, final: bool) -> Results:
    """The forward pass, without gradients."""
    return _run(inputs, save=False, final=final)


def differentiable_mesa_forward(inputs: Inputs) -> tuple[Tensor, Tensor, Summary]:
    """`o`, differentiable once, `evidence` and `summary`."""
    o, evidence, summary = _MesaAttention.apply(*inputs)  # type: ignore[no-untyped-call]
    return o, evidence, summary


def _run(inputs: Inputs, *, save: bool, final: bool) -> Results:
    k, v = inputs.k, inputs.v
    batch, _, heads, d, d_v = shape = problem_shape(k, v)
    o, evidence = uninitialised(v, v.shape), k.new_empty(batch, heads, 3)
    optional = (
        uninitialised(k, (kernel("mesa_saved_size", k.dtype)(shape, _LAYOUT),)) if save else None,
        k.new_empty(batch, heads, d, d) if final else None,
        k.new_empty(batch, heads, d_v, d) if final else None,
    )
    results = (address(o), address(evidence), *map(optional_address, optional))
    summary = kernel("mesa_forward", k.dtype)(*inputs.arguments(), *results, _LAYOUT, torch.get_num_threads())
    return Results(o, evidence, Summary(*summary), *optional)


class _Gradients(NamedTuple):
    """What the backward kernel writes; None what is not needed.

    Attributes:
        q, k, v, ridge, write: of the shapes of the operands; `ridge` also if it is in the state.
        penalty: sum_d ridge_d w_(t,d) q~_(t,d), `[B, T, H]`.
        association: `[B, H, Dv, D]`.
        pairs: -dL/dH_0, `[B, H, D, D]`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    ridge: Tensor
    write: Tensor | None
    penalty: Tensor | None
    association: Tensor | None
    pairs: Tensor | None


def _run_backward(inputs: Inputs, saved: Tensor, g: Tensor) -> _Gradients:
    q, k, v, ridge, write, log_forget, matrix, association, constant = inputs
    gated = write is not None or log_forget is not None
    gradients = _Gradients(
        uninitialised(q, q.shape),
        uninitialised(k, k.shape),
        uninitialised(v, v.shape),
        k.new_empty(ridge.shape),
        k.new_empty(k.shape[:3]) if gated else None,
        k.new_empty(k.shape[:3]) if constant else None,
        None if association is None else k.new_empty(association.shape),
        None if matrix is None else k.new_empty(matrix.shape),
    )
    addresses = map(optional_address, gradients)
    run = kernel("mesa_backward", k.dtype)
    run(*inputs.arguments(), address(saved), address(g), *addresses, _LAYOUT, torch.get_num_threads())
    return gradients


class _MesaAttention(torch.autograd.Function):
    # not with `setup_context`, for which every call inspects the signature: torch.func cannot use the kernels anyway
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Summary]:
        o, evidence, summary, saved, *_ = _run(Inputs(*inputs), save=True, final=False)
        *tensors, ctx.constant = inputs
        ctx.mark_non_differentiable(evidence)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, saved, o)
        return o, evidence, summary

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if g is None:
            return (None,) * len(Inputs._fields)
        q, k, v, ridge, write, log_forget, matrix, association, saved, o = ctx.saved_tensors
        inputs = Inputs(q, k, v, ridge, write, log_forget, matrix, association, ctx.constant)
        g = g.resolve_neg()
        found = _run_backward(inputs, saved, g)
        dforget = None if inputs.log_forget is None else _forget_gradient(inputs, found, o, g)
        dmatrix = None if inputs.matrix is None else _matrix_gradient(inputs, found)
        dridge = None if inputs.matrix is not None and not inputs.constant else found.ridge
        dwrite = None if inputs.write is None else found.write
        return found.q, found.k, found.v, dridge, dwrite, dforget, dmatrix, found.association, None


def _forget_gradient(inputs: Inputs, found: _Gradients, o: Tensor, g: Tensor) -> Tensor:
    assert found.write is not None
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
