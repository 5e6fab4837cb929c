"""Which learner a model behaves like, and at which depth: predictors ranked by how far their predictions are.

The distance of a learner is the mean squared prediction difference to the model (half the squared norm, over time steps
and sequences), given as a share of the model's own loss. It can only be answered for the learners that are asked about,
so the answer may be "none of these": a learner counts as close when the upper end of its interval is at most
`closeness` of the model's own loss, 10 % unless told otherwise. A difference of that size, independent of the model's
errors, would change its loss by 10 %; on the default task learners of different families are at least 20 % apart, while
neighbouring depths of one family come as close as 4 %. Depths are therefore told apart by the interval of the
difference of their distances, not by the threshold: all close learners whose distance cannot be told from the smallest
are part of the answer.

Source: squared prediction differences of arXiv 2211.15661; families and depths of arXiv 2309.05858, Propositions 1
and 2 and appendix C.3. Intervals, threshold and "none of these" are ours.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import require
from mesascope.figures import Array, Figure, Line, LinePanel, Table
from mesascope.predictor import Predictor, half_squared_error
from mesascope.tasks import Sequences
from mesascope.uncover.bootstrap import bootstrap_means, interval
from mesascope.uncover.candidates import Candidate


@dataclass(frozen=True)
class LearnerRanking:
    """Candidates from the nearest to the farthest. Distances and intervals are shares of the model's own loss.

    Attributes:
        model: name of the model.
        own_loss: mean loss of the model.
        candidates: nearest first.
        losses: mean loss of each candidate, `[candidates]`.
        distances: mean squared prediction difference to the model over `own_loss`, `[candidates]`.
        low, high: bootstrap intervals of the distances over sequences.
        gaps: how much farther than the nearest, `[candidates]`.
        gap_low, gap_high: paired bootstrap intervals of the gaps. Those of rank 2 say whether the first two ranks are
            told apart.
        closeness: largest upper end of an interval at which a candidate counts as close.
        confidence: of the intervals.
        num_sequences: sequences measured on.
    """

    model: str
    own_loss: float
    candidates: tuple[Candidate, ...]
    losses: Array
    distances: Array
    low: Array
    high: Array
    gaps: Array
    gap_low: Array
    gap_high: Array
    closeness: float
    confidence: float
    num_sequences: int

    @property
    def answer(self) -> tuple[Candidate, ...]:
        """The close candidates that cannot be told from the nearest, nearest first; empty for "none of these"."""
        if not self.high[0] <= self.closeness:
            return ()
        fits = (self.high <= self.closeness) & (self.gap_low <= 0)
        return tuple(candidate for candidate, fit in zip(self.candidates, fits, strict=True) if fit)

    @property
    def verdict(self) -> str:
        """The answer as a sentence."""
        share, nearest = f"{self.distances[0]:.2g}", self.candidates[0].name
        if not self.answer:
            return (
                f"{self.model} behaves like none of these: the nearest, {nearest}, differs from it by {share} of its "
                f"own loss (at most {self.closeness:g} counts as close)"
            )
        names = " or ".join(candidate.name for candidate in self.answer)
        doubt = "" if len(self.answer) == 1 else ", which are not told apart here"
        return f"{self.model} behaves like {names}{doubt}: the difference is {share} of its own loss"

    def table(self, id: str, title: str) -> Table:
        """One row per candidate, nearest first."""
        answer = self.answer
        rows = [
            (
                rank + 1,
                candidate.name,
                "" if candidate.steps is None else candidate.steps,
                float(self.losses[rank]),
                *(float(values[rank]) for values in (self.distances, self.low, self.high)),
                *(float(values[rank]) for values in (self.gaps, self.gap_low, self.gap_high)),
                "yes" if candidate in answer else "no",
            )
            for rank, candidate in enumerate(self.candidates)
        ]
        columns = (
            *("rank", "learner", "steps", "loss", "difference / own loss", "low", "high"),
            *("farther than rank 1 by", "gap low", "gap high", "answer"),
        )
        return Table(id, title, columns, tuple(rows))

    def figure(self, id: str, title: str, caption: str) -> Figure:
        """Distance over depth, a line per family, with intervals; learners without depth are level lines.

        Colours belong to families, whatever the ranks: figures of several models on the same candidates agree.
        """
        depths = [candidate.steps for candidate in self.candidates if candidate.steps is not None] or [1]
        span = np.array([min(depths), max(depths)], dtype=np.float64)
        lines = []
        for colour, family in enumerate(sorted({candidate.family for candidate in self.candidates})):
            members = [rank for rank, candidate in enumerate(self.candidates) if candidate.family == family]
            members.sort(key=lambda rank: self.candidates[rank].steps or 0)
            steps = [self.candidates[rank].steps for rank in members]
            level = steps == [None]
            rows = [members[0]] * 2 if level else members
            x = span if level else np.array(steps, dtype=np.float64)
            y, low, high = (values[rows] for values in (self.distances, self.low, self.high))
            lines.append(Line(family, x, y, "hypothesis", colour, low, high))
        threshold = np.full_like(span, self.closeness)
        lines.append(Line(f"close: {self.closeness:g} of its own loss", span, threshold, "reference", len(lines)))
        label = "difference / the model's own loss"
        panel = LinePanel(f"Which learner is {self.model}?", "steps", label, tuple(lines), log_y=True)
        return Figure(id, title, caption, (panel,), 1)


def which_learner(
    model: Predictor,
    learners: Sequence[Candidate],
    batches: Iterable[Sequences],
    generator: torch.Generator,
    *,
    closeness: float = 0.1,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> LearnerRanking:
    """Rank learners by the squared difference of their predictions to those of a model.

    Args:
        model: any predictor.
        learners: what it may be running, for example from `learner_candidates`, with distinct names. Candidates of one
            family have distinct steps.
        batches: sequences that nothing was tuned or trained on. Only scored time steps count.
        generator: draws the resamples.
        closeness: see the module: share of the model's own loss up to which a learner counts as close.
        confidence: of the intervals.
        resamples: of the bootstrap over sequences.

    Raises:
        InputError: no learners or batches, equal names, equal steps in a family, a number out of range, or a model
            without any error, in whose loss nothing can be measured.
    """
    _check_candidates(learners)
    require(closeness > 0, "closeness", closeness, "greater than 0")
    parts = [_per_sequence(model, learners, sequences) for sequences in batches]
    require(len(parts) >= 1, "batches", parts, "at least one batch")
    values = torch.cat(parts)
    samples = bootstrap_means(values, generator, resamples)
    mean, count = values.mean(0), len(learners)
    own_loss = float(mean[0])
    require(own_loss > 0, "model", own_loss, "one with a loss above 0")
    order = mean[1 : 1 + count].argsort(stable=True) + 1
    distances, drawn = mean[order] / own_loss, samples[:, order] / samples[:, :1]
    low, high = interval(drawn, confidence)
    gap_low, gap_high = interval(drawn - drawn[:, :1], confidence)
    return LearnerRanking(
        model=model.name,
        own_loss=own_loss,
        candidates=tuple(learners[int(index) - 1] for index in order),
        losses=mean[order + count].numpy(),
        distances=distances.numpy(),
        low=low.numpy(),
        high=high.numpy(),
        gaps=(distances - distances[0]).numpy(),
        gap_low=gap_low.numpy(),
        gap_high=gap_high.numpy(),
        closeness=closeness,
        confidence=confidence,
        num_sequences=len(values),
    )


def _per_sequence(
    model: Predictor, learners: Sequence[Candidate], sequences: Sequences
) -> Float[Tensor, "batch columns"]:
    """Means over time for every sequence: loss of the model, differences of the learners to it, their losses."""
    indices = sequences.scored_indices
    targets, own = (values.double()[:, indices] for values in (sequences.targets, model.predict(sequences)))
    predictions = [learner.predictor.predict(sequences).double()[:, indices] for learner in learners]
    columns = [
        half_squared_error(own, targets),
        *(half_squared_error(own, prediction) for prediction in predictions),
        *(half_squared_error(prediction, targets) for prediction in predictions),
    ]
    return torch.stack([column.mean(-1) for column in columns], dim=-1)


def _check_candidates(learners: Sequence[Candidate]) -> None:
    names = [learner.name for learner in learners]
    require(len(names) >= 1, "learners", names, "at least one candidate")
    require(len(set(names)) == len(names), "learners", names, "candidates with distinct names")
    depths = [(learner.family, learner.steps) for learner in learners]
    require(len(set(depths)) == len(depths), "learners", depths, "distinct steps in a family")
    for family, steps in depths:
        alone = sum(other == family for other, _ in depths) == 1
        require(alone or steps is not None, "learners", family, "a family in which all have steps")
