"""What is installed, what is active, and whether it computes what it should."""

from collections.abc import Iterator

import torch

from mesascope.environment import describe_environment
from mesascope.ops import linear_attention, mesa_attention
from mesascope.ops.kernels import NEEDED_BY_KERNELS, native_kernels
from mesascope.ops.linear import linear_attention_product


def examine() -> Iterator[str]:
    """Lines for the terminal: versions, threads, kernels, and the error of the kernels against float64."""
    for name, value in describe_environment().items():
        yield f"{name}: {value}"
    yield f"threads: {torch.get_num_threads()}"
    kernels = native_kernels()
    if kernels is None:
        yield f"native kernels: none, everything runs on plain torch; installing with {NEEDED_BY_KERNELS} adds them"
        yield "softmax attention: torch, product form up to T = 128, scaled_dot_product_attention beyond"
        yield "linear attention: torch, masked product form"
        yield "mesa attention: torch, in chunks (exact)"
    else:
        yield f"native kernels: {kernels.instruction_set()}"
        yield "softmax attention: native up to T = 512, scaled_dot_product_attention beyond"
        yield "linear attention: native"
        yield "mesa attention: native (exact)"
    yield f"mesa attention, relative error in float32 against a per-step float64 solve: {_mesa_error():.1e}"
    yield f"linear attention, relative error in float32 against float64: {_linear_error():.1e}"


def _operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 50, 2, 20, generator=generator, dtype=torch.float64) for _ in range(3))
    return q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True), v


def _mesa_error() -> float:
    q, k, v = _operands()
    exact = mesa_attention(q, k, v, torch.ones(2, dtype=torch.float64), backend="reference")
    return _relative(mesa_attention(q.float(), k.float(), v.float(), torch.ones(2)), exact)


def _linear_error() -> float:
    q, k, v = _operands()
    return _relative(linear_attention(q.float(), k.float(), v.float()), linear_attention_product(q, k, v))


def _relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())
