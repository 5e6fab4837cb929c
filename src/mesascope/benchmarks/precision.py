"""How exact the backends of mesa attention are: output and all gradients against one float64 solve per token.

Errors are root mean squares relative to that of the truth. All number types are given the same problem: operands are
rounded to the narrower one first.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mesascope.ops import MesaState, mesa_attention, native_available
from mesascope.ops.mesa.attention import Backend
from mesascope.ops.mesa.problem import Regularizer

_SEGMENT = 1000
"""Tokens whose solves are kept at once for the gradient of the truth."""


@dataclass(frozen=True)
class Regime:
    """Problems of one kind, and how exact their solution is promised to be in float32.

    Attributes:
        name: short and stable, for the claims.
        title: what it is, in words.
        shapes: T and D of each problem; two heads.
        ridges: each shape is solved with each of them.
        limit: of the errors of the output and of every gradient but the ridge's, for float32 or `inputs`.
        ridge_limit: of the gradient of the ridge.
        key_norm: Euclidean norm of the keys; queries have norm 1.
        subspace: whether keys lie in a quarter of the dimensions, so that in the others there is nothing but the ridge.
        gates: None for no gates, else what becomes of the ridge under log_forget from -0.1 to 0, with write 0 to 1.7.
        inputs: dtype of q, k, v and the gradient of the output.
    """

    name: str
    title: str
    shapes: tuple[tuple[int, int], ...]
    ridges: tuple[float, ...]
    limit: float
    ridge_limit: float
    key_norm: float = 1.0
    subspace: bool = False
    gates: Regularizer | None = None
    inputs: torch.dtype = torch.float32


@dataclass(frozen=True)
class Errors:
    """Relative errors: of the output, the worst gradient but the ridge's, and the gradient of the ridge."""

    output: float = 0.0
    gradient: float = 0.0
    ridge: float = 0.0

    def worst(self, other: "Errors") -> "Errors":
        """The larger of each."""
        return Errors(max(self.output, other.output), max(self.gradient, other.gradient), max(self.ridge, other.ridge))


@dataclass(frozen=True)
class Column:
    """What is measured: a backend in a number type."""

    backend: Backend
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.backend}, {str(self.dtype).removeprefix('torch.')}"


Measured = dict[tuple[Regime, Column], Errors]

_SHAPES = ((50, 20), (1000, 20), (300, 64))


def _gated(regularizer: Regularizer) -> Regime:
    title = f'gates, regularizer "{regularizer}", ridge 0.1, 1 and 10'
    return Regime(f"{regularizer}_gates", title, _SHAPES, (0.1, 1.0, 10.0), 1e-5, 1e-5, gates=regularizer)


REGIMES = (
    Regime("moderate", "ridge 0.1, 1 and 10, keys of norm 1", _SHAPES, (0.1, 1.0, 10.0), 1e-5, 1e-5),
    Regime("subspace", "the same in a quarter of the dimensions", _SHAPES, (0.1, 1.0, 10.0), 1e-5, 1e-4, subspace=True),
    Regime("small_ridge", "ridge 0.01 (lambda = 100), keys of norm 1", _SHAPES, (0.01,), 1e-4, 1e-3),
    Regime("large_keys", "ridge 1, keys of norm 10", _SHAPES, (1.0,), 1e-4, 1e-3, key_norm=10.0),
    Regime("long", "T = 100,000 without forgetting, ridge 1", ((100_000, 8),), (1.0,), 1e-3, 1e-3),
    _gated("initial"),
    _gated("constant"),
    # the results are rounded: by at most this, relative to each of them
    Regime("float16", "float16 inputs, ridge 1", _SHAPES, (1.0,), 2**-11, 1e-5, inputs=torch.float16),
    Regime("bfloat16", "bfloat16 inputs, ridge 1", _SHAPES, (1.0,), 2**-8, 1e-5, inputs=torch.bfloat16),
)


def columns(regime: Regime) -> tuple[Column, ...]:
    """The backends that are there, in the number types of a regime: its own and, for float32, float64."""
    dtypes = (regime.inputs, torch.float64) if regime.inputs == torch.float32 else (regime.inputs,)
    backends: tuple[Backend, ...] = ("chunked", "native") if native_available() else ("chunked",)
    return tuple(Column(backend, dtype) for dtype in dtypes for backend in backends)


def measure(regimes: tuple[Regime, ...], say: Callable[[str], None]) -> Measured:
    """The errors of every regime in each of its columns; `say` is told which regime is next."""
    measured: Measured = {}
    for regime in regimes:
        say(regime.title)
        worst = dict.fromkeys(columns(regime), Errors())
        for time, dim in regime.shapes:
            for ridge in regime.ridges:
                operands, gradient = _draw(regime, time, dim, ridge)
                regularizer = regime.gates or "initial"
                truth = partial(_attend_in_segments, regularizer=regularizer)
                exact = _differentiate(truth, _to(operands, torch.float64), gradient)
                for column in worst:
                    attend = _backend(column.backend, regularizer)
                    found = _differentiate(attend, _to(operands, column.dtype), gradient)
                    worst[column] = worst[column].worst(_errors(found, exact))
        measured |= {(regime, column): errors for column, errors in worst.items()}
    return measured


def _backend(name: Backend, regularizer: Regularizer) -> Callable[..., Tensor]:
    return partial(mesa_attention, backend=name, regularizer=regularizer)


def _draw(regime: Regime, time: int, dim: int, ridge: float) -> tuple[dict[str, Tensor], Tensor]:
    """Operands by the names of `mesa_attention`'s arguments, in the number types of the regime; and dL/do."""
    generator = torch.Generator().manual_seed(0)
    size = (1, time, 2, dim)
    q, k, v, gradient = (torch.randn(size, generator=generator) for _ in range(4))
    if regime.subspace:
        few = math.ceil(dim / 4)
        k = k[..., :few] @ torch.randn(few, dim, generator=generator)
    q, k = (operand / operand.norm(dim=-1, keepdim=True) for operand in (q, k))
    tokens = {"q": q, "k": regime.key_norm * k, "v": v}
    operands = {name: operand.to(regime.inputs) for name, operand in tokens.items()}
    operands["ridge"] = torch.full((2,), ridge)
    if regime.gates is not None:
        operands["log_forget"] = -0.1 * torch.rand(size[:3], generator=generator)
        operands["write"] = (2 * torch.rand(size[:3], generator=generator) - 0.3).clamp(min=0)
    return operands, gradient.to(regime.inputs)


def _to(operands: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """In another dtype, but what is not half precision does not become it."""
    return {name: operand.to(torch.promote_types(operand.dtype, dtype)) for name, operand in operands.items()}


def _differentiate(attend: Callable[..., Tensor], operands: dict[str, Tensor], gradient: Tensor) -> dict[str, Tensor]:
    """The output, and the gradient of every operand by its name."""
    inputs = {name: operand.detach().clone().requires_grad_() for name, operand in operands.items()}
    output = attend(**inputs)
    output.backward(gradient.to(output.dtype))
    gradients = {name: operand.grad for name, operand in inputs.items() if operand.grad is not None}
    return {"output": output.detach(), **gradients}


def _attend_in_segments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    log_forget: Tensor | None = None,
    write: Tensor | None = None,
    *,
    regularizer: Regularizer,
) -> Tensor:
    """The reference with a state from segment to segment, whose solves are computed again for their gradient."""
    start = MesaState.initial(
        ridge, batch=1, heads=q.shape[2], key_dim=q.shape[3], value_dim=v.shape[3], regularizer=regularizer
    )
    matrix, association, outputs = start.matrix, start.association, []

    def attend(matrix: Tensor, association: Tensor, ridge: Tensor, *tokens: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *gates = tokens
        output, state = mesa_attention(
            *(q, k, v, ridge),
            **dict(zip(("log_forget", "write"), gates, strict=False)),
            regularizer=regularizer,
            state=MesaState(regularizer, matrix, association),
            return_state=True,
            backend="reference",
        )
        return output, state.matrix, state.association

    operands = (q, k, v) if log_forget is None or write is None else (q, k, v, log_forget, write)
    for tokens in zip(*(operand.split(_SEGMENT, 1) for operand in operands), strict=True):
        # of the other kind of checkpoint all nodes of the graph stay, which are gigabytes
        output, matrix, association = checkpoint(attend, matrix, association, ridge, *tokens, use_reentrant=True)
        outputs.append(output)
    return torch.cat(outputs, 1)


def _errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> Errors:
    relative = {name: float((found[name].double() - true).norm() / true.norm()) for name, true in exact.items()}
    output, ridge = relative.pop("output"), relative.pop("ridge")
    return Errors(output, max(relative.values()), ridge)
