"""Weights with which a Transformer equals a learner, up to rounding: evidence that it can run the algorithm."""

from mesascope.constructions.gradient_descent import chebyshev_step_sizes, gradient_descent
from mesascope.constructions.mesa import ridge_regression
from mesascope.constructions.proposition_1 import proposition_1, proposition_1_tokens
from mesascope.constructions.proposition_2 import proposition_2
from mesascope.constructions.slots import (
    COPY,
    CURRENT,
    NUM_SLOTS,
    OUTPUT,
    PREVIOUS,
    SLOT_LABELS,
    SlotHead,
    SlotLayer,
    block_matrix,
    build,
    read_slot,
)

__all__ = [
    "COPY",
    "CURRENT",
    "NUM_SLOTS",
    "OUTPUT",
    "PREVIOUS",
    "SLOT_LABELS",
    "SlotHead",
    "SlotLayer",
    "block_matrix",
    "build",
    "chebyshev_step_sizes",
    "gradient_descent",
    "proposition_1",
    "proposition_1_tokens",
    "proposition_2",
    "read_slot",
    "ridge_regression",
]
