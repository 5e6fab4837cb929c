"""Linear models of several depths and a mesa layer on other dynamics than the default ones (Figs. 11 and 12)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mesascope.experiments.base import Profile, Trained
from mesascope.experiments.studies.evaluation import (
    Array,
    curve,
    curves,
    evaluation_sequences,
    proposition_2_curves,
    tuning_sequences,
)
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.trainings import constructed_training
from mesascope.learners import GradientDescent, RidgeRegression, Zero, best_step_size
from mesascope.training.config import TrainingConfig

DEPTHS = (1, 2, 4, 6)

CONSTRUCTED_REDUCTIONS = (
    "Warm-up and cosine schedules with peaks of 1e-3 to 1e-2 and 200 to 1,000 steps, instead of 10,000 steps at a "
    "constant 1e-4.",
    "Models with 2, 4 and 6 layers: batches of 128 sequences instead of 256, gradients clipped to a norm of 0.1 "
    "instead of elementwise to 1, and one seed instead of five.",
    "One seed of the mesa layer instead of five.",
)
"""How the quick profile of these trainings falls short of the paper."""

Layers = int | Literal["mesa"]
"""A number of linear layers, or one mesa layer."""


@dataclass(frozen=True)
class OtherDynamics:
    """What is trained on one kind of dynamics.

    Attributes:
        dynamics: where W* comes from.
        profile: settings of the trainings.
        one_layer_seeds: trainings of one linear layer.
        deep_seeds: trainings of each deeper model; of the mesa layer there is one.
    """

    dynamics: Literal["contracting", "fixed teacher"]
    profile: Profile
    one_layer_seeds: int
    deep_seeds: int

    def replicates(self, layers: Layers) -> Replicates:
        """All seeds of one model."""
        seeds = 1 if layers == "mesa" else self.one_layer_seeds if layers == 1 else self.deep_seeds
        kind = "mesa layer" if layers == "mesa" else f"{layers} linear layer{'s' if layers > 1 else ''}"
        name = f"{kind}, {self.dynamics}"
        return Replicates.of(name, lambda seed: constructed_training(self.dynamics, layers, self.profile, seed), seeds)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        """Every training by its label."""
        labelled: dict[str, TrainingConfig] = {}
        for layers in (*DEPTHS, "mesa"):
            labelled |= self.replicates(layers).by_label
        return labelled

    def measure(self, trained: Trained) -> "LossCurves":
        """Loss curves of all models and of what they are compared with, on the same sequences."""
        task = self.replicates(1).task
        sequences = evaluation_sequences(task)
        step_size = best_step_size(tuning_sequences(task))
        return LossCurves(
            linear={depth: curves(self.replicates(depth).models(trained), sequences) for depth in DEPTHS},
            mesa=curve(self.replicates("mesa").models(trained)[0], sequences),
            gradient=curve(GradientDescent((step_size,)), sequences),
            ridge=curve(RidgeRegression(), sequences),
            zero=curve(Zero(), sequences),
            shared=proposition_2_curves("none", DEPTHS, task),
            scaled=proposition_2_curves("frobenius", DEPTHS, task),
        )


@dataclass(frozen=True)
class LossCurves:
    """Losses along the sequence, `[T]`, on one set of sequences.

    Attributes:
        linear: trained linear models by depth, `[seeds, T]`.
        mesa: a trained mesa layer.
        gradient: one gradient step, its step size tuned on other sequences.
        ridge: ridge regression, ridge 0.001.
        zero: predicting zero.
        shared: best polynomial preconditioners by degree, coefficients shared by all t (Proposition 2).
        scaled: the same for the matrix scaled by its norm at every t.
    """

    linear: Mapping[int, Array]
    mesa: Array
    gradient: Array
    ridge: Array
    zero: Array
    shared: Mapping[int, Array]
    scaled: Mapping[int, Array]

    @property
    def losses(self) -> dict[str, float]:
        """Mean loss of every trained model, the mean over seeds; the deepest last but the mesa layer."""
        linear = {f"{depth} linear": float(values.mean()) for depth, values in self.linear.items()}
        return {**linear, "mesa": float(self.mesa.mean())}

    @property
    def forms(self) -> dict[str, Mapping[int, Array]]:
        """Both forms of Proposition 2."""
        return {"shared": self.shared, "scaled": self.scaled}

    def ratios(self, depth: int, reference: Array) -> Array:
        """Mean losses of a linear model, seed by seed, divided by that of a reference."""
        return np.asarray(self.linear[depth].mean(1) / reference.mean())
