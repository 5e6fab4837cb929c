"""The table of cases that every backend of mesa attention is tested on."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mesascope.ops import MesaState, mesa_attention, native_available

BACKENDS = ("reference", "chunked", *(("native",) if native_available() else ()))
FAST = BACKENDS[1:]

SHAPES = {
    "B2-T7-H2-D3-Dv2": (2, 7, 2, 3, 2),
    "B1-T1-H1-D4-Dv4": (1, 1, 1, 4, 4),
    "B2-T6-H1-D1-Dv1": (2, 6, 1, 1, 1),
    "B1-T70-H1-D3-Dv5": (1, 70, 1, 3, 5),
}
GATES = ("plain", "forget", "write", "forget and write", "forget much")
REGULARIZERS = ("initial", "constant")
RIDGES = ("head", "row", "diagonal", "row diagonal")


@dataclass(frozen=True)
class Case:
    """One row of the table; `draw` makes its operands."""

    shape: tuple[int, ...]
    regularizer: str = "initial"
    gates: str = "plain"
    ridge: str = "head"
    state: bool = False

    def __str__(self) -> str:
        shape = "-".join(f"{name}{size}" for name, size in zip(("B", "T", "H", "D", "Dv"), self.shape, strict=True))
        state = "state" if self.state else "no state"
        return f"{shape} {self.regularizer}, {self.gates}, ridge per {self.ridge}, {state}"


def table(ridges: tuple[str, ...] = RIDGES) -> list[Case]:
    return [Case(*row) for row in itertools.product(SHAPES.values(), REGULARIZERS, GATES, ridges, (False, True))]


@dataclass(frozen=True)
class Operands:
    """Tensors that can be differentiated, and what they are called with."""

    regularizer: str
    q: Tensor
    k: Tensor
    v: Tensor
    ridge: Tensor
    log_forget: Tensor | None = None
    write: Tensor | None = None
    matrix: Tensor | None = None
    association: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, dtype: torch.dtype) -> "Operands":
        return replace(self, **{name: tensor.to(dtype) for name, tensor in self.tensors().items()})

    def with_gradients(self) -> "Operands":
        return replace(
            self, **{name: tensor.detach().clone().requires_grad_() for name, tensor in self.tensors().items()}
        )

    def options(self) -> dict[str, Any]:
        state = None
        if self.matrix is not None and self.association is not None:
            state = MesaState(self.regularizer, self.matrix, self.association)
        return {
            "log_forget": self.log_forget,
            "write": self.write,
            "regularizer": self.regularizer,
            "state": state,
        }

    def run(self, backend: str) -> dict[str, Tensor]:
        """The output and the final state."""
        output, state = mesa_attention(
            self.q, self.k, self.v, self.ridge, backend=backend, return_state=True, **self.options()
        )
        return {"output": output, "matrix": state.matrix, "association": state.association}

    def gradients(self, backend: str, seed: int = 1, through: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """Of a random linear function of the output and the final state, or of those of them named in `through`."""
        operands = self.with_gradients()
        inputs = {name: tensor for name, tensor in operands.tensors().items() if not operands.unused(name)}
        loss = operands.loss(operands.run(backend), seed, through)
        gradients = torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True)
        return dict(zip(inputs, gradients, strict=True))

    def loss(self, results: dict[str, Tensor], seed: int = 1, through: tuple[str, ...] = ()) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        total = torch.zeros((), dtype=self.q.dtype)
        for name, result in results.items():
            cotangent = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.dtype)
            if not through or name in through:
                total = total + (result * cotangent).sum()
        return total

    def unused(self, name: str) -> bool:
        """A state of "initial" contains the ridge."""
        return name == "ridge" and self.matrix is not None and self.regularizer == "initial"


def draw(case: Case, seed: int = 0) -> Operands:
    """Random operands in float64."""
    batch, time, heads, d, d_v = case.shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    log_forget = write = matrix = association = None
    if "forget" in case.gates:
        log_forget = (-1.2 if case.gates == "forget much" else -0.1) * uniform(batch, time, heads)
    if "write" in case.gates:
        write = (2 * uniform(batch, time, heads) - 0.3).clamp(min=0)  # some are exactly zero
    if case.state:
        root = normal(batch, heads, d, d)
        matrix = root @ root.mT + (0.3 * torch.eye(d, dtype=torch.float64) if case.regularizer == "initial" else 0)
        association = normal(batch, heads, d_v, d)
    ridge = {
        "head": (heads,),
        "row": (batch, heads, 1),
        "diagonal": (1, heads, d),
        "row diagonal": (batch, heads, d),
    }[case.ridge]
    q, k, v = normal(batch, time, heads, d), normal(batch, time, heads, d), normal(batch, time, heads, d_v)
    return Operands(case.regularizer, q, k, v, 0.3 + uniform(*ridge), log_forget, write, matrix, association)


def relative(found: Tensor, expected: Tensor) -> float:
    """Root-mean-square error relative to what is expected; the error itself where that is zero."""
    error, size = float((found.detach().double() - expected.detach()).norm()), float(expected.detach().norm())
    return error / size if size > 0 else error
