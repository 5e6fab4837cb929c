"""Analyses: which algorithm a model runs, and how well that explains it."""

from mesascope.uncover.attention_maps import AttentionMaps, attention_maps
from mesascope.uncover.capture import CapturableModel, HookedModel, InputOf, ResidualStream, residual_stream
from mesascope.uncover.comparison import Curves, loss_curves, prediction_difference
from mesascope.uncover.compression import (
    AllBlocks,
    BlockSelection,
    CompressedAlgorithm,
    LargestBlocks,
    LiveBlocks,
    compress,
    extract_algorithm,
)
from mesascope.uncover.dimension import (
    LEAST_SQUARES,
    SOFTMAX_KERNEL,
    Family,
    LossesByDimension,
    losses_by_dimension,
)
from mesascope.uncover.interpolation import interpolate
from mesascope.uncover.sensitivity import Sensitivity, gradient_norms, sensitivity
from mesascope.uncover.weight_products import (
    FOLDED_LABELS,
    PROPOSITION_1,
    PROPOSITION_1_FOLDED,
    ProductPattern,
    WeightProducts,
    block_diagonality,
    block_scalars,
    combined_coefficients,
    combined_pattern_share,
    diagonal_energy,
    fold_inputs,
    pattern_share,
    weight_product_figure,
    weight_products,
)

__all__ = [
    "FOLDED_LABELS",
    "LEAST_SQUARES",
    "PROPOSITION_1",
    "PROPOSITION_1_FOLDED",
    "SOFTMAX_KERNEL",
    "AllBlocks",
    "AttentionMaps",
    "BlockSelection",
    "CapturableModel",
    "CompressedAlgorithm",
    "Curves",
    "Family",
    "HookedModel",
    "InputOf",
    "LargestBlocks",
    "LiveBlocks",
    "LossesByDimension",
    "ProductPattern",
    "ResidualStream",
    "Sensitivity",
    "WeightProducts",
    "attention_maps",
    "block_diagonality",
    "block_scalars",
    "combined_coefficients",
    "combined_pattern_share",
    "compress",
    "diagonal_energy",
    "extract_algorithm",
    "fold_inputs",
    "gradient_norms",
    "interpolate",
    "loss_curves",
    "losses_by_dimension",
    "pattern_share",
    "prediction_difference",
    "residual_stream",
    "sensitivity",
    "weight_product_figure",
    "weight_products",
]
