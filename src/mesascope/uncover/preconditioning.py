"""Does a model hold the preconditioned input? The quantity that Proposition 2 says its layers compute.

The layers of Proposition 2 turn x_t into x~_t, an approximation of A_t^-1 x_t with
A_t = sum_{i<t} x_i x_i^T + ridge I, and one gradient step then predicts C_t x~_t. A linear probe of every layer and
time step shows how much of x~_t the layer holds.

Source: arXiv 2309.05858, Figs. 4F, 6B, 11B, 12B, 24B and 25B. Differences from the paper: (1) its methods section omits
the inverse from the target; the inverse is meant. (2) The approximations are textbook recurrences (see
`mesascope.ops.solvers`), with coefficients shared by all time steps as well as with A_t scaled by its norm, and the
exact inverse stands beside them. (3) The threshold of outliers is not given; it is 2 standard deviations here.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mesascope.errors import require
from mesascope.figures import Array
from mesascope.learners import Preconditioner, RidgeRegression, in_context_data
from mesascope.learners.regression import chunks
from mesascope.tasks.sequences import Sequences
from mesascope.uncover.capture import ResidualStream
from mesascope.uncover.probe_results import ControlledProbe, ProbeResult
from mesascope.uncover.probes import ProbeFit, probe, probe_with_controls


@dataclass(frozen=True)
class PreconditioningProbes:
    """What can be read off a model of the preconditioned input of a learner.

    Attributes:
        cleaned: probes without outliers, which is what the paper shows, and their controls.
        uncleaned: probes of the model on all sequences.
        dropped: share of sequences left out at each time step, `[T]`.
        next_observation: s_{t+1} read off the preconditioned input itself by one map for all sequences: a control that
            must fail where every sequence has a W* of its own.
    """

    cleaned: ControlledProbe
    uncleaned: ProbeResult
    dropped: Array
    next_observation: ProbeResult


@torch.no_grad()
def preconditioned_inputs(
    sequences: Sequences, learner: Preconditioner = RidgeRegression()
) -> Float[Tensor, "batch time d"]:
    """x~_t of a learner for all t, in float64.

    Args:
        sequences: their observations are read, not their tokens.
        learner: what stands for the inverse, and the regressors x: `RidgeRegression` for A_t^-1 x_t itself,
            `tune_chebyshev(6, ...).predictor` for the six steps of the paper, or any other preconditioned learner.

    Raises:
        InputError: the ridge of an exact inverse is too small for these sequences.
    """
    lag = learner.lag if isinstance(learner, RidgeRegression) else 0
    parts = (in_context_data(part, learner.regressors, lag) for part in chunks(sequences))
    return torch.cat([learner.precondition(part) for part in parts])


def ordinary(targets: Float[Tensor, "batch time d"], z_score: float = 2.0) -> Bool[Tensor, "batch time"]:
    """Which targets are no outliers: their norm exceeds the mean of its time step by at most `z_score` deviations.

    While A_t has directions without data some targets are of size 1 / ridge, and decide a least-squares fit alone.

    Args:
        targets: of probes.
        z_score: in standard deviations over the batch, of the norm at the same time step.

    Raises:
        InputError: `z_score` is not positive.
    """
    require(z_score > 0, "z_score", z_score, "greater than 0")
    norm = targets.double().norm(dim=-1)
    mean, deviation = norm.mean(0), norm.std(0, correction=0)
    return norm <= mean + z_score * deviation


def preconditioning_probes(
    stream: ResidualStream,
    untrained: ResidualStream,
    sequences: Sequences,
    learner: Preconditioner,
    *,
    generator: torch.Generator,
    z_score: float = 2.0,
    fit: ProbeFit = ProbeFit(),
) -> PreconditioningProbes:
    """Probes of the preconditioned input of `learner` from every depth and time step of a model.

    Args:
        stream: of the model on `sequences`, at any of their time steps.
        untrained: of a model of the same shape with fresh weights, on the same sequences.
        sequences: what both models read; apart from those on which `learner` was tuned.
        learner: see `preconditioned_inputs`.
        generator: draws which sequences probes are fitted on, bootstrap samples and the shuffled control.
        z_score: see `ordinary`.
        fit: how probes are fitted and scored.

    Raises:
        InputError: as for `preconditioned_inputs`, `ordinary` and `probe_with_controls`.
    """
    at = [step - 1 for step in stream.time_steps]
    targets = preconditioned_inputs(sequences, learner)[:, at]
    kept = ordinary(targets, z_score)
    cleaned = probe_with_controls(stream, untrained, targets, generator=generator, kept=kept, fit=fit)
    uncleaned = probe(stream, targets, generator=generator, fit=fit)
    itself = ResidualStream(("preconditioned input",), targets[None], stream.time_steps)
    following = probe(itself, sequences.targets[:, at], generator=generator, kept=kept, fit=fit)
    return PreconditioningProbes(cleaned, uncleaned, 1 - kept.double().mean(0).numpy(), following)
