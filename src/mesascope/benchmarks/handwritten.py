"""A training step as one would write it by hand in plain torch: the peer that our training step is measured against.

The same 7-layer softmax model as `architectures.full_softmax(7)`: torch's own modules, scaled_dot_product_attention,
fused AdamW, elementwise gradient clipping, one forward and one backward pass over the whole batch.
"""

import torch
from torch import Tensor, nn

from mesascope.nn.config import TransformerConfig
from mesascope.nn.transformer import sinusoidal_positions


class HandwrittenBlock(nn.Module):
    """Pre-norm softmax attention and GELU MLP."""

    def __init__(self, config: TransformerConfig, position_dim: int) -> None:
        super().__init__()
        assert config.mlp_dim is not None
        width, inner = config.width, config.num_heads * config.key_dim
        self.heads = config.num_heads
        self.query = nn.Linear(width + position_dim, inner, bias=False)
        self.key = nn.Linear(width + position_dim, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up = nn.Linear(width, config.mlp_dim, bias=False)
        self.down = nn.Linear(config.mlp_dim, width, bias=False)

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        normed = self.norm_1(x)
        located = normed if positions is None else torch.cat([normed, positions.expand(len(x), -1, -1)], dim=-1)
        q, k, v = self.query(located), self.key(located), self.value(normed)
        q, k, v = (operand.unflatten(-1, (self.heads, -1)).transpose(1, 2) for operand in (q, k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm_2(x))))


class HandwrittenModel(nn.Module):
    """Embedding, blocks and read-out."""

    def __init__(self, config: TransformerConfig, length: int) -> None:
        super().__init__()
        assert config.position_dim is not None
        self.embed = nn.Linear(config.token_dim, config.width, bias=False)
        position_dims = [config.position_dim] + [0] * (config.num_layers - 1)
        self.blocks = nn.ModuleList(HandwrittenBlock(config, position_dim) for position_dim in position_dims)
        self.unembed = nn.Linear(config.width, config.prediction_dim, bias=False)
        self.positions = sinusoidal_positions(length, config.position_dim).float()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for index, block in enumerate(self.blocks):
            x = block(x, self.positions if index == 0 else None)
        return self.unembed(x)


class HandwrittenTraining:
    """Model and optimiser with one method that trains on a batch."""

    def __init__(self, config: TransformerConfig, length: int, rate: float, weight_decay: float) -> None:
        self.model = HandwrittenModel(config, length)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=rate, weight_decay=weight_decay, fused=True)

    def update(self, tokens: Tensor, targets: Tensor) -> float:
        """One optimiser step; returns its loss."""
        self.optimiser.zero_grad()
        loss = 0.5 * (self.model(tokens) - targets).square().sum(-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_value_(self.model.parameters(), 1.0)
        self.optimiser.step()
        return loss.item()
