"""The linear map that a predictor applies to its newest observation, whatever the predictor is.

The context s_1 .. s_{t-1} of a sequence stays, and s_t is replaced by probes u: random orthogonal frames as long as
s_t itself, each direction with both signs. The implicit weights W_t are the least-squares fit of the predictions by
W_t u. Frames are tight, so W_t = sum f(u) u^T / sum of squares of a frame, with nothing to invert.

In next-token prediction the newest observation is two things, the query and the newest target, so even a learner that
is linear in its query has a part that is quadratic in u. Both signs are probed, which takes every even part out: ridge
regression has W_t = C_{t-1} A_t^-1, its weights with the newest target counted as zero, and the oracle has W*. What is
left out shows in `linearity`.

Source: arXiv 2211.15661, implicit linear weight difference (ILWD). Differences from the paper: (1) queries are tokens
of a sequence and W maps to n_s outputs; (2) probes have the length of the observation they replace.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require
from mesascope.predictor import Predictor
from mesascope.tasks import Latents, PlainTokens, Sequences, TokenScheme, haar_orthogonal
from mesascope.uncover.comparison import Curves, TimeSteps, average_over_sequences

_PASS = 2048
"""Largest number of probed sequences in one pass."""


@dataclass(frozen=True)
class ImplicitWeights:
    """How a predictor maps its newest observation, one matrix per sequence.

    Attributes:
        weights: W_t, `[B, n_s, n_s]`, float64.
        linearity: share of the squared predictions that W_t u explains, `[B]`; 1 for a linear map, NaN where every
            prediction is zero.
    """

    weights: Float[Tensor, "batch n_s n_s"]
    linearity: Float[Tensor, " batch"]


@dataclass(frozen=True)
class QueryProbes:
    """Sequences whose newest observation is replaced, the same ones for every predictor.

    Attributes:
        inputs: u, `[B, probes, n_s]`: frames, then the same with the opposite sign.
        sequences: `B * probes` sequences of length t.
    """

    inputs: Float[Tensor, "batch probes n_s"]
    sequences: Sequences

    @torch.no_grad()
    def weights(self, predictor: Predictor) -> ImplicitWeights:
        """The implicit weights of `predictor`."""
        parts = [predictor.predict(part)[:, -1].double() for part in _passes(self.sequences)]
        u = self.inputs.double()
        predictions = torch.cat(parts).unflatten(0, u.shape[:2])
        n_s = u.shape[-1]
        # a frame of n_s directions of length r has sum u u^T = r^2 I
        squares = u.square().sum((1, 2)) / n_s
        weights = predictions.mT @ u / squares[:, None, None]
        unexplained = (predictions - u @ weights.mT).square().sum((1, 2))
        return ImplicitWeights(weights, 1 - unexplained / predictions.square().sum((1, 2)))


def query_probes(
    sequences: Sequences,
    time: int,
    generator: torch.Generator,
    tokens: TokenScheme = PlainTokens(),
    frames: int = 2,
) -> QueryProbes:
    """Probes of the query at a time step.

    Latents are kept for oracles where the state is the observation and the dynamics are linear; otherwise a probe has
    no state, and an oracle refuses it.

    Args:
        sequences: whose contexts are kept.
        time: t, counted from 1; s_t is replaced.
        generator: draws the frames.
        tokens: how observations become tokens; must be the scheme of the task.
        frames: orthogonal frames per sequence; more of them average over more of a map that is not linear.

    Raises:
        InputError: `time` or `frames` is out of range, `tokens` does not give the tokens of `sequences`, or an
            observation at `time` is zero.
    """
    require(1 <= time <= sequences.length, "time", time, f"between 1 and {sequences.length}")
    require(frames >= 1, "frames", frames, "at least 1")
    same = torch.equal(tokens(sequences.observations), sequences.tokens)
    require(same, "tokens", tokens, "the scheme with which the tokens of the sequences were made")
    replaced = sequences.observations[:, time - 1]
    length = replaced.norm(dim=-1)
    require(bool((length > 0).all()), "time", time, "one at which no observation is zero")
    batch, n_s = replaced.shape
    directions = haar_orthogonal(batch * frames, n_s, generator, replaced.dtype).reshape(batch, frames * n_s, n_s)
    inputs = length[:, None, None] * torch.cat([directions, -directions], dim=1)
    count = inputs.shape[1]
    context = sequences.observations[:, None, : time - 1].expand(batch, count, time - 1, n_s)
    observations = torch.cat([context, inputs[:, :, None]], dim=2).flatten(0, 1)
    targets = torch.cat([observations[:, 1:], torch.zeros_like(observations[:, :1])], dim=1)
    probed = Sequences(
        tokens=tokens(observations),
        targets=targets,
        observations=observations,
        latents=_probed_latents(sequences, observations, count),
        scored=torch.tensor([time - 1]),
    )
    return QueryProbes(inputs, probed)


def implicit_weight_difference(
    first: Predictor,
    second: Predictor,
    batches: Iterable[Sequences],
    times: Sequence[int],
    generator: torch.Generator,
    tokens: TokenScheme = PlainTokens(),
    frames: int = 2,
) -> Curves:
    """||W_first - W_second||_F^2 at some time steps: zero if both apply the same linear map to their query.

    Args:
        first, second: any predictors.
        batches: sequences of one task.
        times: t, counted from 1, in any order; the same probes serve both predictors.
        generator, tokens, frames: as in `query_probes`.

    Returns:
        One curve, labelled "first - second" with their names.

    Raises:
        InputError: as `query_probes`, or no `times` or `batches`.
    """
    ordered = tuple(sorted(set(times)))
    require(len(ordered) >= 1, "times", times, "at least one time step")

    def measure(sequences: Sequences) -> tuple[TimeSteps, Tensor]:
        differences = []
        for time in ordered:
            probes = query_probes(sequences, time, generator, tokens, frames)
            difference = probes.weights(first).weights - probes.weights(second).weights
            differences.append(difference.square().sum((1, 2)))
        return ordered, torch.stack(differences, dim=-1)[None]

    labels = (f"{first.name} - {second.name}",)
    return average_over_sequences(labels, "squared implicit weight difference", map(measure, batches))


def _passes(sequences: Sequences) -> Iterator[Sequences]:
    for start in range(0, sequences.batch_size, _PASS):
        yield sequences.select(slice(start, start + _PASS))


def _probed_latents(sequences: Sequences, observations: Tensor, count: int) -> Latents:
    latents = sequences.latents
    transition = latents.transition.repeat_interleave(count, dim=0)
    linear, states = latents.features is None and latents.emission is None, latents.states
    if linear and states is not None and torch.equal(states[:, :-1], sequences.observations):
        # the state that follows the probe is unknown; no prediction may use it
        return Latents(transition, states=torch.cat([observations, torch.zeros_like(observations[:, :1])], dim=1))
    return Latents(transition)
