"""Few-shot linear regression y_i = W* x_i laid out as a token sequence: the post-training test of Figs. 8 and 18.

Source: arXiv 2309.05858, section on in-context learning. A model is trained on dynamics only and then reads
`x_1, y_1, x_2, y_2, ...`; it is scored on its prediction of y_i at the position of x_i.

Differences from the text: (1) x_i is uniform(-1, 1) per coordinate as in the authors' code; "normal" selects the
text's law.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.errors import InputError, require
from mesascope.tasks.sequences import Latents, Sequences
from mesascope.tasks.transitions import haar_orthogonal


@dataclass(frozen=True)
class PairLayout:
    """`[x_1, y_1, x_2, y_2, ...]`"""

    group: ClassVar[int] = 2
    prefix: ClassVar[int] = 0


@dataclass(frozen=True)
class EOSLayout:
    """`[x_1, y_1, EOS, x_2, y_2, EOS, ...]`: a learned token ends every pair."""

    group: ClassVar[int] = 3
    prefix: ClassVar[int] = 0


@dataclass(frozen=True)
class PrefixLayout:
    """`[P_1 .. P_prefix, x_1, y_1, EOS, ...]`: learned tokens before every task, and EOS after every pair."""

    group: ClassVar[int] = 3
    prefix: int = 20

    def __post_init__(self) -> None:
        require(self.prefix >= 1, "prefix", self.prefix, "at least 1")


@dataclass(frozen=True)
class FewShotRegression:
    """A task: regression problems presented one after the other.

    Attributes:
        n: size of x and y.
        pairs: number of pairs of each task in a row; `(60,)` is one task, `(30, 30)` two with independent W*.
        layout: how pairs become tokens.
        inputs: law of each coordinate of x_i, "uniform" on (-1, 1) or standard "normal".
        noise_std: standard deviation of the noise on y_i.
        max_length: the longest sequence the model was trained on; longer layouts are an error. None: no limit.
    """

    n: int = 10
    pairs: tuple[int, ...] = (60,)
    layout: PairLayout | EOSLayout | PrefixLayout = PairLayout()
    inputs: Literal["uniform", "normal"] = "uniform"
    noise_std: float = 0.0
    max_length: int | None = None

    def __post_init__(self) -> None:
        require(self.n >= 1, "n", self.n, "at least 1")
        require(len(self.pairs) >= 1, "pairs", self.pairs, "at least one task")
        require(all(count >= 1 for count in self.pairs), "pairs", self.pairs, "at least 1 in every task")
        require(self.noise_std >= 0, "noise_std", self.noise_std, "at least 0")
        if self.max_length is not None and self.length > self.max_length:
            raise InputError(
                f"pairs: got {self.pairs}, which makes {self.length} tokens, but max_length is {self.max_length}"
            )

    @property
    def length(self) -> int:
        """Number of tokens."""
        return sum(self.layout.prefix + self.layout.group * count for count in self.pairs)

    @property
    def token_dim(self) -> int:
        """n_e, the size of a token."""
        return self.n

    def sample(
        self,
        batch_size: int,
        generator: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
        eos: Float[Tensor, " n"] | None = None,
        prefix: Float[Tensor, "prefix n"] | None = None,
    ) -> Sequences:
        """Draw `batch_size` sequences. `scored` holds the positions of the x_i, where the target is y_i.

        Args:
            eos: the learned end-of-pair token; required by layouts that have one, refused by the others.
            prefix: the learned prefix tokens; required by `PrefixLayout`, refused by the others.
        """
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        self._check_learned("eos", eos, self.layout.group == 3, (self.n,))
        self._check_learned("prefix", prefix, self.layout.prefix > 0, (self.layout.prefix, self.n))
        blocks, transitions = [], []
        for count in self.pairs:
            transition = haar_orthogonal(batch_size, self.n, generator, dtype)
            blocks.append(self._block(transition, count, generator, eos, prefix))
            transitions.append(transition)
        tokens = torch.cat(blocks, dim=1)
        # nothing follows the last token, so its target is zero and never scored
        targets = torch.cat([tokens[:, 1:], torch.zeros_like(tokens[:, :1])], dim=1)
        return Sequences(
            tokens=tokens,
            targets=targets,
            observations=tokens,
            latents=Latents(transition=torch.stack(transitions, dim=1)),
            scored=self.scored_positions(),
        )

    def scored_positions(self) -> Int[Tensor, " pairs"]:
        """Time indices (from 0) of x_1, x_2, ... over all tasks."""
        positions, start = [], 0
        for count in self.pairs:
            start += self.layout.prefix
            positions.append(start + self.layout.group * torch.arange(count))
            start += self.layout.group * count
        return torch.cat(positions)

    def _block(
        self,
        transition: Float[Tensor, "batch n n"],
        count: int,
        generator: torch.Generator,
        eos: Float[Tensor, " n"] | None,
        prefix: Float[Tensor, "prefix n"] | None,
    ) -> Float[Tensor, "batch time n"]:
        batch_size, dtype = transition.shape[0], transition.dtype
        shape = (batch_size, count, self.n)
        if self.inputs == "uniform":
            x = 2 * torch.rand(shape, generator=generator, dtype=dtype) - 1
        else:
            x = torch.randn(shape, generator=generator, dtype=dtype)
        y = x @ transition.mT
        if self.noise_std > 0:
            y = y + self.noise_std * torch.randn(shape, generator=generator, dtype=dtype)
        group = [x, y] if eos is None else [x, y, eos.to(dtype).expand(shape)]
        block = torch.stack(group, dim=2).reshape(batch_size, -1, self.n)
        if prefix is not None:
            block = torch.cat([prefix.to(dtype).expand(batch_size, -1, -1), block], dim=1)
        return block

    def _check_learned(self, argument: str, value: Tensor | None, needed: bool, shape: tuple[int, ...]) -> None:
        layout = type(self.layout).__name__
        if needed and (value is None or tuple(value.shape) != shape):
            got = None if value is None else tuple(value.shape)
            raise InputError(f"{argument}: got {got}, but {layout} needs a tensor of shape {shape}")
        if not needed and value is not None:
            raise InputError(f"{argument}: got a tensor of shape {tuple(value.shape)}, but {layout} has no {argument}")
