"""Token construction: how observations s_1 .. s_T become the tokens e_1 .. e_T that a model reads.

Source: arXiv 2309.05858, sections on constructed tokens (eq. of Proposition 1) and on partial observation.

Differences from the paper: (1) the text has three slots `[0, s_t, s_{t-1}]`, the authors' code four,
`[0, s_t, s_t, s_{t-1}]`; four are the default here and three can be chosen.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require
from mesascope.tasks.sequences import shift_right


@dataclass(frozen=True)
class PlainTokens:
    """e_t = s_t: the model has to bind neighbouring tokens by itself."""

    def width(self, n_s: int) -> int:
        """n_e, the size of a token."""
        return n_s

    def __call__(self, observations: Float[Tensor, "batch time n_s"]) -> Float[Tensor, "batch time n_e"]:
        return observations


@dataclass(frozen=True)
class ConstructedTokens:
    """e_t = [0, s_t, s_t, s_{t-1}] with s_0 = 0: neighbouring observations are bound in advance.

    Slot 0 is where the prediction is read; slot 1 a copy that layers may overwrite; slot 2 the current and slot 3 the
    previous observation.

    Attributes:
        slots: 4 as in the authors' code, or 3 as in the paper's text, without the copy.
        mask_copy: set slot 1 to zero, so that only slots 2 and 3 carry the input (one-layer study).
    """

    slots: int = 4
    mask_copy: bool = False

    def __post_init__(self) -> None:
        require(self.slots in (3, 4), "slots", self.slots, "3 or 4")
        require(not (self.mask_copy and self.slots == 3), "mask_copy", self.mask_copy, "False when slots is 3")

    def width(self, n_s: int) -> int:
        """n_e, the size of a token."""
        return self.slots * n_s

    def __call__(self, observations: Float[Tensor, "batch time n_s"]) -> Float[Tensor, "batch time n_e"]:
        empty, previous = torch.zeros_like(observations), shift_right(observations)
        if self.slots == 3:
            return torch.cat([empty, observations, previous], dim=-1)
        copy = empty if self.mask_copy else observations
        return torch.cat([empty, copy, observations, previous], dim=-1)


@dataclass(frozen=True)
class WindowTokens:
    """e_t = [s_t, s_{t-1}, .., s_{t-k+1}], newest first, zeros before the start (partial observation).

    Attributes:
        window: k, the number of observations in one token.
    """

    window: int

    def __post_init__(self) -> None:
        require(self.window >= 1, "window", self.window, "at least 1")

    def width(self, n_s: int) -> int:
        """n_e, the size of a token."""
        return self.window * n_s

    def __call__(self, observations: Float[Tensor, "batch time n_s"]) -> Float[Tensor, "batch time n_e"]:
        slots = [observations]
        for _ in range(self.window - 1):
            slots.append(shift_right(slots[-1]))
        return torch.cat(slots, dim=-1)


TokenScheme = PlainTokens | ConstructedTokens | WindowTokens
