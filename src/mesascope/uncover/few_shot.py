"""A frozen sequence model as a few-shot learner: its loss on pair i of a regression problem it was not trained on.

Source: arXiv 2309.05858, sections on in-context learning (Figs. 8 and 18).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import InputError, require
from mesascope.figures import Array, Figure, Line, LinePanel, Role, Table
from mesascope.learners import LineSearch, PairRegression, RidgeRegression, line_search
from mesascope.predictor import Predictor, half_squared_error
from mesascope.tasks import EOSLayout, FewShotRegression, PairLayout, PrefixLayout, Sequences
from mesascope.uncover.bootstrap import bootstrap_means, interval

_BATCH = 256

RIDGES = tuple(10.0 ** (exponent / 4) for exponent in range(-12, 9))
"""Grid of the ridge of least squares on few-shot regression: 1e-3 to 100, four per decade (the paper gives none)."""


@dataclass(frozen=True)
class Prompt:
    """Learned tokens of a layout; absent ones are None.

    Attributes:
        eos: ends every pair, `[n]`.
        prefix: precede every task, `[prefix, n]`.
    """

    eos: Float[Tensor, " n"] | None = None
    prefix: Float[Tensor, "prefix n"] | None = None


@dataclass(frozen=True)
class FewShotCurve:
    """Half squared error at every pair, for every sequence.

    Attributes:
        label: of the predictor and its layout.
        task: what was predicted.
        losses: `[sequences, pairs of all tasks]`.
        role: of the line.
    """

    label: str
    task: FewShotRegression
    losses: Array
    role: Role = "model"

    @property
    def mean(self) -> Array:
        """Mean over sequences, `[pairs of all tasks]`."""
        mean: Array = self.losses.mean(0)
        return mean

    def of_task(self, index: int) -> Array:
        """The losses on task `index` (from 0), `[sequences, pairs]`.

        Raises:
            InputError: there is no such task.
        """
        count = len(self.task.pairs)
        require(0 <= index < count, "index", index, f"between 0 and {count - 1}")
        ends = np.cumsum((0, *self.task.pairs))
        losses: Array = self.losses[:, ends[index] : ends[index + 1]]
        return losses


@dataclass(frozen=True)
class FewShotResult:
    """Curves of several predictors on the same number of tasks; layouts and numbers of pairs may differ."""

    curves: tuple[FewShotCurve, ...]

    def __post_init__(self) -> None:
        labels = [curve.label for curve in self.curves]
        require(len(set(labels)) == len(labels) > 0, "curves", labels, "at least one curve, with distinct labels")
        counts = {len(curve.task.pairs) for curve in self.curves}
        require(len(counts) == 1, "curves", sorted(counts), "on the same number of tasks")

    @property
    def num_tasks(self) -> int:
        return len(self.curves[0].task.pairs)

    def curve(self, label: str) -> FewShotCurve:
        """The curve with this label.

        Raises:
            InputError: there is none.
        """
        labels = [curve.label for curve in self.curves]
        require(label in labels, "label", label, f"one of {', '.join(map(repr, labels))}")
        return self.curves[labels.index(label)]

    def table(self, id: str, title: str) -> Table:
        """One row per pair of each task: mean loss of every curve that has the pair."""
        rows = []
        for task in range(self.num_tasks):
            means = [curve.of_task(task).mean(0) for curve in self.curves]
            for pair in range(max(len(mean) for mean in means)):
                cells = [float(mean[pair]) if pair < len(mean) else "" for mean in means]
                rows.append((task + 1, pair + 1, *cells))
        return Table(id, title, ("task", "pair", *(curve.label for curve in self.curves)), tuple(rows))

    def figure(self, id: str, title: str, caption: str) -> Figure:
        """Mean loss over pairs, a panel per task, with bands of one standard error over sequences."""
        return few_shot_figure([self], id, title, caption)


def few_shot_figure(results: Sequence[FewShotResult], id: str, title: str, caption: str) -> Figure:
    """Loss over pairs, a panel per task. Of one result, the mean with bands of one standard error over sequences; of
    several, such as seeds, their mean with bands of one standard deviation.

    Raises:
        InputError: no results, or results with different labels or pairs.
    """
    kinds = {tuple((curve.label, curve.task.pairs) for curve in result.curves) for result in results}
    require(len(kinds) == 1, "results", sorted(kinds), "at least one result, all with the same labels and pairs")
    panels = []
    for task in range(results[0].num_tasks):
        lines = tuple(_line(results, index, task) for index in range(len(results[0].curves)))
        name = title if results[0].num_tasks == 1 else ("First task", "Second task", "Third task")[task]
        panels.append(LinePanel(name, "pair i", "loss on y_i", lines))
    return Figure(id, title, caption, tuple(panels), min(2, len(panels)))


def few_shot_curve(
    predictor: Predictor,
    task: FewShotRegression,
    count: int,
    generator: torch.Generator,
    *,
    prompt: Prompt = Prompt(),
    label: str | None = None,
    role: Role = "model",
) -> FewShotCurve:
    """Evaluate a predictor on fresh sequences of few-shot regression.

    Args:
        predictor: whatever predicts tokens; a model is used as it is.
        task: layout and pairs; set its `max_length` to the context the model was trained with.
        count: sequences.
        generator: draws them; equal generators and tasks give equal sequences.
        prompt: learned tokens of the layout.
        label, role: of the curve; None: the name of the predictor.

    Raises:
        InputError: `count` is not positive, or the prompt does not fit the layout.
    """
    require(count >= 1, "count", count, "at least 1")
    losses = []
    for start in range(0, count, _BATCH):
        size = min(_BATCH, count - start)
        losses.append(pair_losses(predictor, task.sample(size, generator, eos=prompt.eos, prefix=prompt.prefix)))
    return FewShotCurve(label or predictor.name, task, torch.cat(losses).numpy(), role)


def pair_losses(predictor: Predictor, sequences: Sequences) -> Float[Tensor, "batch pairs"]:
    """Half squared error at every scored position, in float64."""
    error = half_squared_error(predictor.predict(sequences).double(), sequences.targets.double())
    return error[:, sequences.scored_indices]


def search_least_squares(tuning: Sequences, grid: Sequence[float] = RIDGES) -> LineSearch[RidgeRegression]:
    """Least squares on all pairs of neighbouring tokens, the spurious (y_i, x_{i+1}) among them.

    The ridge has the least mean loss on `tuning`, sequences of few-shot regression; the result holds the grid.
    """
    return line_search(RidgeRegression, grid, tuning, edge="allow")


def search_true_pairs(tuning: Sequences, grid: Sequence[float] = RIDGES) -> LineSearch[PairRegression]:
    """The control without spurious pairs; arguments and result as `search_least_squares`."""
    return line_search(PairRegression, grid, tuning, edge="allow")


def most_pairs(layout: PairLayout | EOSLayout | PrefixLayout, tasks: int, max_length: int, at_most: int = 60) -> int:
    """The largest number of pairs of each of `tasks` tasks that fits into a context of `max_length` tokens.

    Args:
        at_most: pairs over all tasks, where the context has room for more; the figures show 60.

    Raises:
        InputError: not even one pair of each task fits.
    """
    require(tasks >= 1, "tasks", tasks, "at least 1")
    fitting = (max_length // tasks - layout.prefix) // layout.group
    pairs = min(fitting, at_most // tasks)
    if pairs < 1:
        raise InputError(f"max_length: got {max_length}, in which {tasks} tasks with {layout} do not fit")
    return pairs


@dataclass(frozen=True)
class EarlyAscent:
    """Whether the loss first rises: the mark of least squares on pairs of which half are spurious.

    The largest rise between two pairs is found on every other sequence and measured on the rest, since the largest of
    several noisy numbers always lies above others.

    Attributes:
        start, peak: pairs, counted from 1, between which the mean loss rises most.
        peak_low, peak_high: bootstrap interval of the peak over all sequences.
        rise: mean loss at the peak minus mean loss at the start.
        low, high: bootstrap interval of the rise.
    """

    start: int
    peak: int
    peak_low: float
    peak_high: float
    rise: float
    low: float
    high: float

    @property
    def found(self) -> bool:
        """Whether the interval of the rise lies above 0."""
        return self.low > 0

    def __str__(self) -> str:
        found = "an early ascent" if self.found else "no early ascent"
        return (
            f"{found}: from pair {self.start} to the peak at pair {self.peak} (interval {self.peak_low:g} to "
            f"{self.peak_high:g}) the loss rises by {self.rise:.3g} (interval {self.low:.3g} to {self.high:.3g})"
        )


def early_ascent(
    losses: Float[Tensor, "sequences pairs"],
    generator: torch.Generator,
    *,
    last: int = 10,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> EarlyAscent:
    """Look for a rise of the loss after the first pairs.

    Args:
        losses: of one task, at least two sequences.
        generator: draws the resamples.
        last: pairs 1 .. `last` are searched.
        confidence, resamples: of the bootstrap over sequences.

    Raises:
        InputError: fewer than two sequences, or `last` is out of range.
    """
    count, pairs = losses.shape
    require(count >= 2, "losses", (count, pairs), "of at least two sequences")
    require(2 <= last <= pairs, "last", last, f"between 2 and the number of pairs ({pairs})")
    searched = losses[:, :last]
    start, peak = (int(index) for index in _largest_rise(searched[::2].mean(0, keepdim=True)))
    rises = (searched[1::2, peak] - searched[1::2, start])[:, None]
    low, high = interval(bootstrap_means(rises, generator, resamples), confidence)
    _, peaks = _largest_rise(bootstrap_means(searched, generator, resamples))
    peak_low, peak_high = interval(peaks[:, None] + 1.0, confidence)
    return EarlyAscent(
        start + 1, peak + 1, float(peak_low), float(peak_high), float(rises.mean()), float(low), float(high)
    )


def _largest_rise(means: Float[Tensor, "rows pairs"]) -> tuple[Tensor, Tensor]:
    """Indices of the two pairs of each row, the first before the second, between which it rises most."""
    lowest = means.cummin(-1)
    peak = (means[:, 1:] - lowest.values[:, :-1]).argmax(-1) + 1
    return lowest.indices.gather(-1, peak[:, None] - 1)[:, 0], peak


def _line(results: Sequence[FewShotResult], index: int, task: int) -> Line:
    curves = [result.curves[index] for result in results]
    x = np.arange(1.0, curves[0].task.pairs[task] + 1)
    means = np.stack([curve.of_task(task).mean(0) for curve in curves])
    if len(curves) > 1:
        return Line.over_seeds(curves[0].label, x, means, curves[0].role, index)
    losses = curves[0].of_task(task)
    if len(losses) == 1:
        return Line(curves[0].label, x, means[0], curves[0].role, index)
    error = losses.std(0, ddof=1) / np.sqrt(len(losses))
    return Line(curves[0].label, x, means[0], curves[0].role, index, means[0] - error, means[0] + error)
