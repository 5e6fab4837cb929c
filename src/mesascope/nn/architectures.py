"""The architectures of arXiv 2309.05858, Tables 1-3, by name.

Differences from the tables: (1) "sigma^2 = 0.0002" and "sigma^2 = 0.05" are taken as standard deviations, as in the
authors' code; (2) the nonlinear task embeds into 60 dimensions as its table says, not 50 as its prose says; (3) the
paper names three normalisations of queries and keys; the nonlinear task takes that of Table 3, LayerNorm. The authors'
code divides by the Euclidean norm, as does appendix G: `qk_norm=UnitNorm()`. With 20 coordinates and logits divided by
sqrt(20) no softmax weight can then be more than exp(2 / sqrt(20)) = 1.56 times another, so that a layer cannot single a
token out, as Fig. 23 has it; behind LayerNorm it can be exp(2 sqrt(20)) = 7,700 times another.
"""

from mesascope.nn.config import AttentionKind, Linear, Mesa, Softmax, TransformerConfig
from mesascope.nn.features import LayerNorm, Norm


def constructed_linear(
    num_layers: int,
    n_s: int = 10,
    *,
    num_heads: int | None = None,
    key_dim: int = 20,
    activation_clip: float | None = 4.0,
) -> TransformerConfig:
    """Lin-1 and Lin-k: linear attention on constructed tokens, nothing else.

    One layer has 2 heads, deeper models 4. Interpolation and compression of Lin-6 need `key_dim = 40`, at which any
    product of a head can be realised.
    """
    return _on_constructed_tokens((Linear(),) * num_layers, n_s, num_heads, key_dim, activation_clip)


def constructed_softmax(
    num_layers: int,
    n_s: int = 10,
    *,
    num_heads: int | None = None,
    key_dim: int = 20,
    activation_clip: float | None = 4.0,
) -> TransformerConfig:
    """The softmax counterpart of `constructed_linear`."""
    return _on_constructed_tokens((Softmax(),) * num_layers, n_s, num_heads, key_dim, activation_clip)


def constructed_mesa(
    n_s: int = 10,
    *,
    num_heads: int = 2,
    key_dim: int = 20,
    initial_ridge: float = 1.0,
    activation_clip: float | None = 4.0,
) -> TransformerConfig:
    """Mesa-1: a single mesa layer on constructed tokens."""
    return _on_constructed_tokens((Mesa(initial_ridge),), n_s, num_heads, key_dim, activation_clip)


def full_softmax(num_layers: int = 7, n_s: int = 10) -> TransformerConfig:
    """Full-softmax-7 and -3: softmax Transformer on plain tokens, fully observed linear dynamics."""
    return _on_plain_tokens((Softmax(),) * num_layers, n_s)


def hybrid_mesa(n_s: int = 10) -> TransformerConfig:
    """Hybrid-mesa: one softmax layer followed by one mesa layer."""
    return _on_plain_tokens((Softmax(), Mesa()), n_s)


def full_mesa(n_s: int = 10) -> TransformerConfig:
    """Full-mesa: two mesa layers."""
    return _on_plain_tokens((Mesa(), Mesa()), n_s)


def partial_softmax(num_layers: int = 7, n_s: int = 5, embed_dim: int = 80) -> TransformerConfig:
    """Partial-softmax-7: partially observed dynamics, embedding sizes 5 .. 80."""
    return _partial((Softmax(),) * num_layers, n_s, embed_dim)


def partial_hybrid(n_s: int = 5, embed_dim: int = 80) -> TransformerConfig:
    """Partial-hybrid: one softmax and one mesa layer, partially observed dynamics."""
    return _partial((Softmax(), Mesa()), n_s, embed_dim)


def nonlinear_softmax(num_layers: int = 7, n_s: int = 10, qk_norm: Norm = LayerNorm()) -> TransformerConfig:
    """Nonlin-softmax-7: nonlinear dynamics, 60 dimensions, MLP of 300, normalised queries and keys."""
    return _nonlinear((Softmax(),) * num_layers, n_s, qk_norm)


def nonlinear_hybrid(n_s: int = 10, qk_norm: Norm = LayerNorm()) -> TransformerConfig:
    """Nonlin-hybrid: one softmax and one mesa layer, nonlinear dynamics."""
    return _nonlinear((Softmax(), Mesa()), n_s, qk_norm)


def linearisation_softmax(n_s: int, num_layers: int = 7) -> TransformerConfig:
    """The 7-layer softmax model of the linearisation study, width 4 n_s and keys 2 n_s.

    The authors' code drops MLP and LayerNorm here without saying so; this is the model their text describes.
    """
    return _on_plain_tokens((Softmax(),) * num_layers, n_s, key_dim=2 * n_s)


def _on_constructed_tokens(
    attention: tuple[AttentionKind, ...],
    n_s: int,
    num_heads: int | None,
    key_dim: int,
    activation_clip: float | None,
) -> TransformerConfig:
    return TransformerConfig(
        token_dim=4 * n_s,
        prediction_dim=n_s,
        attention=attention,
        num_heads=num_heads or (2 if len(attention) == 1 else 4),
        key_dim=key_dim,
        activation_clip=activation_clip,
        init_std=0.0002,
    )


def _on_plain_tokens(
    attention: tuple[AttentionKind, ...],
    n_s: int,
    *,
    embed_dim: int | None = None,
    key_dim: int = 20,
    mlp_dim: int | None = None,
    qk_norm: Norm | None = None,
) -> TransformerConfig:
    embed_dim = embed_dim or 4 * n_s
    return TransformerConfig(
        token_dim=n_s,
        prediction_dim=n_s,
        attention=attention,
        num_heads=4,
        key_dim=key_dim,
        embed_dim=embed_dim,
        mlp_dim=mlp_dim or 4 * embed_dim,
        layer_norm=True,
        position_dim=embed_dim,
        qk_norm=qk_norm,
        init_std=0.05,
    )


def _partial(attention: tuple[AttentionKind, ...], n_s: int, embed_dim: int) -> TransformerConfig:
    return _on_plain_tokens(attention, n_s, embed_dim=embed_dim, key_dim=min(20, embed_dim))


def _nonlinear(attention: tuple[AttentionKind, ...], n_s: int, qk_norm: Norm) -> TransformerConfig:
    return _on_plain_tokens(attention, n_s, embed_dim=60, mlp_dim=300, qk_norm=qk_norm)
