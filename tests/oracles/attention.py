"""Attention by its definitions: one loop over batch, heads and time, one dense solve per output.

Nothing conjugates, so every function also takes complex arguments, and `complex_step_gradients` differentiates it
without cancellation (W. Squire and G. Trapp, SIAM Review 40, 1998).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def linear_attention(q: Array, k: Array, v: Array) -> Array:
    """o_t = sum_{t' <= t} v_t' (k_t' . q_t); operands `[B, T, H, D]`."""
    return _attend(q, k, v, lambda keys, query, head: keys @ query)


def softmax_attention(q: Array, k: Array, v: Array) -> Array:
    """o_t = sum_{t' <= t} v_t' softmax_t'(k_t' . q_t / sqrt(D))."""

    def weights(keys: Array, query: Array, head: tuple[int, int]) -> Array:
        logits = keys @ query / np.sqrt(q.shape[-1])
        exponentials = np.exp(logits - logits.real.max())
        return exponentials / exponentials.sum()

    return _attend(q, k, v, weights)


def mesa_attention(q: Array, k: Array, v: Array, ridge: Array) -> Array:
    """o_t = V_t K_t^T (K_t K_t^T + ridge I)^-1 q_t with the first t keys and values; ridge `[B, H]` or broadcast."""
    ridge = np.broadcast_to(ridge, (q.shape[0], q.shape[2]))

    def weights(keys: Array, query: Array, head: tuple[int, int]) -> Array:
        hessian = keys.T @ keys + ridge[head] * np.eye(keys.shape[1])
        return keys @ np.linalg.solve(hessian, query)

    return _attend(q, k, v, weights)


def complex_step_gradients(function: Callable[..., Array], arguments: list[Array], cotangent: Array) -> list[Array]:
    """Gradients of sum(cotangent * function(*arguments)) with respect to every argument, to machine precision."""
    gradients = []
    for position, argument in enumerate(arguments):
        gradient = np.zeros(argument.shape)
        for index in np.ndindex(argument.shape):
            shifted = argument.astype(np.complex128)
            shifted[index] += 1e-30j
            output = function(*arguments[:position], shifted, *arguments[position + 1 :])
            gradient[index] = (cotangent * output.imag).sum() / 1e-30
        gradients.append(gradient)
    return gradients


def _attend(q: Array, k: Array, v: Array, weights: Callable[[Array, Array, tuple[int, int]], Array]) -> Array:
    batch, time, heads, _ = q.shape
    output = np.zeros((batch, time, heads, v.shape[-1]), dtype=np.complex128)
    for b in range(batch):
        for h in range(heads):
            for t in range(time):
                output[b, t, h] = weights(k[b, : t + 1, h], q[b, t, h], (b, h)) @ v[b, : t + 1, h]
    return output if output.imag.any() else output.real
