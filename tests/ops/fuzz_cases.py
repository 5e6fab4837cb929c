"""Operands of attention that lie anywhere in memory and go to extremes, for the tests that compare backends on them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from .mesa_cases import GATES, REGULARIZERS, Case, Operands, draw

MEMORY: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda tensor: tensor,
    "heads before time": lambda tensor: tensor.transpose(1, 2).contiguous().transpose(1, 2),
    "time last": lambda tensor: tensor.movedim(1, -1).contiguous().movedim(-1, 1),
    "every other number": lambda tensor: torch.stack([torch.full_like(tensor, math.nan), tensor], -1)[..., 1],
    "a part of more": lambda tensor: torch.nn.functional.pad(tensor, (1, 2), value=math.nan)[..., 1:-2],
    "one row for all": lambda tensor: tensor[:1].expand_as(tensor),
    "one token for all": lambda tensor: tensor[:, :1].expand_as(tensor),
    "one head for all": lambda tensor: tensor[:, :, :1].expand_as(tensor),
}

KEYS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": lambda k: k,
    "large": lambda k: 1e3 * k,
    "small": lambda k: 1e-3 * k,
    "zero": torch.zeros_like,
    "zero first": lambda k: torch.cat([torch.zeros_like(k[:, :1]), k[:, 1:]], 1),
    "repeated": lambda k: k[:, :1].repeat(1, k.shape[1], 1, 1),
    "large once": lambda k: torch.cat([1e3 * k[:, :1], k[:, 1:]], 1),
}

FORGETTING = {"mild": 1.0, "one token at once": 300.0, "everything": 1e5}
"""Factors of log_forget, which is between -0.1 and 0, or -1.2 and 0."""


@dataclass(frozen=True)
class Fuzz:
    """One draw; `operands` makes it, in float64."""

    shape: tuple[int, ...]
    regularizer: str
    gates: str
    state: bool
    ridge: float
    keys: str
    forgetting: str
    memory: tuple[str, ...]
    seed: int

    def operands(self) -> Operands:
        drawn = draw(Case(self.shape, self.regularizer, self.gates, "row diagonal", self.state), self.seed)
        changed: dict[str, Tensor] = {"ridge": 10**self.ridge * drawn.ridge, "k": KEYS[self.keys](drawn.k)}
        if drawn.log_forget is not None:
            changed["log_forget"] = FORGETTING[self.forgetting] * drawn.log_forget
        # in the values that float32 has, so that every number type is given the same problem
        return replace(drawn, **changed).to(torch.float32).to(torch.float64)

    def lay_out(self, operands: Operands) -> Operands:
        """The same numbers elsewhere in memory; but what is shared is shared."""
        names = [name for name in ("q", "k", "v", "log_forget", "write") if getattr(operands, name) is not None]
        return replace(
            operands,
            **{name: MEMORY[place](getattr(operands, name)) for name, place in zip(names, self.memory, strict=False)},
        )


sizes = st.integers(1, 5)
places = st.sampled_from(list(MEMORY))
fuzzes = st.builds(
    Fuzz,
    shape=st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 3, 8, 9, 17, 40]), st.integers(1, 6), sizes, sizes),
    regularizer=st.sampled_from(REGULARIZERS),
    gates=st.sampled_from(GATES),
    state=st.booleans(),
    ridge=st.floats(-6, 6),
    keys=st.sampled_from(list(KEYS)),
    forgetting=st.sampled_from(list(FORGETTING)),
    memory=st.tuples(*[places] * 5),
    seed=st.integers(0, 2**32 - 1),
)
