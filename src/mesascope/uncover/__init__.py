"""Analyses: which algorithm a model runs, and how well that explains it."""

from mesascope.uncover.attention_maps import AttentionMaps, attention_maps
from mesascope.uncover.capture import CapturableModel, HookedModel, InputOf, ResidualStream, residual_stream
from mesascope.uncover.candidates import Candidate, learner_candidates
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
from mesascope.uncover.dimension import (
    LEAST_SQUARES,
    SOFTMAX_KERNEL,
    Family,
    LossesByDimension,
    losses_by_dimension,
)
from mesascope.uncover.interpolation import interpolate
from mesascope.uncover.preconditioning import (
    PreconditioningProbes,
    ordinary,
    preconditioned_inputs,
    preconditioning_probes,
)
from mesascope.uncover.probe_results import ControlledProbe, Estimate, ProbeResult, Quantity
from mesascope.uncover.probes import ProbeFit, probe, probe_with_controls
from mesascope.uncover.sensitivity import Sensitivity, gradient_norms, sensitivity
from mesascope.uncover.few_shot import (
    EarlyAscent,
    FewShotCurve,
    FewShotResult,
    Prompt,
    early_ascent,
    few_shot_curve,
    few_shot_figure,
    most_pairs,
    search_least_squares,
    search_true_pairs,
)
from mesascope.uncover.implicit_weights import (
    ImplicitWeights,
    QueryProbes,
    implicit_weight_difference,
    query_probes,
)
from mesascope.uncover.interpolation import interpolate
from mesascope.uncover.prompt_tuning import PromptTuning, TunedPrompt, tune_eos, tune_prefix
from mesascope.uncover.ranking import LearnerRanking, which_learner
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
    "Candidate",
    "CompressedAlgorithm",
    "ControlledProbe",
    "Curves",
    "Estimate",
    "Family",
    "HookedModel",
    "InputOf",
    "EarlyAscent",
    "FewShotCurve",
    "FewShotResult",
    "ImplicitWeights",
    "LargestBlocks",
    "LearnerRanking",
    "LiveBlocks",
    "LossesByDimension",
    "PreconditioningProbes",
    "ProbeFit",
    "ProbeResult",
    "ProductPattern",
    "Quantity",
    "ResidualStream",
    "Sensitivity",
    "Prompt",
    "PromptTuning",
    "QueryProbes",
    "TunedPrompt",
    "WeightProducts",
    "attention_maps",
    "block_diagonality",
    "block_scalars",
    "combined_coefficients",
    "combined_pattern_share",
    "compress",
    "diagonal_energy",
    "early_ascent",
    "extract_algorithm",
    "few_shot_curve",
    "few_shot_figure",
    "fold_inputs",
    "gradient_norms",
    "hidden_state_probes",
    "implicit_weight_difference",
    "interpolate",
    "learner_candidates",
    "loss_curves",
    "losses_by_dimension",
    "ordinary",
    "most_pairs",
    "pattern_share",
    "preconditioned_inputs",
    "preconditioning_probes",
    "prediction_difference",
    "probe",
    "probe_with_controls",
    "residual_stream",
    "sensitivity",
    "target_probes",
    "token_probes",
    "query_probes",
    "search_least_squares",
    "search_true_pairs",
    "tune_eos",
    "tune_prefix",
    "weight_product_figure",
    "weight_products",
    "which_learner",
]
