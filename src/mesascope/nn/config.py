"""Architecture of a Transformer as data."""

from dataclasses import dataclass
from typing import Literal

from mesascope.config import added
from mesascope.errors import require
from mesascope.nn.features import Feature, Norm
from mesascope.ops.mesa.checks import check_regularizer
from mesascope.ops.mesa.problem import Regularizer


@dataclass(frozen=True)
class Softmax:
    """Softmax attention, logits divided by sqrt(key_dim)."""


@dataclass(frozen=True)
class Linear:
    """Linear attention, neither scaled nor normalised."""


@dataclass(frozen=True)
class PreviousKey:
    """Key shift: k_t <- k_{t-1}, and k_0 <- 0, so that a value belongs to the key of the token before it.

    Source: the one-layer language models of arXiv 2309.05858, appendix G, which say no more than "key shift".
    """


@dataclass(frozen=True)
class MixedKey:
    """Smeared keys: k_t <- a k_t + (1 - a) k_{t-1} with k_{-1} = 0 and one learned a = sigmoid(.) per head.

    Source: arXiv 2209.11895, "smeared key"; a convolution of size 2 that is shared by the coordinates of a head.

    Attributes:
        initial: a before training, between 0 and 1.
    """

    initial: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.initial < 1, "initial", self.initial, "between 0 and 1, both excluded")


@dataclass(frozen=True)
class ForgetGate:
    """gamma_t = sigmoid(W x_t + b), one per head: the share of the past that token t keeps (arXiv 2506.05233).

    Difference from MesaNet's code, where b starts near 0 and half is forgotten at every token: b starts such that
    little is.

    Attributes:
        initial: gamma before training where W x is 0, between 0 and 1. 0.99 forgets half in 69 tokens.
    """

    initial: float = 0.99

    def __post_init__(self) -> None:
        require(0 < self.initial < 1, "initial", self.initial, "between 0 and 1, both excluded")


@dataclass(frozen=True)
class WriteGate:
    """beta_t = largest sigmoid(W x_t + b), one per head: the weight of token t in the regression (arXiv 2506.05233).

    b starts at 0, so beta at half of `largest`.

    Attributes:
        largest: 1 as in MesaNet; 2 starts with a weight of 1, that of a layer without gate.
    """

    largest: float = 1.0

    def __post_init__(self) -> None:
        require(self.largest > 0, "largest", self.largest, "greater than 0")


@dataclass(frozen=True)
class Mesa:
    """Mesa attention: ridge regression solved exactly at every time step.

    Attributes:
        initial_ridge: ridge (1 / lambda of the paper) before training.
        ridge_per: one learned ridge per "head", or per head and "coordinate" of the keys as in arXiv 2506.05233.
        smallest_ridge: what training cannot take the ridge below; MesaNet has 0.25.
        features: of queries and keys, applied first to last after the key shift; none for the identity.
        key_shift: which keys the values are paired with, or None for their own.
        forget: how much of the past is forgotten, or None for nothing.
        write: how strongly tokens are written, or None for 1.
        regularizer: whether forgetting fades the ridge ("initial", arXiv 2309.05858) or not ("constant", 2506.05233);
            the two are equal without it. None: "constant" with a forget gate and "initial" without.
    """

    initial_ridge: float = 1.0
    ridge_per: Literal["head", "coordinate"] = added("head")
    smallest_ridge: float = added(0.0)
    features: tuple[Feature, ...] = added(())
    key_shift: PreviousKey | MixedKey | None = added(None)
    forget: ForgetGate | None = added(None)
    write: WriteGate | None = added(None)
    regularizer: Regularizer | None = added(None)

    def __post_init__(self) -> None:
        require(self.smallest_ridge >= 0, "smallest_ridge", self.smallest_ridge, "at least 0")
        allowed = f"greater than {self.smallest_ridge:g}"
        require(self.initial_ridge > self.smallest_ridge, "initial_ridge", self.initial_ridge, allowed)
        granularities = ("head", "coordinate")
        require(self.ridge_per in granularities, "ridge_per", self.ridge_per, f"one of {granularities}")
        if self.regularizer is not None:
            check_regularizer(self.regularizer)

    @property
    def chosen_regularizer(self) -> Regularizer:
        """The regularizer, also where it was left open."""
        return self.regularizer or ("initial" if self.forget is None else "constant")


AttentionKind = Softmax | Linear | Mesa


@dataclass(frozen=True)
class TransformerConfig:
    """A causal Transformer without biases, as in arXiv 2309.05858, Tables 1-3.

    Attributes:
        token_dim: n_e, size of an input token.
        prediction_dim: n_s, size of a prediction.
        attention: kind of attention of each layer, first to last; its length is the depth.
        num_heads: heads per layer.
        key_dim: n_a, size of queries, keys and values of one head.
        embed_dim: d_e, width of the residual stream behind a learned linear embedding; the prediction is then a
            learned linear map of the last activation. None: the token is the residual stream, and the prediction is
            its first n_s coordinates (slot 0 of constructed tokens).
        mlp_dim: hidden units of the GELU MLP in each block, or None for attention only.
        layer_norm: normalise the input of every attention and MLP sub-block (pre-norm).
        position_dim: size of the sinusoidal position encoding concatenated to the input of the query and key
            projections of the first layer, or None.
        qk_norm: how the queries and keys of each head are normalised, or None.
        activation_clip: c to clip the residual stream to [-c, c] after each block, or None.
        init_std: standard deviation of all initial weight matrices.
    """

    token_dim: int
    prediction_dim: int
    attention: tuple[AttentionKind, ...]
    num_heads: int
    key_dim: int
    embed_dim: int | None = None
    mlp_dim: int | None = None
    layer_norm: bool = False
    position_dim: int | None = None
    qk_norm: Norm | None = None
    activation_clip: float | None = None
    init_std: float = 0.05

    def __post_init__(self) -> None:
        require(len(self.attention) >= 1, "attention", self.attention, "at least one layer")
        for argument in ("token_dim", "prediction_dim", "num_heads", "key_dim"):
            require(getattr(self, argument) >= 1, argument, getattr(self, argument), "at least 1")
        for argument in ("embed_dim", "mlp_dim", "position_dim"):
            value = getattr(self, argument)
            require(value is None or value >= 1, argument, value, "at least 1, or None")
        require(
            self.embed_dim is not None or self.prediction_dim <= self.token_dim,
            "prediction_dim",
            self.prediction_dim,
            f"at most token_dim ({self.token_dim}) when embed_dim is None",
        )
        clip = self.activation_clip
        require(clip is None or clip > 0, "activation_clip", clip, "greater than 0, or None")
        require(self.init_std > 0, "init_std", self.init_std, "greater than 0")

    @property
    def num_layers(self) -> int:
        return len(self.attention)

    @property
    def width(self) -> int:
        """d_e, width of the residual stream."""
        return self.token_dim if self.embed_dim is None else self.embed_dim
