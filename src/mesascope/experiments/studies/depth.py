"""Deeper linear models and Proposition 2: preconditioning layers followed by one gradient step (Figs. 4B, 4D, 9)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.evaluation import (
    Array,
    curve,
    curves,
    evaluation_sequences,
    learning_curves,
    proposition_2_curves,
    time_axis,
    worst,
)
from mesascope.experiments.studies.one_layer import MESA_LABEL, N_S, linear_label
from mesascope.experiments.studies.replicates import Replicates
from mesascope.figures import Figure, Line, LinePanel, Table
from mesascope.nn import Transformer, architectures
from mesascope.training.config import ClipGradNorm, ClipGradValue, ConstantRate, TrainingConfig, WarmupCosine
from mesascope.training.presets import on_constructed_tokens
from mesascope.uncover import (
    AllBlocks,
    BlockSelection,
    LargestBlocks,
    block_diagonality,
    compress,
    interpolate,
    weight_product_figure,
    weight_products,
)

_PAPER = "arXiv 2309.05858v2"

DEPTH = Claim(
    "fig4d.depth_helps",
    "Largest ratio of the test loss of a linear model to that of the next shallower one, over depths 1, 2, 4, 6",
    f"{_PAPER}, Fig. 4D",
    "the loss falls with depth",
    Threshold(high=1.0),
)
GLOBAL = {
    depth: Claim(
        f"fig4d.proposition_2_shared_{depth}_layers",
        f"Test loss of {depth} linear layers divided by that of the best polynomial preconditioner of degree {depth} "
        "whose coefficients are shared by all t (Proposition 2 as a linear Transformer can realise it)",
        f"{_PAPER}, Fig. 4D: within 10 % or better; tolerance ours",
        "describes the curves almost perfectly",
        Threshold(high=1.1),
    )
    for depth in (2, 4, 6)
}
FROBENIUS = Claim(
    "fig4d.proposition_2_scaled_6_layers",
    "Test loss of 6 linear layers divided by that of the best polynomial preconditioner of degree 6 of the matrix "
    "scaled by its norm at every t (the authors' control)",
    f"{_PAPER}, Fig. 4D: within 10 % or better; tolerance ours",
    "describes the curves almost perfectly",
    Threshold(high=1.1),
)
MESA = Claim(
    "fig4b.above_the_mesa_layer",
    "Test loss of 6 linear layers divided by that of one mesa layer: above 1, below 2",
    f"{_PAPER}, Fig. 4B; upper bound ours",
    "above, not given how far",
    Threshold(1.0, 2.0),
)
COMPRESSED = {
    "32": Claim(
        "fig4b.compressed_32",
        "Test loss of CompressedAlg-6 with 32 numbers per head divided by that of the trained 6 layers, for the seed "
        "farthest from 1",
        f"{_PAPER}, Fig. 4B; tolerance ours",
        "the curves overlap",
        Threshold(0.95, 1.05),
    ),
    "16": Claim(
        "fig4b.compressed_16",
        "Test loss of CompressedAlg-6 with 16 numbers per head, the 8 largest of each product, divided by that of the "
        "trained 6 layers, for the seed farthest from 1",
        f"{_PAPER}, Fig. 4B; tolerance ours",
        "the curves overlap",
        Threshold(0.95, 1.05),
    ),
}
INTERPOLATION = Claim(
    "fig4b.interpolation",
    "Test loss of the average of the trained 6 layers and CompressedAlg-6 (32 numbers per head) divided by that of the "
    "trained 6 layers, for the seed farthest from 1",
    f"{_PAPER}, Fig. 4B; tolerance ours",
    "the curves overlap",
    Threshold(0.95, 1.05),
)
BLOCKS = Claim(
    "fig9.block_diagonal",
    "Share of the squared weight products of 6 trained layers on the diagonals of their blocks, mean over layers, "
    "heads and products, for the seed with the least",
    f"{_PAPER}, Fig. 9; threshold ours",
    "not given",
    Threshold(low=0.7),
)

_KEPT: dict[str, BlockSelection] = {"32": AllBlocks(), "16": LargestBlocks(8)}


@dataclass(frozen=True)
class Depth:
    """The study. Its claims compare with the first-seed models of `OneLayer`, whose trainings must be in the plan.

    Attributes:
        seeds: trainings of each depth.
        schedules: learning rate by depth.
        gradient_clip: how their gradients are clipped.
        steps: optimiser steps by depth.
        wide_keys: train six layers with key size 40 for Fig. 4B, as the paper does, beside those with 20.
        snapshots: points of the learning curves of Fig. 4B.
    """

    seeds: int
    schedules: Mapping[int, ConstantRate | WarmupCosine]
    gradient_clip: ClipGradValue | ClipGradNorm
    steps: Mapping[int, int]
    wide_keys: bool = False
    snapshots: int = 20

    claims = (DEPTH, *GLOBAL.values(), FROBENIUS, MESA, *COMPRESSED.values(), INTERPOLATION, BLOCKS)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        deep = {
            linear_label(depth, seed): self._training(depth, seed, key_dim=20)
            for depth in self.steps
            for seed in range(self.seeds)
        }
        wide = {self._six_label(seed): self._training(6, seed, key_dim=40) for seed in range(self.seeds)}
        return {**deep, **wide} if self.wide_keys else deep

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        return self._depth(trained, sheet) + self._six_layers(trained, sheet)

    def six_layer_trainings(self) -> Replicates:
        """The trainings of six layers whose curves Fig. 4D shows, with key size 20."""
        return Replicates({linear_label(6, seed): self._training(6, seed, key_dim=20) for seed in range(self.seeds)})

    def _training(self, depth: int, seed: int, key_dim: int) -> TrainingConfig:
        return on_constructed_tokens(
            architectures.constructed_linear(depth, key_dim=key_dim),
            schedule=self.schedules[depth],
            gradient_clip=self.gradient_clip,
            steps=self.steps[depth],
            seed=seed,
            snapshot_every=max(1, self.steps[depth] // self.snapshots) if depth == 6 else None,
        )

    def _six_label(self, seed: int) -> str:
        return f"6 linear layers, key size 40, seed {seed}" if self.wide_keys else linear_label(6, seed)

    def _depth(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Fig. 4D: loss along the sequence for every depth, beside both forms of Proposition 2."""
        depths = (1, *self.steps)
        models = {
            depth: curves([trained.model(linear_label(depth, seed), f"{depth}") for seed in range(self.seeds)])
            for depth in depths
        }
        mesa = curve(trained.model(MESA_LABEL, "mesa layer"))
        references = {
            "shared": proposition_2_curves("none", depths),
            "scaled": proposition_2_curves("frobenius", depths),
        }
        losses = {depth: models[depth].mean() for depth in depths}
        steps = tuple(losses[deep] / losses[shallow] for shallow, deep in pairwise(depths))
        sheet.record(DEPTH.id, max(steps), steps)
        for depth, claim in GLOBAL.items():
            ratios = models[depth].mean(1) / references["shared"][depth].mean()
            sheet.record(claim.id, max(ratios), tuple(ratios))
        ratios = models[6].mean(1) / references["scaled"][6].mean()
        sheet.record(FROBENIUS.id, max(ratios), tuple(ratios))
        ratios = models[6].mean(1) / mesa.mean()
        sheet.record(MESA.id, worst(ratios, 1.5), tuple(ratios))
        figure = depth_figure(models, references, mesa, title="Depth and Proposition 2 (Fig. 4D)")
        return Findings(figures=(figure,), tables=(depth_table(models, references),))

    def _six_layers(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Fig. 4B: what is left when only a few numbers per head are kept."""
        labels = [self._six_label(seed) for seed in range(self.seeds)]
        models = [trained.model(label, label) for label in labels]
        compressed = {kept: [compress(model, selection) for model in models] for kept, selection in _KEPT.items()}
        averaged = [interpolate(model, short) for model, short in zip(models, compressed["32"], strict=True)]
        losses = curves(models).mean(1)
        for kept, claim in COMPRESSED.items():
            ratios = curves(compressed[kept]).mean(1) / losses
            sheet.record(claim.id, worst(ratios), tuple(ratios))
        ratios = curves(averaged).mean(1) / losses
        sheet.record(INTERPOLATION.id, worst(ratios), tuple(ratios))
        shares = [mean_block_diagonality(model) for model in models]
        sheet.record(BLOCKS.id, min(shares), tuple(shares))
        products = weight_products(models[0])
        pictures = weight_product_figure(
            [products[layer] for layer in (0, 1, 3)],
            N_S,
            id="weight_products_6_layers",
            title="Weight products of six trained layers: layers 1, 2 and 4 (Fig. 9)",
            caption="Both products of all four heads, in blocks of token slots. Nearly all the weight lies on the "
            "diagonals of blocks: the layers compute with whole observations, not with their coordinates.",
        )
        return Findings(figures=(self._learning_figure(trained, labels, compressed["32"]), pictures))

    def _learning_figure(self, trained: Trained, labels: list[str], compressed: list[Transformer]) -> Figure:
        sequences, steps = evaluation_sequences().select(slice(0, 512)), trained.snapshot_steps(labels[0])
        averaged, read_off = (
            np.array(
                [
                    [curve(build(trained.snapshot(label, step, label), short), sequences).mean() for step in steps]
                    for label, short in zip(labels, compressed, strict=True)
                ]
            )
            for build in (interpolate, lambda model, short: compress(model))
        )
        at = np.array(steps, dtype=np.float64)
        linear_at, linear = learning_curves(trained, labels)
        mesa = np.full_like(linear_at, curve(trained.model(MESA_LABEL, "mesa layer")).mean())
        lines = (
            Line.over_seeds("6 linear layers", linear_at, linear, "model", 0),
            Line.over_seeds("CompressedAlg-6 read off at this step", at, read_off, "hypothesis", 2),
            Line.over_seeds("average with the final CompressedAlg-6", at, averaged, "hypothesis", 1),
            Line("1 mesa layer, trained", linear_at, mesa, "model", 3),
        )
        panel = LinePanel("Learning curves, six layers", "optimiser step", "test loss", lines)
        caption = (
            "Six linear layers during training; the same reduced to 32 numbers per head at that step; and the average "
            "of the weights at that step with the reduction of the final ones."
        )
        return Figure("learning_curves_6_layers", "Learning curves of six layers (Fig. 4B)", caption, (panel,), 1)


def quick_depth(seeds: int) -> Depth:
    """Settings that come close in 1,000 to 2,000 steps; experiments that use them share the trainings."""
    steps = {2: 1000, 4: 1000, 6: 2000}
    schedules = {depth: WarmupCosine(1e-3, 300, count, final=1e-5) for depth, count in steps.items()}
    return Depth(seeds, schedules, ClipGradNorm(0.1), steps)


def paper_depth(seeds: int) -> Depth:
    """The settings of the paper."""
    steps = {2: 10_000, 4: 10_000, 6: 10_000}
    return Depth(seeds, dict.fromkeys(steps, ConstantRate(1e-4)), ClipGradValue(), steps, wide_keys=True, snapshots=40)


def mean_block_diagonality(model: Transformer) -> float:
    """Share of the squared weight products on the diagonals of blocks, mean over layers, heads and products."""
    shares = [
        block_diagonality(matrix, N_S).mean() for layer in weight_products(model) for matrix in (layer.QK, layer.PV)
    ]
    return float(sum(shares) / len(shares))


def depth_figure(
    models: Mapping[int, Array], references: Mapping[str, Mapping[int, Array]], mesa: Array, title: str
) -> Figure:
    """Loss along the sequence of models of several depths beside the two forms of Proposition 2.

    Args:
        models: loss curves by depth, `[seeds, T]`.
        references: "shared" and "scaled", each with the curve of the polynomial of a depth's degree, `[T]`.
        mesa: curve of a mesa layer, `[T]`.
        title: of the figure.
    """
    t = time_axis()
    forms = {"shared": "coefficients shared by all t", "scaled": "matrix scaled by its norm at every t"}
    panels = []
    for form, name in forms.items():
        lines = []
        for colour, (depth, values) in enumerate(models.items()):
            label = f"{depth} linear layer{'s' if depth > 1 else ''}"
            lines.append(Line.over_seeds(label, t, values, "model", colour))
            lines.append(Line(f"polynomial of degree {depth}", t, references[form][depth], "hypothesis", colour))
        lines.append(Line("1 mesa layer", t, mesa, "model", len(models)))
        panels.append(LinePanel(f"Proposition 2, {name}", "time step t", "next-token loss", tuple(lines)))
    caption = (
        "Loss along the sequence of linear models of several depths (solid) and of the best polynomial preconditioner "
        "of the same degree followed by one gradient step (dashed; fitted on these very sequences, so that no schedule "
        "of steps can be better), in two forms: with coefficients shared by all t, which is what linear layers can "
        "realise, and with the matrix scaled by its norm at every t, the authors' control, which they cannot."
    )
    return Figure("time_curves_depth", title, caption, tuple(panels), 2)


def depth_table(models: Mapping[int, Array], references: Mapping[str, Mapping[int, Array]]) -> Table:
    """The mean losses of what `depth_figure` shows, and their ratios."""
    rows = []
    for depth, values in models.items():
        loss, shared, scaled = values.mean(), references["shared"][depth].mean(), references["scaled"][depth].mean()
        rows.append((depth, float(loss), float(shared), float(loss / shared), float(scaled), float(loss / scaled)))
    columns = ("layers", "test loss", "shared, same degree", "ratio", "scaled, same degree", "ratio to scaled")
    return Table("depth", "Linear models and Proposition 2 of the same degree", columns, tuple(rows))
