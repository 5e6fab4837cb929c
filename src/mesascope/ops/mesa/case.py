"""What a backend of mesa attention is given."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mesascope.ops.mesa.checks import expand_ridge
from mesascope.ops.mesa.problem import Regularizer
from mesascope.ops.mesa.state import MesaState


class Case(NamedTuple):
    """Checked operands: all in one dtype, float32 or float64, on one device, and with no empty dimension but Dv.

    Attributes:
        q, k: `[B, T, H, D]`.
        v: `[B, T, H, Dv]`.
        ridge: of any shape that `expand_ridge` takes; `[B, H, D]`, often expanded, where it is `expanded`.
        log_forget, write: `[B, T, H]` or None.
        regularizer: "initial" or "constant".
        state: to start from, or None; with "initial" the ridge is inside it and the operand is not used.
        return_state: whether the state after the last token is wanted.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    ridge: Tensor
    log_forget: Tensor | None
    write: Tensor | None
    regularizer: Regularizer
    state: MesaState | None
    return_state: bool

    def expanded(self) -> "Case":
        """The same with a ridge `[B, H, D]`."""
        batch, _, heads, d = self.k.shape
        return self._replace(ridge=expand_ridge(self.ridge, batch, heads, d))

    def to(self, dtype: torch.dtype) -> "Case":
        """The same in another dtype."""
        changed: dict[str, Any] = {
            name: value.to(dtype) for name, value in self._asdict().items() if isinstance(value, Tensor)
        }
        return self._replace(**changed, state=None if self.state is None else self.state.to(dtype=dtype))
