"""Mesa attention in chunks: exact, plain torch on any device, differentiable any number of times.

    o_t = G_t H_t^-1 q_t = sum_{i<=t} beta_i m_{t,i} v_i (k_i . y_t) + m_{t,0} G_0 y_t,     y_t = H_t^-1 q_t

so it is a causal solve followed by gated linear attention (arXiv 2309.05858, eqs. 4-20). Kept for the backward pass are
tensors of the size of q, k and v; while it computes, also one D x D matrix per chunk of 32 tokens and head.
"""

import torch
from torch import Tensor

from mesascope.errors import InputError
from mesascope.ops.mesa.case import Case
from mesascope.ops.mesa.causal_solve import causal_solve
from mesascope.ops.mesa.gated import gated_sum, remaining, remaining_at_end
from mesascope.ops.mesa.problem import Regularizer
from mesascope.ops.mesa.state import MesaState


def attend(case: Case) -> tuple[Tensor, MesaState | None]:
    """Mesa attention of checked operands; see `Attend`."""
    q, k, v, ridge, log_forget, write, regularizer, state, return_state = case
    q, k, v = (operand.transpose(1, 2) for operand in (q, k, v))
    log_forget, write = (None if gate is None else gate.transpose(1, 2) for gate in (log_forget, write))
    if state is not None:
        state = MesaState(regularizer, (state.matrix + state.matrix.mT) / 2, state.association)
    queries = q
    invert = return_state and regularizer == "initial"
    if invert:
        # solving for the columns of the identity after the last token gives H_T^-1 and all its derivatives
        queries = torch.cat([q, torch.eye(q.shape[-1], dtype=q.dtype, device=q.device).expand(*q.shape[:2], -1, -1)], 2)
    solved = solve_queries(queries, k, ridge, log_forget, write, regularizer, state)
    y, inverse = solved[:, :, : q.shape[2]], solved[:, :, q.shape[2] :]
    written = v if write is None else write[..., None] * v
    output = gated_sum(y, k, written, log_forget)
    if state is not None:
        recalled = y @ state.association.mT
        output = output + (recalled if log_forget is None else remaining(log_forget)[..., None] * recalled)
    if not return_state:
        return output.transpose(1, 2), None
    if log_forget is not None:
        written = remaining_at_end(log_forget)[..., None] * written
    association = _add_remaining(written.mT @ k, None if state is None else state.association, log_forget)
    if invert:
        matrix = (inverse + inverse.mT) / 2
    else:
        weights = write if log_forget is None else remaining_at_end(log_forget) * (1 if write is None else write)
        keys = k if weights is None else weights[..., None] * k
        matrix = _add_remaining(keys.mT @ k, None if state is None else state.matrix, log_forget)
    return output.transpose(1, 2), MesaState(regularizer, matrix, association)


def solve_queries(
    q: Tensor,
    k: Tensor,
    ridge: Tensor,
    log_forget: Tensor | None,
    write: Tensor | None,
    regularizer: Regularizer,
    state: MesaState | None,
) -> Tensor:
    """H_t^-1 q_t; operands `[B, H, T, D]`, the state symmetric; queries after the last key are solved with H_T."""
    extra = q.shape[2] - k.shape[2]
    if extra:
        k = torch.nn.functional.pad(k, (0, 0, 0, extra))
        log_forget, write = (
            None if gate is None else torch.nn.functional.pad(gate, (0, extra)) for gate in (log_forget, write)
        )
    if state is None:
        return causal_solve(q, k, write, log_forget, ridge, None, regularizer)
    if regularizer == "constant":
        return causal_solve(q, k, write, log_forget, ridge, state.matrix, regularizer)
    # with R_0 = F F^T: H_t^-1 = F (m_{t,0} I + sum_i beta_i m_{t,i} F^T k_i k_i^T F)^-1 F^T needs no inverse of R_0
    try:
        root = torch.linalg.cholesky(state.matrix)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise InputError(
            f"state: its inverse matrix is not positive definite in {state.matrix.dtype}; it was changed, or wound up "
            'by forgetting directions that no key excites; use regularizer="constant", forget less, or float64'
        ) from error
    return causal_solve(q @ root, k @ root, write, log_forget, torch.ones_like(ridge), None, regularizer) @ root.mT


def _add_remaining(own: Tensor, start: Tensor | None, log_forget: Tensor | None) -> Tensor:
    """What a state becomes: what remains of it at the end, and what was added."""
    if start is None:
        return own
    return own + (start if log_forget is None else log_forget.sum(-1).exp()[..., None, None] * start)
