"""Sequences observed from a dynamical system: h_{t+1} = W* g(h_t) + noise, s_t = C* h_t + noise.

Source: arXiv 2309.05858, section "Sequence generators"; where its text and the authors' code differ, the choice that
agrees with the axes of the figures is the default and the other can be selected.

Differences from the text: (1) h_1 is uniform(-1, 1) per coordinate, not N(0, I); (2) entries of C* have standard
deviation 0.5, not variance 0.5; (3) the MLP* features are divided by their norm; (4) the state noise, a symbol in the
text, has standard deviation 0.01.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import InputError, require
from mesascope.tasks.sequences import Latents, Sequences
from mesascope.tasks.tokens import PlainTokens, TokenScheme
from mesascope.tasks.transitions import Orthogonal, Transition


@dataclass(frozen=True)
class MLPFeatures:
    """g(h) = MLP*(h) / ||MLP*(h)|| with MLP*(h) = B GELU(A h); A and B are one fixed pair for the whole task.

    Attributes:
        hidden: n_m, the number of hidden units (not given in the paper).
        weight_std: standard deviation of the entries of A and B.
        seed: names the pair (A, B).
        normalise: divide by the Euclidean norm, as the authors' code does and the text does not say.
        gelu: "exact" (Gaussian distribution function, text) or "tanh" (approximation, code).
    """

    hidden: int = 20
    weight_std: float = 1.1
    seed: int = 0
    normalise: bool = True
    gelu: Literal["exact", "tanh"] = "exact"

    def __post_init__(self) -> None:
        require(self.hidden >= 1, "hidden", self.hidden, "at least 1")
        require(self.weight_std > 0, "weight_std", self.weight_std, "greater than 0")

    def __call__(self, states: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """g applied to the last dimension of `states`."""
        n = states.shape[-1]
        generator = torch.Generator().manual_seed(self.seed)
        inner = self.weight_std * torch.randn(self.hidden, n, generator=generator, dtype=torch.float64)
        outer = self.weight_std * torch.randn(n, self.hidden, generator=generator, dtype=torch.float64)
        approximate = "none" if self.gelu == "exact" else "tanh"
        hidden = torch.nn.functional.gelu(states @ inner.to(states.dtype).T, approximate=approximate)
        features = hidden @ outer.to(states.dtype).T
        if self.normalise:
            features = features / (features.norm(dim=-1, keepdim=True) + 1e-16)
        return features


@dataclass(frozen=True)
class GaussianEmission:
    """C* with independent Gaussian entries, fresh for every sequence: the state is only partially observed."""

    std: float = 0.5

    def __post_init__(self) -> None:
        require(self.std > 0, "std", self.std, "greater than 0")


@dataclass(frozen=True)
class ClipStates:
    """Clip every new state to [-bound, bound] inside the recursion (the authors' code)."""

    bound: float = 10.0

    def __post_init__(self) -> None:
        require(self.bound > 0, "bound", self.bound, "greater than 0")


@dataclass(frozen=True)
class ClipSequence:
    """Clip the values of the finished sequence to [-bound, bound] (the paper's text for Fig. 11)."""

    bound: float = 2.0

    def __post_init__(self) -> None:
        require(self.bound > 0, "bound", self.bound, "greater than 0")


@dataclass(frozen=True)
class Dynamics:
    """A task: sequences observed from a noisy dynamical system with a W* of their own.

    Attributes:
        n_s: size of an observation.
        n_h: size of the hidden state.
        length: T, the number of predictions; T + 1 states are drawn.
        transition: where W* comes from.
        features: g, or None for linear dynamics.
        emission: C*, or None when the state is observed itself (then n_s must equal n_h).
        initial: law of each coordinate of h_1, "uniform" on (-1, 1) or standard "normal".
        noise_std: standard deviation of the state noise; it enters from h_2 on.
        observation_noise_std: standard deviation of the observation noise, shared by inputs and targets.
        clip: what keeps states bounded, or None.
        tokens: how observations become tokens.
    """

    n_s: int = 10
    n_h: int = 10
    length: int = 50
    transition: Transition = Orthogonal()
    features: MLPFeatures | None = None
    emission: GaussianEmission | None = None
    initial: Literal["uniform", "normal"] = "uniform"
    noise_std: float = 0.01
    observation_noise_std: float = 0.0
    clip: ClipStates | ClipSequence | None = ClipStates()
    tokens: TokenScheme = PlainTokens()

    def __post_init__(self) -> None:
        require(self.n_h >= 1, "n_h", self.n_h, "at least 1")
        require(1 <= self.n_s <= self.n_h, "n_s", self.n_s, f"between 1 and n_h ({self.n_h})")
        require(self.length >= 2, "length", self.length, "at least 2 (T, the number of predictions)")
        require(self.noise_std >= 0, "noise_std", self.noise_std, "at least 0")
        require(self.observation_noise_std >= 0, "observation_noise_std", self.observation_noise_std, "at least 0")
        if self.emission is None and self.n_s != self.n_h:
            raise InputError(
                f"emission: got None with n_s = {self.n_s} and n_h = {self.n_h}; a state that is observed itself needs "
                "n_s = n_h, and GaussianEmission() observes it partially"
            )

    @property
    def token_dim(self) -> int:
        """n_e, the size of a token."""
        return self.tokens.width(self.n_s)

    def sample(self, batch_size: int, generator: torch.Generator, *, dtype: torch.dtype = torch.float32) -> Sequences:
        """Draw `batch_size` sequences. The same generator state gives the same bits."""
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        transition = self.transition.sample(batch_size, self.n_h, generator, dtype)
        states = self._states(transition, generator)
        emission = None
        observed = states
        if self.emission is not None:
            shape = (batch_size, self.n_s, self.n_h)
            emission = self.emission.std * torch.randn(shape, generator=generator, dtype=dtype)
            observed = states @ emission.mT
        if self.observation_noise_std > 0:
            noise = torch.randn(observed.shape, generator=generator, dtype=dtype)
            observed = observed + self.observation_noise_std * noise
        observations, targets = observed[:, :-1], observed[:, 1:]
        features = None if self.features is None else self.features(states[:, :-1])
        return Sequences(
            tokens=self.tokens(observations),
            targets=targets,
            observations=observations,
            latents=Latents(transition=transition, states=states, emission=emission, features=features),
        )

    def _states(
        self, transition: Float[Tensor, "batch n n"], generator: torch.Generator
    ) -> Float[Tensor, "batch states n"]:
        shape, dtype = (transition.shape[0], self.length + 1, self.n_h), transition.dtype
        driven = self.noise_std * torch.randn(shape, generator=generator, dtype=dtype)
        if self.initial == "uniform":
            driven[:, 0] = 2 * torch.rand(shape[0], self.n_h, generator=generator, dtype=dtype) - 1
        else:
            driven[:, 0] = torch.randn(shape[0], self.n_h, generator=generator, dtype=dtype)
        bound = self.clip.bound if isinstance(self.clip, ClipStates) else None
        if self.features is None:
            states = _linear_states(transition, driven)
            # a clip that is nowhere active leaves the recursion as it is, so the fast form is exact then; a power of W
            # that overflows makes states NaN, which are not within the bound either
            if bound is not None and not float(states.abs().max()) <= bound:
                states = _states_step_by_step(transition, driven, None, bound)
        else:
            states = _states_step_by_step(transition, driven, self.features, bound)
        if isinstance(self.clip, ClipSequence):
            states = states.clamp(-self.clip.bound, self.clip.bound)
        return states


def _linear_states(
    transition: Float[Tensor, "batch n n"], driven: Float[Tensor, "batch states n"]
) -> Float[Tensor, "batch states n"]:
    """All states of h_t = W h_{t-1} + e_t (h_0 = 0) in log2(T) batched products instead of T small ones.

    After round k every state holds the inputs of its last 2^k steps; one product with W^(2^k) adds the 2^k before them.
    """
    states, power, reach = driven.mT.contiguous(), transition, 1
    while reach < states.shape[2]:
        states[:, :, reach:] += torch.bmm(power, states[:, :, :-reach])
        power, reach = torch.bmm(power, power), 2 * reach
    return states.mT.contiguous()


def _states_step_by_step(
    transition: Float[Tensor, "batch n n"],
    driven: Float[Tensor, "batch states n"],
    features: MLPFeatures | None,
    bound: float | None,
) -> Float[Tensor, "batch states n"]:
    state = driven[:, 0]
    states = [state]
    for step in range(1, driven.shape[1]):
        moved = state if features is None else features(state)
        state = torch.bmm(transition, moved[:, :, None])[:, :, 0] + driven[:, step]
        if bound is not None:
            state = state.clamp(-bound, bound)
        states.append(state)
    return torch.stack(states, dim=1)
