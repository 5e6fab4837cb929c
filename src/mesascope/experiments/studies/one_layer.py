"""One linear layer is one step of gradient descent; one mesa layer solves the problem (Figs. 3B, 4A, 4C, 13).

The trained layer is compared with gradient descent whose step size was tuned on other sequences, with the model that
keeps only block scalars of its weight products, and with the average of the two along training.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.evaluation import (
    CONSTRUCTED,
    Array,
    curve,
    curves,
    evaluation_sequences,
    learning_curves,
    time_axis,
    tuning_sequences,
    worst,
)
from mesascope.experiments.studies.predicted_blocks import BLOCKS, judge_blocks
from mesascope.figures import Figure, Line, LinePanel, Table
from mesascope.learners import GradientDescent, RidgeRegression, best_step_size
from mesascope.nn import Transformer, architectures
from mesascope.training.config import ConstantRate, TrainingConfig, WarmupCosine
from mesascope.training.presets import on_constructed_tokens
from mesascope.uncover import (
    compress,
    interpolate,
)

_PAPER = "arXiv 2309.05858v2"

ONE_STEP = Claim(
    "fig4a.one_layer_is_one_step",
    "Test loss of a trained linear layer divided by that of one gradient step with the best step size, for the seed "
    "farthest from 1",
    f"{_PAPER}, Fig. 4A",
    "converges to the line of gradient descent",
    Threshold(0.97, 1.01),
)
INTERPOLATION = Claim(
    "fig4a.interpolation",
    "Test loss of the average of the trained layer and its block-scalar construction divided by that of the trained "
    "layer, for the seed farthest from 1",
    f"{_PAPER}, Fig. 4A; tolerance ours",
    "the curves overlap",
    Threshold(0.97, 1.03),
)
COMPRESSED = Claim(
    "fig4a.compressed",
    "Test loss of the model that keeps 32 numbers per head (block scalars) divided by that of the trained layer, for "
    "the seed farthest from 1",
    f"{_PAPER}, CompressedAlg-1; tolerance ours",
    "not given",
    Threshold(0.97, 1.03),
)
MESA = Claim(
    "fig4a.mesa_solves_it",
    "Test loss of a trained mesa layer divided by that of a trained linear layer",
    f"{_PAPER}, Fig. 4A; threshold from exact least squares, whose ratio is 0.21",
    "far below",
    Threshold(high=0.4),
)
SAME_CURVE = Claim(
    "fig4c.same_curve",
    "Largest difference over t between the loss curves of the trained linear layer (mean over seeds) and of one "
    "gradient step",
    f"{_PAPER}, Fig. 4C; tolerance ours",
    "the curves overlap",
    Threshold(high=0.05),
)
U_SHAPE = Claim(
    "fig4c.u_shape",
    "Time step at which the loss of the trained linear layer is smallest: a fixed step size is too large late in the "
    "sequence",
    f"{_PAPER}, Fig. 4C; the best gradient step has its minimum near t = 35-40",
    "not given",
    Threshold(30, 45),
)


@dataclass(frozen=True)
class OneLayer:
    """The study, for a number of seeds and settings of the two trainings.

    Attributes:
        seeds: trainings of the linear layer.
        linear_schedule, linear_steps: of the linear layer.
        mesa_schedule, mesa_steps: of the mesa layer, which is trained with the first seed only.
        evaluate_every: optimiser steps between two points of the learning curves.
        snapshots: points of the interpolation's learning curve.
    """

    seeds: int
    linear_schedule: ConstantRate | WarmupCosine
    linear_steps: int
    mesa_schedule: ConstantRate | WarmupCosine
    mesa_steps: int
    evaluate_every: int = 100
    snapshots: int = 20

    claims = (ONE_STEP, INTERPOLATION, COMPRESSED, MESA, SAME_CURVE, U_SHAPE, BLOCKS)

    def linear_trainings(self) -> Mapping[str, TrainingConfig]:
        """Those of the linear layer, by label."""
        return {
            linear_label(1, seed): on_constructed_tokens(
                architectures.constructed_linear(1),
                schedule=self.linear_schedule,
                steps=self.linear_steps,
                evaluate_every=self.evaluate_every,
                seed=seed,
                snapshot_every=max(1, self.linear_steps // self.snapshots),
            )
            for seed in range(self.seeds)
        }

    def trainings(self) -> Mapping[str, TrainingConfig]:
        mesa = on_constructed_tokens(
            architectures.constructed_mesa(),
            schedule=self.mesa_schedule,
            steps=self.mesa_steps,
            evaluate_every=self.evaluate_every,
        )
        return {**self.linear_trainings(), MESA_LABEL: mesa}

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        gradient = curve(GradientDescent((best_step_size(tuning_sequences()),)))
        mesa, ridge = curve(trained.model(MESA_LABEL, "mesa layer")), curve(RidgeRegression())
        labels = [linear_label(1, seed) for seed in range(self.seeds)]
        models = [trained.model(label, label) for label in labels]
        compressed = [compress(model) for model in models]
        averaged = [interpolate(model, short) for model, short in zip(models, compressed, strict=True)]
        linear = curves(models)
        losses = {
            "trained": linear.mean(1),
            "averaged": curves(averaged).mean(1),
            "compressed": curves(compressed).mean(1),
        }
        _judge_losses(sheet, losses, gradient.mean(), mesa.mean())
        _judge_curve(sheet, linear.mean(0), gradient)
        figures = (
            self._learning_curves(trained, labels, compressed, gradient.mean()),
            time_figure(
                linear,
                gradient,
                mesa,
                ridge,
                title="Loss along the sequence, one layer (Fig. 4C)",
                caption="How well the next token is predicted after t tokens. The linear layer has the curve of one "
                "gradient step, rising late because one step size must serve all t; the mesa layer follows least "
                "squares, which knows W* after ten transitions.",
            ),
            judge_blocks(sheet, models),
        )
        return Findings(figures=figures, tables=(_table(losses, gradient.mean(), mesa.mean()),))

    def _learning_curves(
        self, trained: Trained, labels: list[str], compressed: list[Transformer], gradient_loss: float
    ) -> Figure:
        """Fig. 4A. The trained products are averaged at every snapshot with the construction found at the end."""
        sequences = evaluation_sequences().select(slice(0, 512))
        steps = trained.snapshot_steps(labels[0])
        averaged = np.array(
            [
                [curve(interpolate(trained.snapshot(label, step, label), short), sequences).mean() for step in steps]
                for label, short in zip(labels, compressed, strict=True)
            ]
        )
        linear_at, linear = learning_curves(trained, labels)
        mesa_at, mesa = learning_curves(trained, [MESA_LABEL])
        lines = (
            Line.over_seeds("1 linear layer", linear_at, linear, "model", 0),
            Line.over_seeds(
                "average with its construction", np.array(steps, dtype=np.float64), averaged, "hypothesis", 1
            ),
            Line("1 gradient step", linear_at, np.full_like(linear_at, gradient_loss), "hypothesis", 2),
            Line.over_seeds("1 mesa layer", mesa_at, mesa, "model", 3),
        )
        panel = LinePanel("Learning curves, one layer", "optimiser step", "test loss", lines)
        caption = (
            "A linear layer ends where one gradient step with the best step size stands, and stays there when its "
            "weights are averaged with the block-scalar construction read off from it. A mesa layer does better "
            "because it solves the regression at every time step. Bands: one standard deviation over seeds."
        )
        return Figure("learning_curves_1_layer", "Learning curves of one layer (Fig. 4A)", caption, (panel,), 1)


N_S = CONSTRUCTED.n_s


def quick_one_layer(seeds: int) -> OneLayer:
    """Settings that converge in hundreds of steps; experiments that use them share the trainings."""
    return OneLayer(
        seeds=seeds,
        linear_schedule=WarmupCosine(3e-3, warmup_steps=50, decay_steps=400, final=1e-5),
        linear_steps=400,
        mesa_schedule=WarmupCosine(5e-3, warmup_steps=30, decay_steps=200, final=1e-5),
        mesa_steps=200,
        evaluate_every=20,
    )


def paper_one_layer(seeds: int) -> OneLayer:
    """The settings of the paper."""
    rate = ConstantRate(1e-4)
    return OneLayer(seeds, linear_schedule=rate, linear_steps=10_000, mesa_schedule=rate, mesa_steps=10_000)


MESA_LABEL = "mesa layer, seed 0"


def linear_label(depth: int, seed: int) -> str:
    """Label of the training of `depth` linear layers."""
    return f"{depth} linear layer{'s' if depth > 1 else ''}, seed {seed}"


def _judge_losses(sheet: ClaimSheet, losses: Mapping[str, Array], gradient: float, mesa: float) -> None:
    for claim, ratios in (
        (ONE_STEP, losses["trained"] / gradient),
        (INTERPOLATION, losses["averaged"] / losses["trained"]),
        (COMPRESSED, losses["compressed"] / losses["trained"]),
    ):
        sheet.record(claim.id, worst(ratios), tuple(ratios))
    sheet.record(MESA.id, mesa / losses["trained"].mean())


def _judge_curve(sheet: ClaimSheet, linear: Array, gradient: Array) -> None:
    sheet.record(SAME_CURVE.id, np.abs(linear - gradient).max())
    sheet.record(U_SHAPE.id, 1 + int(linear.argmin()))


def time_figure(linear: Array, gradient: Array, mesa: Array, ridge: Array, *, title: str, caption: str) -> Figure:
    """Loss along the sequence of one linear layer `[seeds, T]` and one mesa layer `[T]`, beside their hypotheses."""
    t = time_axis()
    lines = (
        Line.over_seeds("1 linear layer", t, linear, "model", 0),
        Line("1 gradient step", t, gradient, "hypothesis", 2),
        Line("1 mesa layer", t, mesa, "model", 3),
        Line("ridge regression, ridge 0.001", t, ridge, "hypothesis", 4),
    )
    panel = LinePanel("Loss along the sequence, one layer", "time step t", "next-token loss", lines)
    return Figure("time_curves_1_layer", title, caption, (panel,), 1)


def _table(losses: Mapping[str, Array], gradient: float, mesa: float) -> Table:
    rows = [
        (
            seed,
            float(losses["trained"][seed]),
            float(losses["averaged"][seed]),
            float(losses["compressed"][seed]),
            float(gradient),
            float(mesa),
        )
        for seed in range(len(losses["trained"]))
    ]
    columns = ("seed", "1 linear layer", "average", "compressed, 32 numbers per head", "1 gradient step", "mesa layer")
    return Table("one_layer", "Test losses of one layer", columns, tuple(rows))
