"""What every mesa layer has besides its projections: ridges, key shift, features, gates and the regression itself."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mesascope.errors import require
from mesascope.nn.config import Mesa
from mesascope.nn.features import Feature, apply_features, feature_size
from mesascope.nn.gates import Gate, KeyShift
from mesascope.ops.mesa import MesaState, mesa_attention, mesa_attention_map
from mesascope.ops.mesa.problem import Regularizer


@dataclass(frozen=True, eq=False)
class MesaLayerState:
    """Everything a mesa layer knows about the tokens so far; its size does not depend on their number.

    Attributes:
        regression: the state of the regression, `MesaState`.
        previous_key: the last key before shift and features, `[B, H, n_a]`; None in a layer without key shift.
    """

    regression: MesaState
    previous_key: Float[Tensor, "batch heads n_a"] | None

    def detach(self) -> "MesaLayerState":
        """The same state, through which no gradient flows."""
        return MesaLayerState(
            self.regression.detach(), None if self.previous_key is None else self.previous_key.detach()
        )

    def to(self, device: torch.device | str) -> "MesaLayerState":
        """The same state on another device."""
        return MesaLayerState(
            self.regression.to(device), None if self.previous_key is None else self.previous_key.to(device)
        )


@dataclass(frozen=True, eq=False)
class RegressionInputs:
    """What `mesa_attention` is called with, and the last key before the key shift, if there is one.

    Attributes:
        q, k: `[B, T, H, D]` with the size D of the features.
        v: `[B, T, H, n_a]`.
        log_forget, write: `[B, T, H]` or None.
        last_key: `[B, H, n_a]` or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_forget: Tensor | None
    write: Tensor | None
    last_key: Tensor | None


class MesaRegression(nn.Module):
    """Base of the mesa layers, which add the projections. Their constructors call `_add_regression` once.

    Attributes:
        raw_ridge: free parameter of the ridges, `[H]`, or `[H, D]` with one ridge per coordinate.
        key_shift, forget_gate, write_gate: None where the layer has none.
        features: of queries and keys, first to last.
        regularizer: "initial" or "constant".
    """

    num_heads: int
    key_dim: int
    features: tuple[Feature, ...]
    regularizer: Regularizer
    raw_ridge: nn.Parameter
    key_shift: KeyShift | None
    forget_gate: Gate | None
    write_gate: Gate | None

    def _add_regression(self, mesa: Mesa, width: int) -> None:
        """Make the parameters. `num_heads`, `key_dim` and `features` are known already.

        Args:
            mesa: the configuration.
            width: size of the input of the gates.
        """
        d = feature_size(self.features, self.key_dim)
        self.regularizer = mesa.chosen_regularizer
        self.smallest_ridge, self.largest_write = mesa.smallest_ridge, 1.0 if mesa.write is None else mesa.write.largest
        excess = mesa.initial_ridge - mesa.smallest_ridge
        # log(exp(r) - 1), the inverse of softplus, written so that a large ridge does not overflow
        raw = excess + math.log(-math.expm1(-excess))
        shape = (self.num_heads, d) if mesa.ridge_per == "coordinate" else (self.num_heads,)
        self.raw_ridge = nn.Parameter(torch.full(shape, raw))
        self.key_shift = None if mesa.key_shift is None else KeyShift(mesa.key_shift, self.num_heads)
        self.forget_gate = None if mesa.forget is None else Gate(width, self.num_heads, mesa.forget.initial)
        self.write_gate = None if mesa.write is None else Gate(width, self.num_heads, 0.5)

    @property
    def ridge(self) -> Float[Tensor, " heads"] | Float[Tensor, "heads d"]:
        """smallest_ridge + softplus(raw_ridge), at least in float32; greater than 0 whatever `raw_ridge` is."""
        raw = self.raw_ridge.to(torch.promote_types(self.raw_ridge.dtype, torch.float32))
        # softplus underflows to 0 near -100; ridges above 1e-30 keep their bits
        return nn.functional.softplus(raw) + max(self.smallest_ridge, torch.finfo(raw.dtype).tiny)

    def initial_state(self, batch: int) -> MesaLayerState:
        """The state before the first token of `batch` sequences, on the device of the layer.

        With regularizer "initial" it holds the ridge as it is now, and gradients reach the ridge through it.
        """
        require(batch >= 0, "batch", batch, "at least 0")
        regression = MesaState.initial(
            self._ridge_operand,
            batch=batch,
            heads=self.num_heads,
            key_dim=feature_size(self.features, self.key_dim),
            value_dim=self.key_dim,
            regularizer=self.regularizer,
        )
        return MesaLayerState(regression, None if self.key_shift is None else self._no_key(batch))

    @property
    def _ridge_operand(self) -> Tensor:
        """The ridge in a shape that is the same for every batch."""
        return self.ridge[None] if self.ridge.dim() == 2 else self.ridge

    def _no_key(self, batch: int) -> Tensor:
        return self.raw_ridge.new_zeros(batch, self.num_heads, self.key_dim)

    def _inputs(
        self,
        projected: tuple[Tensor, ...],
        x: Float[Tensor, "batch time d"],
        state: MesaLayerState | None,
        padding: Bool[Tensor, "batch time"] | None = None,
    ) -> RegressionInputs:
        """Key shift, features and gates.

        Args:
            projected: queries, keys and values, `[B, T, H, n_a]`.
            x: input of the gates.
            state: after earlier tokens, or None at the start.
            padding: True for tokens that are not there. They write and forget nothing, and lend no key.
        """
        q, k, v = projected
        if padding is not None:
            k, v = (operand.masked_fill(padding[:, :, None, None], 0) for operand in (k, v))
        last_key = None
        previous = None if state is None else state.previous_key
        if self.key_shift is None:
            given = None if previous is None else tuple(previous.shape)
            require(given is None, "state.previous_key", given, "None, for the layer has no key shift")
        else:
            shape = (k.shape[0], self.num_heads, self.key_dim)
            if state is not None:
                given = None if previous is None else tuple(previous.shape)
                require(given == shape, "state.previous_key", given, f"of shape {shape}")
            k, last_key = self.key_shift(k, self._no_key(k.shape[0]).to(k) if previous is None else previous.to(k))
        log_forget = None if self.forget_gate is None else nn.functional.logsigmoid(self.forget_gate(x))
        write = None if self.write_gate is None else self.largest_write * self.write_gate(x).sigmoid()
        if padding is not None:
            log_forget = None if log_forget is None else log_forget.masked_fill(padding[..., None], 0)
            write = torch.ones_like(v[..., 0]) if write is None else write
            write = write.masked_fill(padding[..., None], 0)
        q, k = apply_features(self.features, q), apply_features(self.features, k)
        return RegressionInputs(q, k, v, log_forget, write, last_key)

    def _regress(self, inputs: RegressionInputs) -> Float[Tensor, "batch time heads n_a"]:
        return mesa_attention(
            inputs.q,
            inputs.k,
            inputs.v,
            self._ridge_operand,
            log_forget=inputs.log_forget,
            write=inputs.write,
            regularizer=self.regularizer,
        )

    def _continue(
        self, inputs: RegressionInputs, state: MesaState | None
    ) -> tuple[Float[Tensor, "batch time heads n_a"], MesaLayerState]:
        """As `_regress`, from and to a state."""
        mixed, regression = mesa_attention(
            inputs.q,
            inputs.k,
            inputs.v,
            self._ridge_operand,
            log_forget=inputs.log_forget,
            write=inputs.write,
            regularizer=self.regularizer,
            state=state,
            return_state=True,
        )
        return mixed, MesaLayerState(regression, inputs.last_key)

    def _step(
        self, inputs: RegressionInputs, state: MesaState
    ) -> tuple[Float[Tensor, "batch heads n_a"], MesaLayerState]:
        """As `_continue` for a single token, T = 1, and cheaper."""
        forget, write = (None if gate is None else gate[:, 0] for gate in (inputs.log_forget, inputs.write))
        mixed, regression = state.step(
            inputs.q[:, 0],
            inputs.k[:, 0],
            inputs.v[:, 0],
            self._ridge_operand,
            log_forget=forget,
            write=write,
        )
        return mixed, MesaLayerState(regression, inputs.last_key)

    def _map(self, inputs: RegressionInputs) -> Float[Tensor, "batch heads time time"]:
        return mesa_attention_map(
            inputs.q,
            inputs.k,
            self._ridge_operand,
            log_forget=inputs.log_forget,
            write=inputs.write,
            regularizer=self.regularizer,
        )
