"""The Transformer of the paper, covering every architecture of its Tables 1-3.

Source: arXiv 2309.05858, section "Methods". Differences from the text: (1) the position encoding is concatenated to the
input of the query and key projections of the first layer, as in the authors' code (the text names two other places);
(2) queries and keys are normalised by their Euclidean norm.
"""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.errors import InputError
from mesascope.nn.attention import build_attention
from mesascope.nn.base import Attention
from mesascope.nn.config import AttentionKind, TransformerConfig
from mesascope.ops.dense import gelu_mlp, layer_norm, linear_maps
from mesascope.tasks.sequences import Sequences


@dataclass(frozen=True)
class RunResult:
    """What `Transformer.run` returns.

    Attributes:
        predictions: `[B, T, n_s]`.
        activations: captured activations by name.
    """

    predictions: Float[Tensor, "batch time n_s"]
    activations: dict[str, Tensor]


@dataclass(frozen=True)
class Recorder:
    """Keeps the activations that are wanted of a part of a model.

    Attributes:
        wanted: full names.
        activations: where they are kept, by full name.
        prefix: of the part, with a dot at its end; empty for the whole model.
    """

    wanted: frozenset[str]
    activations: dict[str, Tensor]
    prefix: str = ""

    def __call__(self, name: str, value: Tensor) -> None:
        if self.prefix + name in self.wanted:
            self.activations[self.prefix + name] = value

    def within(self, part: str) -> "Recorder | None":
        """For a part of this part; None if nothing is wanted of it, for an attention map costs more than the model."""
        prefix = f"{self.prefix}{part}."
        return replace(self, prefix=prefix) if any(name.startswith(prefix) for name in self.wanted) else None


def matching_activations(known: Sequence[str], patterns: Sequence[str]) -> frozenset[str]:
    """The `known` names of activations that match a name or pattern, such as `"blocks.*.resid_post"`.

    Raises:
        InputError: a name or pattern matches nothing.
    """
    wanted: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(known, pattern)
        if not matches:
            raise InputError(f"capture: {pattern!r} matches no activation; known: {', '.join(known)}")
        wanted.update(matches)
    return frozenset(wanted)


class MLP(nn.Module):
    """W_2 GELU(W_1 x), no biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.W_1 = nn.Parameter(torch.empty(hidden, width))
        self.W_2 = nn.Parameter(torch.empty(width, hidden))

    def forward(self, x: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time d"]:
        return gelu_mlp(x, self.W_1, self.W_2)


class TokenNorm(nn.LayerNorm):
    """torch's LayerNorm of every token, by the native kernel where there is one."""

    def forward(self, x: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time d"]:
        return layer_norm(x, self.weight, self.bias, self.eps)


class Block(nn.Module):
    """x <- x + attention(norm(x)); x <- x + MLP(norm(x)); then the activation clip."""

    def __init__(self, kind: AttentionKind, config: TransformerConfig, position_dim: int) -> None:
        super().__init__()
        self.attn: Attention = build_attention(
            kind,
            config.width,
            config.num_heads,
            config.key_dim,
            position_dim=position_dim,
            qk_norm=config.qk_norm,
            # the model draws its weights itself; torch's global random state stays as it is
            generator=torch.Generator(),
        )
        self.attn_norm = TokenNorm(config.width) if config.layer_norm else nn.Identity()
        self.mlp = None if config.mlp_dim is None else MLP(config.width, config.mlp_dim)
        self.mlp_norm = TokenNorm(config.width) if config.layer_norm and self.mlp is not None else nn.Identity()
        self.clip = config.activation_clip

    def forward(
        self, x: Float[Tensor, "batch time d"], positions: Tensor | None = None, record: Recorder | None = None
    ) -> Float[Tensor, "batch time d"]:
        normed = self.attn_norm(x)
        update = self.attn(normed, positions, None if record is None else record.within("attn"))
        x = x + update
        if record is not None:
            record("attn.in", normed)
            record("attn.out", update)
        if self.mlp is not None:
            update = self.mlp(self.mlp_norm(x))
            x = x + update
            if record is not None:
                record("mlp.out", update)
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


class Transformer(nn.Module):
    """A causal Transformer over real-valued tokens, `[B, T, n_e] -> [B, T, n_s]`. It is a Predictor.

    Args:
        config: the architecture.
        generator: draws the initial weights, N(0, init_std^2), in the order of `named_parameters`. None: a generator
            with seed 0.
        name: label in tables and legends.
    """

    def __init__(
        self, config: TransformerConfig, generator: torch.Generator | None = None, *, name: str = "Transformer"
    ) -> None:
        super().__init__()
        self.config, self.name = config, name
        position_dims = [config.position_dim or 0] + [0] * (config.num_layers - 1)
        self.embed: nn.Parameter | None = None
        self.unembed: nn.Parameter | None = None
        if config.embed_dim is not None:
            self.embed = nn.Parameter(torch.empty(config.embed_dim, config.token_dim))
            self.unembed = nn.Parameter(torch.empty(config.prediction_dim, config.embed_dim))
        self.blocks = nn.ModuleList(
            Block(kind, config, position_dim)
            for kind, position_dim in zip(config.attention, position_dims, strict=True)
        )
        self._initialise(generator or torch.Generator().manual_seed(0))

    def forward(
        self, tokens: Float[Tensor, "batch time n_e"], record: Recorder | None = None
    ) -> Float[Tensor, "batch time n_s"]:
        if tokens.shape[-1] != self.config.token_dim:
            raise InputError(f"tokens: got size {tokens.shape[-1]}, but token_dim is {self.config.token_dim}")
        x = tokens if self.embed is None else linear_maps(tokens, self.embed)[0]
        if record is not None:
            record("embed", x)
        positions = None
        if self.config.position_dim is not None:
            positions = sinusoidal_positions(x.shape[1], self.config.position_dim).to(x)
        for index, block in enumerate(self.blocks):
            inside = None if record is None else record.within(f"blocks.{index}")
            x = block(x, positions if index == 0 else None, inside)
            if record is not None:
                record(f"blocks.{index}.resid_post", x)
        if self.unembed is None:
            return x[..., : self.config.prediction_dim]
        return linear_maps(x, self.unembed)[0]

    @torch.no_grad()
    def predict(self, sequences: Sequences) -> Float[Tensor, "batch time n_s"]:
        """Predictions from `sequences.tokens`, without gradient."""
        predictions: Tensor = self(sequences.tokens)
        return predictions

    def run(self, tokens: Float[Tensor, "batch time n_e"], capture: Sequence[str] = ()) -> RunResult:
        """Predictions together with named activations; nothing stays behind on the model.

        Args:
            tokens: `[B, T, n_e]`.
            capture: names from `activation_names`, or patterns such as `"blocks.*.resid_post"`.

        Raises:
            InputError: a name or pattern matches nothing.
        """
        wanted = matching_activations(self.activation_names(), capture)
        activations: dict[str, Tensor] = {}
        predictions = self(tokens, Recorder(wanted, activations) if wanted else None)
        return RunResult(predictions, activations)

    def activation_names(self) -> list[str]:
        """Every name that `run` can capture, in the order in which they are computed.

        `embed` is the residual stream before the first block and `blocks.i.resid_post` after block i; `attn.in` is what
        the attention layer sees, `attn.q`, `attn.k`, `attn.v` are `[B, T, H, n_a]` (q and k `[B, T, H, D]` if they have
        D features), `attn.pattern` is `[B, H, T, T]`; `attn.out` and `mlp.out` are added to the stream.
        """
        names = ["embed"]
        for index, block in enumerate(self.blocks):
            parts = ["attn.q", "attn.k", "attn.v", "attn.pattern", "attn.in", "attn.out"]
            parts += ["mlp.out"] if block.mlp is not None else []
            names += [f"blocks.{index}.{part}" for part in [*parts, "resid_post"]]
        return names

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            # matrices only: norms start as the identity and a ridge at the value its config gives
            if parameter.dim() == 2 and not name.endswith("raw_ridge"):
                draw = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(self.config.init_std * draw)


def sinusoidal_positions(length: int, dim: int) -> Float[Tensor, "time dim"]:
    """Sinusoidal position encoding, base 10,000, sine in even and cosine in odd columns."""
    time = torch.arange(length, dtype=torch.float64)[:, None]
    frequency = 10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    encoding = torch.empty(length, dim, dtype=torch.float64)
    encoding[:, 0::2] = torch.sin(time * frequency)
    encoding[:, 1::2] = torch.cos(time * frequency[: dim // 2])
    return encoding
