"""A softmax layer and the linear layer that imitates it have similar weights (Fig. 19)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.evaluation import evaluation_sequences
from mesascope.experiments.studies.replicates import Replicates
from mesascope.figures import Table
from mesascope.nn import LinearAttention, Transformer, attention_layers
from mesascope.training.config import TrainingConfig
from mesascope.training.seeds import stream
from mesascope.uncover import (
    Distillation,
    ProductSimilarity,
    WeightProducts,
    linearise,
    product_similarity,
    weight_product_figure,
    weight_products,
)

SIMILAR = Claim(
    "fig19.similar_products",
    "Cosine between P W_V of a softmax layer and of the linear layer distilled from it, on the span of what the layer "
    "reads: the least over layers and seeds",
    "arXiv 2309.05858v2, Fig. 19; threshold ours",
    "not given",
    Threshold(low=0.7),
)


@dataclass(frozen=True)
class SimilarProducts:
    """The study.

    Attributes:
        models: softmax layers with one head on constructed tokens.
        distillation: how linear layers are trained, from random weights.
        sequences: number of sequences whose activations tell what a layer reads.
    """

    models: Replicates
    distillation: Distillation = Distillation()
    sequences: int = 64

    claims = (SIMILAR,)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return self.models.by_label

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure the claim; pictures are those of the first seed."""
        models, task = self.models.models(trained), self.models.task
        linear = [
            linearise(model, task, stream(seed, "distillation"), self.distillation) for seed, model in enumerate(models)
        ]
        found = [self._similarities(model, layers) for model, layers in zip(models, linear, strict=True)]
        cosines = tuple(layer.PV for layers in found for layer in layers)
        sheet.record(SIMILAR.id, min(cosines), cosines)
        rows = tuple(
            (seed, layer + 1, each.PV, each.QK, each.directions)
            for seed, layers in enumerate(found)
            for layer, each in enumerate(layers)
        )
        columns = ("seed", "layer", "cosine of P W_V", "cosine of W_K^T W_Q", "directions of the input")
        distilled = [WeightProducts(index, layer.QK, layer.PV) for index, layer in enumerate(linear[0])]
        figures = tuple(
            weight_product_figure(
                products,
                task.n_s,
                id=id,
                title=title,
                caption="Both products of every layer in blocks of token slots. At the input of the first layer the "
                "slots copy and s_t are equal and the slot out is empty: how their weights are divided means nothing. "
                "The products of the linear layer may change sign together.",
            )
            for id, title, products in (
                ("softmax_products", "Softmax layers (Fig. 19)", weight_products(models[0])),
                ("linear_products", "Linear layers distilled from them (Fig. 19)", distilled),
            )
        )
        return Findings(figures=figures, tables=(Table("similar_products", "Softmax and linear layer", columns, rows),))

    def _similarities(self, model: Transformer, layers: tuple[LinearAttention, ...]) -> list[ProductSimilarity]:
        names = [f"blocks.{index}.attn.in" for index in range(len(layers))]
        tokens = evaluation_sequences(self.models.task, self.sequences).tokens
        with torch.no_grad():
            inputs = model.run(tokens, names).activations
        return [
            product_similarity(original, layer, inputs[name])
            for original, layer, name in zip(attention_layers(model), layers, names, strict=True)
        ]
