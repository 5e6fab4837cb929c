"""What a mesa layer computes from its input beside queries, keys and values: the key shift, and logits of its gates."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.nn.config import MixedKey, PreviousKey


class Gate(nn.Module):
    """W x + b, one logit per head, in float32 where x is half precision. W starts at 0.

    Args:
        width: size of x.
        num_heads: H.
        initial: sigmoid(b) before training, between 0 and 1.
    """

    def __init__(self, width: int, num_heads: int, initial: float) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.zeros(num_heads, width))
        self.b = nn.Parameter(torch.full((num_heads,), _logit(initial)))

    def forward(self, x: Float[Tensor, "batch time d"]) -> Float[Tensor, "batch time heads"]:
        # a share of the past close to 1 has no digits left in half precision
        return nn.functional.linear(x, self.W, self.b).to(torch.promote_types(x.dtype, torch.float32))


class KeyShift(nn.Module):
    """Keys that have something of the token before.

    Args:
        kind: what they have of it.
        num_heads: H.
    """

    def __init__(self, kind: PreviousKey | MixedKey, num_heads: int) -> None:
        super().__init__()
        self.raw_share: nn.Parameter | None = None
        if isinstance(kind, MixedKey):
            self.raw_share = nn.Parameter(torch.full((num_heads,), _logit(kind.initial)))

    @property
    def share(self) -> Float[Tensor, " heads"] | None:
        """What a key keeps of its own, or None for nothing."""
        return None if self.raw_share is None else self.raw_share.sigmoid()

    def forward(
        self, k: Float[Tensor, "batch time heads d"], previous: Float[Tensor, "batch heads d"]
    ) -> tuple[Float[Tensor, "batch time heads d"], Float[Tensor, "batch heads d"]]:
        """The shifted keys, and the last key before the shift, which is `previous` for the tokens that follow."""
        every = torch.cat([previous[:, None], k], 1)
        earlier, last = every[:, :-1], every[:, -1]
        if self.share is None:
            return earlier, last
        share = self.share[:, None]
        return share * k + (1 - share) * earlier, last


def _logit(share: float) -> float:
    return math.log(share) - math.log1p(-share)
