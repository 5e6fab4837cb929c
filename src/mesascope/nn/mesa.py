"""Mesa attention as a layer of the Transformer, and as a decoder that takes one token at a time."""

from typing import Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import InputError, require
from mesascope.nn.base import Attention, Record
from mesascope.nn.config import Mesa
from mesascope.nn.features import Norm
from mesascope.nn.regression import MesaLayerState, MesaRegression
from mesascope.ops import mesa_attention, mesa_attention_map


class MesaAttention(MesaRegression, Attention):
    """Mesa attention: every head solves ridge regression of its values on its keys, exactly and at every time step.

        output_t = sum_h P_h Phi_h,t q_h,t,   Phi_h,t = argmin_Phi sum_{i<=t} weight_t,i ||v_h,i - Phi k_h,i||^2 / 2
                                                                              + ridge_h ||Phi||^2 / 2

    Source: arXiv 2309.05858, eqs. 4-8 (ridge = 1 / lambda), with the gates of arXiv 2506.05233; see
    `mesascope.ops.mesa_attention` for what is computed, for accuracy and for errors of the solve.

    Args:
        width: d_e, size of the input and output.
        num_heads: H.
        key_dim: n_a, size of queries, keys and values of one head before their features.
        mesa: ridges, features, key shift, gates and regularizer.
        position_dim: size of the position encoding concatenated to the input of the query and key projections.
        qk_norm: how queries and keys are normalised after all other features; the same at the end of
            `mesa.features` would do it, too.
        generator: draws the initial weights; None: torch's global generator, as in torch.nn.

    Attributes:
        W_Q, W_K: `[H n_a, width + position_dim]`.
        W_V: `[H n_a, width]`.
        P: `[width, H n_a]`.

    Raises:
        InputError: a size is not positive, or a feature is not defined for keys of this size.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        key_dim: int,
        mesa: Mesa = Mesa(),
        *,
        position_dim: int = 0,
        qk_norm: Norm | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(width, num_heads, key_dim, position_dim=position_dim, generator=generator)
        self.features = mesa.features if qk_norm is None else (*mesa.features, qk_norm)
        self._add_regression(mesa, width)

    @overload
    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = ...,
        record: Record | None = ...,
        *,
        state: MesaLayerState | None = ...,
        return_state: Literal[False] = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = ...,
        record: Record | None = ...,
        *,
        state: MesaLayerState | None = ...,
        return_state: Literal[True],
    ) -> tuple[Tensor, MesaLayerState]: ...

    def forward(
        self,
        x: Float[Tensor, "batch time d"],
        positions: Tensor | None = None,
        record: Record | None = None,
        *,
        state: MesaLayerState | None = None,
        return_state: bool = False,
    ) -> Float[Tensor, "batch time d"] | tuple[Float[Tensor, "batch time d"], MesaLayerState]:
        """The sum over heads, without the residual.

        Args:
            x: `[B, T, width]`.
            positions: `[T, position_dim]`, of these tokens; only where it was asked for.
            record: receives `q`, `k`, `v` as the regression takes them and the map `pattern`.
            state: the state after earlier tokens of the same sequences, or None at their start.
            return_state: also return the state after the last token.

        Returns:
            The output, `[B, T, width]`, or (output, state).

        Raises:
            InputError: a shape or the state does not fit, `record` is used with a state, or the problem is singular.
        """
        inputs = self._inputs(self._projections(x, positions), x, state)
        if record is not None:
            if state is not None:
                raise InputError("record: got a function, but it must be None with a state, which no map contains")
            record("q", inputs.q)
            record("k", inputs.k)
            record("v", inputs.v)
            record("pattern", self._map(inputs))
        if state is not None or return_state:
            mixed, after = self._continue(inputs, None if state is None else state.regression)
            output = self._sum_of_heads(mixed)
            return (output, after) if return_state else output
        mixed = self._regress(inputs) if self.gated else self.attend(inputs.q, inputs.k, inputs.v)
        return self._sum_of_heads(mixed)

    def step(
        self,
        x: Float[Tensor, "batch d"],
        state: MesaLayerState,
        position: Float[Tensor, " position_dim"] | None = None,
    ) -> tuple[Float[Tensor, "batch d"], MesaLayerState]:
        """One more token of every sequence: its output and the state after it; equal to `forward`, and cheaper for it.

        Args:
            x: the tokens, `[B, width]`.
            state: from `initial_state`, `forward` or `step`.
            position: their position encoding, only where it was asked for.

        Raises:
            InputError: a shape or the state does not fit, or rounding has destroyed a state of regularizer "initial".
        """
        require(x.dim() == 2, "x", tuple(x.shape), f"of shape [B, {self.width}]")
        x = x[:, None]
        inputs = self._inputs(self._projections(x, None if position is None else position[None]), x, state)
        mixed, after = self._step(inputs, state.regression)
        return self._sum_of_heads(mixed), after

    def attention_map(
        self, x: Float[Tensor, "batch time d"], positions: Tensor | None = None
    ) -> Float[Tensor, "batch heads time time"]:
        """The causal map alpha, gates included, with which the values of `x` are mixed: row t, column t'.

        Signed and not normalised: alpha_{t,i} = beta_i m_{t,i} k_i . H_t^-1 q_t, `mesascope.ops.mesa_attention_map`.
        """
        return self._map(self._inputs(self._projections(x, positions), x, None))

    def project(self, x: Float[Tensor, "batch time d"], positions: Tensor | None = None) -> tuple[Tensor, ...]:
        """Queries, keys and values as the regression takes them: after key shift and features."""
        inputs = self._inputs(self._projections(x, positions), x, None)
        return inputs.q, inputs.k, inputs.v

    @property
    def gated(self) -> bool:
        """Whether the input has a say in what is forgotten or written."""
        return self.forget_gate is not None or self.write_gate is not None

    def attend(
        self,
        q: Float[Tensor, "batch time heads d"],
        k: Float[Tensor, "batch time heads d"],
        v: Float[Tensor, "batch time heads d_v"],
    ) -> Float[Tensor, "batch time heads d_v"]:
        """The regression of a layer without gates.

        Raises:
            InputError: the layer has gates, of which queries, keys and values know nothing.
        """
        self._require_ungated("attend")
        return mesa_attention(q, k, v, self._ridge_operand, regularizer=self.regularizer)

    def pattern(
        self, q: Float[Tensor, "batch time heads d"], k: Float[Tensor, "batch time heads d"]
    ) -> Float[Tensor, "batch heads time time"]:
        """The map of a layer without gates; `attention_map` is for any. Errors as for `attend`."""
        self._require_ungated("pattern")
        return mesa_attention_map(q, k, self._ridge_operand, regularizer=self.regularizer)

    def _require_ungated(self, method: str) -> None:
        if self.gated:
            raise InputError(f"{method}: got a layer with gates, but it must have none; use forward or attention_map")
