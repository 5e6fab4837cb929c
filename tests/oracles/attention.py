"""Attention by its definitions: one loop over batch, heads and time, one dense solve per output.

Nothing conjugates, so every function also takes complex arguments, and `complex_step_gradients` differentiates it
without cancellation (W. Squire and G. Trapp, SIAM Review 40, 1998).
"""

from collections.abc import Callable
from typing import Any

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


def mesa_attention(q: Array, k: Array, v: Array, ridge: Array, **options: Any) -> Array:
    """The output of `mesa`."""
    return mesa(q, k, v, ridge, **options)[0]


def mesa(
    q: Array,
    k: Array,
    v: Array,
    ridge: Array,
    log_forget: Array | None = None,
    write: Array | None = None,
    matrix: Array | None = None,
    association: Array | None = None,
    *,
    regularizer: str = "initial",
) -> tuple[Array, Array, Array]:
    """o_t = G_t H_t^-1 q_t, and the state after the last token: H_T^-1 ("initial") or C_T ("constant"), and G_T.

    Every sum is written out over the tokens i <= t with the weight write_i exp(log_forget_{i+1} + .. + log_forget_t).
    Ridge `[B, H]` or broadcast, or `[B, H, D]`; the state to start from is (matrix, association), nothing if None.
    """
    (batch, time, heads, d), d_v = q.shape, v.shape[-1]
    ridge = ridge if ridge.ndim == 3 else np.broadcast_to(ridge, (batch, heads))[..., None]
    ridge = np.broadcast_to(ridge, (batch, heads, d))
    log_forget = np.zeros((batch, time, heads)) if log_forget is None else log_forget
    write = np.ones((batch, time, heads)) if write is None else write
    output = np.zeros((batch, time, heads, d_v), dtype=np.complex128)
    final = np.zeros((batch, heads, d, d), dtype=np.complex128)
    known = np.zeros((batch, heads, d_v, d), dtype=np.complex128)
    for b, h in np.ndindex(batch, heads):
        penalty = np.diag(ridge[b, h])
        for t in range(time):
            remaining = np.exp(log_forget[b, : t + 1, h].sum())
            if regularizer == "constant":
                start = np.zeros((d, d)) if matrix is None else matrix[b, h]
            else:
                start = penalty if matrix is None else np.linalg.inv(matrix[b, h])
            gram, memory = remaining * start, np.zeros((d_v, d), dtype=np.complex128)
            if association is not None:
                memory = remaining * association[b, h]
            for i in range(t + 1):
                weight = write[b, i, h] * np.exp(log_forget[b, i + 1 : t + 1, h].sum())
                gram = gram + weight * np.outer(k[b, i, h], k[b, i, h])
                memory = memory + weight * np.outer(v[b, i, h], k[b, i, h])
            hessian = gram + penalty if regularizer == "constant" else gram
            output[b, t, h] = memory @ np.linalg.solve(hessian, q[b, t, h])
        final[b, h] = gram if regularizer == "constant" else np.linalg.inv(hessian)
        known[b, h] = memory
    results = (output, final, known)
    return results if any(result.imag.any() for result in results) else tuple(result.real for result in results)


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
