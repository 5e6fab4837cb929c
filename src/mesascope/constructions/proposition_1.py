"""Proposition 1: one head of linear attention is one gradient step on in-context least squares.

Source: arXiv 2309.05858, Proposition 1. With L_t(Phi) = 1/2 sum_{t' < t} ||s_{t'+1} - Phi s_{t'}||^2,

    prediction at t = (Phi_0 - eta grad L_t(Phi_0)) s_t.

Differences from the paper: (1) tokens have four slots, the head reads the last two and leaves the second alone.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.constructions.slots import CURRENT, OUTPUT, PREVIOUS, SlotHead, SlotLayer, build, read_slot
from mesascope.errors import require
from mesascope.nn import Transformer
from mesascope.tasks import ConstructedTokens


def proposition_1(
    n_s: int,
    step_size: float,
    initial_weights: Float[Tensor, "n_s n_s"] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Transformer:
    """A layer of linear attention that takes one gradient step of size `step_size` from `initial_weights`.

    Args:
        n_s: size of an observation.
        step_size: eta.
        initial_weights: Phi_0, `[n_s, n_s]`; None for zero. Otherwise the model expects `proposition_1_tokens`.
        dtype: of the weights.

    Returns:
        A Transformer that reads `ConstructedTokens()` and equals the step up to rounding.

    Raises:
        InputError: `n_s` is not positive or `initial_weights` is not `[n_s, n_s]`.
    """
    require(n_s >= 1, "n_s", n_s, "at least 1")
    values = read_slot(n_s, CURRENT, step_size)
    if initial_weights is not None:
        _require_square(initial_weights, n_s)
        values = values - step_size * initial_weights.double() @ read_slot(n_s, PREVIOUS)
    head = SlotHead(keys=PREVIOUS, queries=CURRENT, values=values, output=OUTPUT)
    return build(n_s, [SlotLayer((head,))], name="1 gradient step (Proposition 1)", dtype=dtype)


def proposition_1_tokens(
    observations: Float[Tensor, "batch time n_s"], initial_weights: Float[Tensor, "n_s n_s"]
) -> Float[Tensor, "batch time n_e"]:
    """Tokens `[Phi_0 s_t, s_t, s_t, s_{t-1}]`, `[B, T, 4 n_s]`: slot 0 starts at the prediction of the initial weights.

    Raises:
        InputError: `initial_weights` is not `[n_s, n_s]`.
    """
    n_s = observations.shape[-1]
    _require_square(initial_weights, n_s)
    tokens = ConstructedTokens()(observations)
    return torch.cat([observations @ initial_weights.to(observations).T, tokens[..., n_s:]], dim=-1)


def _require_square(initial_weights: Tensor, n_s: int) -> None:
    shape = tuple(initial_weights.shape)
    require(shape == (n_s, n_s), "initial_weights", shape, f"of shape [n_s, n_s] = {(n_s, n_s)}")
