"""Analyses: which algorithm a model runs, and how well that explains it."""

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
from mesascope.uncover.decoding import hidden_state_probes, target_probes, token_probes
from mesascope.uncover.interpolation import interpolate
from mesascope.uncover.preconditioning import (
    PreconditioningProbes,
    ordinary,
    preconditioned_inputs,
    preconditioning_probes,
)
from mesascope.uncover.probe_results import ControlledProbe, Estimate, ProbeResult, Quantity
from mesascope.uncover.probes import ProbeFit, probe, probe_with_controls
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
    "PROPOSITION_1",
    "PROPOSITION_1_FOLDED",
    "AllBlocks",
    "BlockSelection",
    "CapturableModel",
    "CompressedAlgorithm",
    "ControlledProbe",
    "Curves",
    "Estimate",
    "HookedModel",
    "InputOf",
    "LargestBlocks",
    "LiveBlocks",
    "PreconditioningProbes",
    "ProbeFit",
    "ProbeResult",
    "ProductPattern",
    "Quantity",
    "ResidualStream",
    "WeightProducts",
    "block_diagonality",
    "block_scalars",
    "combined_coefficients",
    "combined_pattern_share",
    "compress",
    "diagonal_energy",
    "extract_algorithm",
    "fold_inputs",
    "hidden_state_probes",
    "interpolate",
    "loss_curves",
    "ordinary",
    "pattern_share",
    "preconditioned_inputs",
    "preconditioning_probes",
    "prediction_difference",
    "probe",
    "probe_with_controls",
    "residual_stream",
    "target_probes",
    "token_probes",
    "weight_product_figure",
    "weight_products",
]
