"""Architecture of a Transformer as data."""

from dataclasses import dataclass

from mesascope.errors import require


@dataclass(frozen=True)
class Softmax:
    """Softmax attention, logits divided by sqrt(key_dim)."""


@dataclass(frozen=True)
class Linear:
    """Linear attention, neither scaled nor normalised."""


@dataclass(frozen=True)
class Mesa:
    """Mesa attention: ridge regression solved exactly at every time step, one learned ridge per head.

    Attributes:
        initial_ridge: ridge (1 / lambda of the paper) before training.
    """

    initial_ridge: float = 1.0

    def __post_init__(self) -> None:
        require(self.initial_ridge > 0, "initial_ridge", self.initial_ridge, "greater than 0")


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
        normalise_qk: divide the queries and keys of each head by their Euclidean norm.
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
    normalise_qk: bool = False
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
