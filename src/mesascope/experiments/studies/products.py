"""The weight products of one linear layer, block by block, against Proposition 1 (Fig. 13)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.evaluation import Array
from mesascope.experiments.studies.one_layer import N_S, OneLayer, linear_label
from mesascope.experiments.studies.predicted_blocks import predicted_share
from mesascope.figures import Table
from mesascope.nn import Transformer
from mesascope.training.config import TrainingConfig
from mesascope.uncover import (
    FOLDED_LABELS,
    PROPOSITION_1_FOLDED,
    combined_coefficients,
    fold_inputs,
    weight_product_figure,
    weight_products,
)

_PAPER = "arXiv 2309.05858v2"

BLOCKS = Claim(
    "fig13.predicted_blocks",
    "Share of the squared weight products, restricted to what can influence the prediction, that lies on the diagonals "
    "of the blocks of Proposition 1, for the seed with the least",
    f"{_PAPER}, Fig. 13; threshold ours, as for Fig. 3B",
    "not given",
    Threshold(low=0.8),
)
OFF_PATTERN = Claim(
    "fig13.faint_rest",
    "Largest mean of a block diagonal outside of the blocks of Proposition 1 divided by that inside, in absolute value "
    "and all heads together, for the seed with the largest",
    f"{_PAPER}, Fig. 13; threshold ours",
    "faint extra blocks",
    Threshold(high=0.3),
)


@dataclass(frozen=True)
class Products:
    """The study, of the linear models of a one-layer study."""

    layers: OneLayer

    claims = (BLOCKS, OFF_PATTERN)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        trainings = self.layers.trainings()
        return {label: trainings[label] for label in self._labels()}

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure both claims of the study."""
        models = [trained.model(label, label) for label in self._labels()]
        shares = [predicted_share(model) for model in models]
        sheet.record(BLOCKS.id, min(shares), tuple(shares))
        relative = np.stack([relative_coefficients(model) for model in models])
        off_pattern = np.abs(relative)
        off_pattern[:, *_MAIN] = 0.0
        largest = off_pattern.reshape(len(models), -1).max(1)
        sheet.record(OFF_PATTERN.id, max(largest), tuple(largest))
        all_slots = weight_products(models[0])
        figures = (
            weight_product_figure(
                all_slots,
                N_S,
                id="weight_products_1_layer",
                title="Weight products of one trained layer (Fig. 13)",
                caption="Both products of both heads in blocks of token slots. The slots copy and s_t hold the same at "
                "the input, so their weights share the work; the slot out is empty.",
            ),
            weight_product_figure(
                [fold_inputs(all_slots[0], N_S)],
                N_S,
                id="folded_weight_products_1_layer",
                title="The same, reduced to what can influence the prediction",
                caption="Slots that hold the same at the input are added up, and only the output that is read is "
                "shown: what multiplies s_t and s_t-1. Proposition 1 has one block in each product.",
                QK_labels=FOLDED_LABELS,
                PV_labels=FOLDED_LABELS,
            ),
        )
        return Findings(figures=figures, tables=(_table(relative),))

    def _labels(self) -> list[str]:
        return [linear_label(1, seed) for seed in range(self.layers.seeds)]


_MAIN = (*PROPOSITION_1_FOLDED.PV[0], *PROPOSITION_1_FOLDED.QK[0])
"""Output, value, key and query block of Proposition 1."""


def relative_coefficients(model: Transformer) -> Array:
    """Block scalars of a one-layer model, all heads together, divided by that of Proposition 1.

    `[1, 2, 2, 2]`: output, value, key and query block, after `fold_inputs`.
    """
    coefficients = combined_coefficients(fold_inputs(weight_products(model)[0], N_S), N_S).double().numpy()
    return np.asarray(coefficients / coefficients[_MAIN])


def _table(relative: Array) -> Table:
    rows = []
    for value, key, query in product(range(2), repeat=3):
        numbers = relative[:, 0, value, key, query]
        names = (FOLDED_LABELS[value], FOLDED_LABELS[key], FOLDED_LABELS[query])
        rows.append((*names, float(numbers.mean()), float(numbers.min()), float(numbers.max())))
    columns = ("value", "key", "query", "weight relative to Proposition 1, mean over seeds", "least", "largest")
    return Table("coefficients", "What one layer computes: its weights on value (key . query)", columns, tuple(rows))
