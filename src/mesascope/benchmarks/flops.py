"""Floating-point operations of attention, and how many this machine does in a matrix product.

Counted is what the problem needs when nothing larger than O(T D) is kept for the backward pass, not what a particular
implementation does; one multiplication and one addition are two operations. Keys and values have size D. Lower orders
(norms, exponentials, divisions) are not counted. Per head:

* softmax, causal: logits and mixing over T (T + 1) / 2 pairs, 2 D each; the backward pass has five such products.
* linear, as a recurrence: G += v k^T and G q; backward G once more, G^T g, P += g q^T, P k and P^T v.
* mesa, as recursive least squares: R k, R -= u u^T / (1 + k.u), R q, G += v k^T, G q~; backward R k, the update of R,
  G and w = R G^T g once more, then P += g q~^T, M += w q~^T + q~ w^T, P k, P^T v and M k.
"""

import statistics
import time

import torch

from mesascope.benchmarks.methods import Passes, Problem, Shape

_PRODUCTS: dict[Problem, dict[Passes, int]] = {
    "softmax": {"forward": 2, "forward+backward": 7},
    "linear": {"forward": 2, "forward+backward": 7},
    "mesa": {"forward": 5, "forward+backward": 16},
}
"""Products with a vector of size D: per pair of steps for softmax, of a D x D matrix per step for the others."""

FORMULAS: dict[Problem, dict[Passes, str]] = {
    problem: {
        passes: f"{count} T (T + 1) D" if problem == "softmax" else f"2 T D ({count} D)"
        for passes, count in products.items()
    }
    for problem, products in _PRODUCTS.items()
}
"""Operations per head."""

_PEAK_RUNS = 7


def flops(problem: Problem, shape: Shape, passes: Passes) -> int:
    """Operations of all heads, by `FORMULAS`."""
    count = _PRODUCTS[problem][passes]
    pairs = shape.time + 1 if problem == "softmax" else 2 * shape.dim
    return shape.heads * count * shape.time * pairs * shape.dim


def matmul_gflops(size: int) -> float:
    """10^9 operations per second of a float32 `torch.mm` of `size` x `size` matrices: the median of seven."""
    left, right = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(_PEAK_RUNS + 1):
        begin = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / statistics.median(seconds[1:]) / 1e9
