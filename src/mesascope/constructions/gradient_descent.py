"""K layers of linear attention that are exactly K gradient steps on in-context least squares.

With A_t = sum_{t' < t} s_t' s_t'^T + r I and G_t = sum_{t' < t} s_{t'+1} s_t'^T, K steps from Phi = 0 predict

    sum_j eta_j G_t y_j,   y_K = s_t,   y_{j-1} = (I - eta_j A_t) y_j,

so layer 1 takes the last step size. One head adds eta_j G_t y_j to the output slot, the other subtracts
eta_j (A_t - r I) y_j from the copy slot, which carries y_j divided by the product of the factors (1 - eta_i r) so far:
the ridge then needs no term of the token itself, which attention sums do not contain.

Source: arXiv 2309.05858, Propositions 1 and 2. Differences from the paper: (1) stacking its Proposition 1 is a biased
algorithm, because earlier tokens hold predictions of their own, shorter contexts; here every context takes all K steps.
"""

import math
from collections.abc import Sequence

import torch

from mesascope.constructions.slots import (
    COPY,
    CURRENT,
    OUTPUT,
    PREVIOUS,
    SlotHead,
    SlotLayer,
    build,
    read_slot,
)
from mesascope.errors import InputError, require
from mesascope.nn import Transformer


def gradient_descent(
    n_s: int, step_sizes: Sequence[float], *, ridge: float = 0.0, dtype: torch.dtype = torch.float32
) -> Transformer:
    """K layers of linear attention that equal K gradient steps from zero weights, at every t.

    The steps minimise 1/2 sum_{t' < t} ||s_{t'+1} - Phi s_{t'}||^2 + ridge/2 ||Phi||^2. With `chebyshev_step_sizes`
    they are K Chebyshev steps and approach the ridge regression of `ridge` fastest.

    Args:
        n_s: size of an observation.
        step_sizes: eta_1 .. eta_K, first to last step, one layer each.
        ridge: r, at least 0.
        dtype: of the weights.

    Returns:
        A Transformer of K layers with two heads that reads `ConstructedTokens()`.

    Raises:
        InputError: no step, a negative ridge, or a step after the first with eta * ridge = 1, which would leave nothing
            of y to divide by.
    """
    require(len(step_sizes) >= 1, "step_sizes", step_sizes, "at least one step")
    require(ridge >= 0, "ridge", ridge, "at least 0")
    scale, layers = 1.0, []
    for index in reversed(range(len(step_sizes))):
        step_size = step_sizes[index]
        heads = [SlotHead(PREVIOUS, COPY, read_slot(n_s, CURRENT, step_size * scale), OUTPUT)]
        # nothing reads y after the last layer
        if index > 0:
            shrinkage = 1 - step_size * ridge
            if shrinkage == 0:
                raise InputError(f"step_sizes[{index}]: got {step_size}, but it must differ from 1 / ridge")
            heads.append(SlotHead(PREVIOUS, COPY, read_slot(n_s, PREVIOUS, -step_size / shrinkage), COPY))
            scale *= shrinkage
        layers.append(SlotLayer(tuple(heads)))
    return build(n_s, layers, name=f"{len(step_sizes)} gradient steps", dtype=dtype)


def chebyshev_step_sizes(low: float, high: float, steps: int) -> tuple[float, ...]:
    """Step sizes of K gradient steps whose error is smallest for the worst eigenvalue of A_t in [low, high].

    They are the reciprocals of the K Chebyshev nodes of the interval; the error of the predictions falls like
    2 ((sqrt kappa - 1) / (sqrt kappa + 1))^K with kappa = high / low. Their order does not change the result of exact
    arithmetic; Leja's order keeps the partial products small, and so the rounding.

    Args:
        low, high: bounds of the spectrum of A_t, 0 < low <= high. The ridge is a lower bound.
        steps: K.

    Raises:
        InputError: the bounds are not positive and ordered or `steps` is not positive.
    """
    require(low > 0, "low", low, "greater than 0")
    require(high >= low, "high", high, f"at least low ({low})")
    require(steps >= 1, "steps", steps, "at least 1")
    nodes = [math.cos(math.pi * (2 * index + 1) / (2 * steps)) for index in range(steps)]
    centre, radius = (high + low) / 2, (high - low) / 2
    return tuple(1 / (centre + radius * node) for node in _leja_order(nodes))


def _leja_order(nodes: Sequence[float]) -> list[float]:
    """Distinct nodes, each as far as possible from those before it (product of distances)."""
    remaining = sorted(nodes, key=abs)
    ordered = [remaining.pop()]
    while remaining:
        # sums of logarithms, as products of many distances would underflow
        farthest = max(remaining, key=lambda node: sum(math.log(abs(node - chosen)) for chosen in ordered))
        remaining.remove(farthest)
        ordered.append(farthest)
    return ordered
