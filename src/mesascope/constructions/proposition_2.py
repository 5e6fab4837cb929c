"""Proposition 2: layers that precondition the query by an iterative solver, then one gradient step.

Layer k does x <- x + alpha_k (b - A_t x) + beta_k (x - x_before) with b = s_t and A_t = sum_{t' < t} s_t' s_t'^T + r I;
the last layer is Proposition 1 with query x, step size 1 and zero initial weights. As x approaches A_t^-1 s_t, the
prediction approaches that of ridge regression.

Attention gives the product with A_t - r I. The terms of the token itself are no attention sums, so the MLP of each
block adds them, as an exactly linear map of slots: slot 0 carries -beta_k x_before plus the product, slot 1 carries x.

Source: arXiv 2309.05858, Proposition 2 and eq. 9. Differences from the paper: (1) eq. 9 lacks the right-hand side b and
does not solve the system; (2) the printed matrices carry -alpha twice, here one of them does; (3) the paper leaves the
terms of the token itself open.
"""

from collections.abc import Sequence

import torch

from mesascope.constructions.slots import (
    COPY,
    CURRENT,
    NUM_SLOTS,
    OUTPUT,
    PREVIOUS,
    SlotHead,
    SlotLayer,
    block_matrix,
    build,
    read_slot,
)
from mesascope.errors import require
from mesascope.nn import Transformer


def proposition_2(
    n_s: int,
    alphas: Sequence[float],
    betas: Sequence[float],
    ridge: float,
    *,
    dtype: torch.dtype = torch.float32,
) -> Transformer:
    """K preconditioning layers of second-order Richardson iteration, then one gradient step.

    Args:
        n_s: size of an observation.
        alphas: step sizes of the K iterations.
        betas: their momenta. The iteration starts at rest from x = s_t, so the first has no effect.
        ridge: r, at least 0 (1 / lambda of the paper).
        dtype: of the weights.

    Returns:
        A Transformer of K + 1 layers with one head and, for K > 0, an MLP each that reads `ConstructedTokens()`.

    Raises:
        InputError: `alphas` and `betas` differ in length, or the ridge is negative.
    """
    require(len(betas) == len(alphas), "betas", betas, f"of the length of alphas ({len(alphas)})")
    require(ridge >= 0, "ridge", ridge, "at least 0")
    layers = []
    for index, alpha in enumerate(alphas):
        product = SlotHead(PREVIOUS, COPY, read_slot(n_s, PREVIOUS, -alpha), OUTPUT)
        beta = betas[index] if index > 0 else 0.0
        next_beta = betas[index + 1] if index + 1 < len(betas) else 0.0
        update = torch.zeros(NUM_SLOTS, NUM_SLOTS, dtype=torch.float64)
        update[COPY, COPY] = beta - alpha * ridge
        update[COPY, CURRENT] = alpha
        update[COPY, OUTPUT] = 1.0
        update[OUTPUT, COPY] = -next_beta
        update[OUTPUT, OUTPUT] = -1.0
        layers.append(SlotLayer((product,), block_matrix(update, n_s)))
    step = SlotHead(PREVIOUS, COPY, read_slot(n_s, CURRENT), OUTPUT)
    layers.append(SlotLayer((step,)))
    name = f"{len(alphas)} preconditioning steps, 1 gradient step (Proposition 2)"
    return build(n_s, layers, name=name, dtype=dtype)
