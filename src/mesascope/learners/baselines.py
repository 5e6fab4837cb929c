"""The two ends of every comparison: knowing nothing, and knowing the dynamics."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import InputError
from mesascope.tasks.sequences import Sequences


@dataclass(frozen=True)
class Zero:
    """Predicts zero: the loss of having learned nothing."""

    @property
    def name(self) -> str:
        return "zero"

    @torch.no_grad()
    def predict(self, sequences: Sequences) -> Float[Tensor, "batch time n_s"]:
        return torch.zeros_like(sequences.observations)


@dataclass(frozen=True)
class TrueTransition:
    """Oracle: C* W* g(h_t) with the true C*, W*, g and h_t of the latents. What remains of its loss is noise.

    `predict` raises InputError when the latents hold no states or more than one W* per sequence (few-shot regression).
    """

    @property
    def name(self) -> str:
        return "true W*"

    @torch.no_grad()
    def predict(self, sequences: Sequences) -> Float[Tensor, "batch time n_s"]:
        latents = sequences.latents
        if latents.states is None or latents.transition.dim() != 3:
            raise InputError(
                f"sequences.latents: got transition of shape {tuple(latents.transition.shape)} and "
                f"{'no ' if latents.states is None else ''}states, but the oracle needs the states h_t and one "
                "transition [B, n_h, n_h]; sequences of a Dynamics task have both"
            )
        states = latents.states[:, :-1] if latents.features is None else latents.features
        predicted = states.double() @ latents.transition.double().mT
        if latents.emission is not None:
            predicted = predicted @ latents.emission.double().mT
        return predicted.to(sequences.observations.dtype)
