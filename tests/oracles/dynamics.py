"""h_{t+1} = W g(h_t) + e_t one step at a time."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

Array = NDArray[np.float64]


def states(
    transition: Array, driven: Array, features: Callable[[Array], Array] | None = None, bound: float = np.inf
) -> Array:
    """States of one sequence, `[T + 1, n]`; `driven` holds h_1 and then the noise of every later state.

    Every new state is clipped to [-bound, bound]; h_1 is not new.
    """
    result = [driven[0]]
    for noise in driven[1:]:
        moved = result[-1] if features is None else features(result[-1])
        result.append(np.clip(transition @ moved + noise, -bound, bound))
    return np.array(result)


def gelu(x: Array) -> Array:
    """x times the Gaussian distribution function of x."""
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415)."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def contracting_zero_losses(count: int, n: int, length: int, bound: float, random: np.random.Generator) -> Array:
    """Loss of the zero predictor on `count` sequences of W = M diag(lambda) M^-1, states clipped to [-bound, bound]."""
    losses = np.zeros(count)
    for index in range(count):
        eigenvalues = random.uniform(0.3, 0.9, n)
        eigenvalues[0] = 0.9
        basis = random.standard_normal((n, n))
        driven = 0.01 * random.standard_normal((length + 1, n))
        driven[0] = random.uniform(-1, 1, n)
        transition = basis @ np.diag(eigenvalues) @ np.linalg.inv(basis)
        losses[index] = 0.5 * (states(transition, driven, bound=bound)[1:] ** 2).sum() / length
    return losses
