"""What the attention benchmark compares: a method is one implementation of mesa, softmax or linear attention."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Problem = Literal["mesa", "softmax", "linear"]
Passes = Literal["forward", "forward+backward"]
BOTH_PASSES: tuple[Passes, Passes] = ("forward", "forward+backward")

_HEADS = 4
"""Heads of one sequence, as in the paper's models; the others are the batch."""


@dataclass(frozen=True)
class Shape:
    """Size of an attention: B * H heads in all, T time steps, keys and values of size D."""

    heads: int
    time: int
    dim: int

    def __str__(self) -> str:
        return f"{self.heads} heads, T = {self.time}, D = {self.dim}"


@dataclass(frozen=True)
class Operands:
    """Float32 operands: q, k, v and the gradient of the output, `[B, T, H, D]`, and one ridge per head, `[H]`."""

    q: Tensor
    k: Tensor
    v: Tensor
    ridge: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Method:
    """One implementation.

    Attributes:
        problem: what it computes.
        implementation: whose it is and how it works, in a few words.
        attend: maps q, k, v and ridge to the output.
        fits: whether a shape takes reasonable time and memory in the given passes.
        head_major: operands are `[B, H, T, D]` instead of `[B, T, H, D]`: every method gets the layout it likes best.
    """

    problem: Problem
    implementation: str
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    fits: Callable[[Shape, Passes], bool] = lambda shape, passes: True
    head_major: bool = False

    @property
    def name(self) -> str:
        return f"{self.problem}: {self.implementation}"


def map_fits(shape: Shape, passes: Passes) -> bool:
    """For methods that keep a T x T map per head: up to 1 GiB a map."""
    return shape.heads * shape.time**2 <= 2**28


def factorisation_fits(shape: Shape, passes: Passes) -> bool:
    """For methods that factorise a T x T matrix per head: seconds at 16 heads and T = 850."""
    return shape.heads * shape.time**3 <= 10**10


def draw_operands(shape: Shape) -> Operands:
    """Unit-norm queries and keys, normal values and output gradient, ridge 1; the same numbers every time."""
    heads = math.gcd(shape.heads, _HEADS)
    generator = torch.Generator().manual_seed(0)
    size = (shape.heads // heads, shape.time, heads, shape.dim)
    q, k, v, gradient = (torch.randn(size, generator=generator) for _ in range(4))
    for operand in (q, k):
        operand /= operand.norm(dim=-1, keepdim=True)
    return Operands(q, k, v, torch.ones(heads), gradient)


def prepare(method: Method, operands: Operands, passes: Passes) -> Callable[[], object]:
    """A run of the method: without autograd for the forward pass, else with gradients of all its inputs."""
    q, k, v, gradient = (
        operand.transpose(1, 2).contiguous() if method.head_major else operand
        for operand in (operands.q, operands.k, operands.v, operands.gradient)
    )
    if passes == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return method.attend(q, k, v, operands.ridge)

        return forward
    # detached: gradients are asked for here, not of whoever owns the operands
    q, k, v, ridge = (operand.detach().requires_grad_() for operand in (q, k, v, operands.ridge))
    inputs = (q, k, v, ridge) if method.problem == "mesa" else (q, k, v)

    def forward_and_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(method.attend(q, k, v, ridge), inputs, gradient)

    return forward_and_backward
