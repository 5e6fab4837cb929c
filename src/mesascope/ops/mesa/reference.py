"""Mesa attention by its definition: one dense solve per token, in float64. Slow, and the yardstick for the rest."""

import torch
from torch import Tensor

from mesascope.ops.mesa.case import Case
from mesascope.ops.mesa.checks import tracing
from mesascope.ops.mesa.problem import LARGEST_RESIDUAL, relative_size, singular
from mesascope.ops.mesa.state import MesaState


def attend(case: Case) -> tuple[Tensor, MesaState | None]:
    """Mesa attention of checked operands; see `Attend`. O(T D^3) time and O(T D^2) memory, returned in their dtype.

    H_t and G_t are built token by token as in arXiv 2309.05858, eqs. 4-13, and differentiated by autograd.
    """
    q, k, v, ridge, log_forget, write, regularizer, state, return_state = case
    dtype = q.dtype
    ones = torch.ones(k.shape[:3], dtype=torch.float64, device=k.device)
    keep, strength = (
        ones if log_forget is None else log_forget.double().exp(),
        ones if write is None else write.double(),
    )
    q, k, v, ridge = (operand.double() for operand in (q, k, v, ridge))
    penalty = torch.diag_embed(ridge)
    association = penalty.new_zeros((*penalty.shape[:2], v.shape[-1], k.shape[-1]))
    if state is not None:
        matrix, association = state.matrix.double(), state.association.double()
        hessian = torch.linalg.inv((matrix + matrix.mT) / 2) if regularizer == "initial" else (matrix + matrix.mT) / 2
    else:
        hessian = penalty if regularizer == "initial" else torch.zeros_like(penalty)
    outputs, residuals = [], []
    for t in range(q.shape[1]):
        kept, written = keep[:, t, :, None, None], strength[:, t, :, None, None] * k[:, t, :, None, :]
        hessian = kept * hessian + k[:, t, :, :, None] * written
        association = kept * association + v[:, t, :, :, None] * written
        regularised = hessian if regularizer == "initial" else hessian + penalty
        solved = torch.linalg.solve_ex(regularised, q[:, t, :, :, None])[0]
        outputs.append((association @ solved)[..., 0])
        residuals.append((q[:, t, :, :, None] - regularised @ solved)[..., 0].detach())
    if not tracing():
        error = relative_size(torch.stack(residuals, 1), q.detach())
        if not error <= LARGEST_RESIDUAL:
            raise singular(ridge, log_forget, regularizer, torch.float64, error)
    output = torch.stack(outputs, 1).to(dtype)
    if not return_state:
        return output, None
    matrix = torch.linalg.inv(hessian) if regularizer == "initial" else hessian
    return output, MesaState(regularizer, matrix.to(dtype), association.to(dtype))
