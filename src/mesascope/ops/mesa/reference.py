"""The mesa layer by its definition: one ridge regression solved per time step. Slow, and the yardstick for the rest."""

import torch
from jaxtyping import Float
from torch import Tensor


def mesa_attention_reference(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    v: Float[Tensor, "batch time heads d_v"],
    ridge: Float[Tensor, "*#heads"],
) -> Float[Tensor, "batch time heads d_v"]:
    """o_t = G_t (sum_{t' <= t} k_t' k_t'^T + ridge I)^-1 q_t with G_t = sum_{t' <= t} v_t' k_t'^T.

    Arguments and errors as in `mesa_attention`. Solves T dense systems per head in float64, in O(T D^3), and returns
    the dtype of `q`. Differentiable any number of times.
    """
    dtype = q.dtype
    q, k, v, ridge = (operand.double() for operand in (q, k, v, ridge))
    identity = torch.eye(k.shape[-1], dtype=torch.float64)
    ridge = ridge.expand(q.shape[0], q.shape[2])
    gram = torch.einsum("bthd,bthe->bthde", k, k).cumsum(1) + ridge[:, None, :, None, None] * identity
    association = torch.einsum("bthd,bthe->bthde", v, k).cumsum(1)
    solved = torch.linalg.solve(gram, q)
    return torch.einsum("bthde,bthe->bthd", association, solved).to(dtype)
