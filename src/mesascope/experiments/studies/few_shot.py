"""A model of dynamics reads regression problems: few-shot learning after training (Figs. 8 and 18)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mesascope.claims import Claim, Threshold
from mesascope.errors import require
from mesascope.experiments.base import ClaimSheet, Findings, Profile, Settings, Trained
from mesascope.experiments.studies.evaluation import Array, worst
from mesascope.experiments.studies.replicates import Replicates, figure_name
from mesascope.experiments.studies.trainings import FEW_SHOT_REDUCTIONS, few_shot_training
from mesascope.learners import RidgeRegression
from mesascope.nn import Transformer
from mesascope.predictor import Predictor
from mesascope.tasks import EOSLayout, FewShotRegression, PairLayout, PrefixLayout
from mesascope.training.config import TrainingConfig
from mesascope.training.seeds import stream
from mesascope.uncover import (
    EarlyAscent,
    FewShotCurve,
    FewShotResult,
    Prompt,
    PromptTuning,
    early_ascent,
    few_shot_curve,
    few_shot_figure,
    most_pairs,
    search_least_squares,
    tune_eos,
    tune_prefix,
)

_PAPER = "arXiv 2309.05858v2"

_EARLY, _LATE = 10, 30
"""The last pair of the early ascent, and the first from which a model is compared with least squares."""

_MODEL, _EOS, _PREFIX, _LSQ = "model", "model + EOS", "model + EOS + prefix", "least squares"

_TUNING = 1024
"""Sequences on which the ridge of least squares is searched."""


@dataclass(frozen=True)
class FewShot:
    """The study.

    Attributes:
        figure: id of the paper's figure, `"fig8"`; claims are named after its panels.
        models: trained on fully observed linear dynamics; at least 30 pairs must fit into their context.
        tuning: of the tokens.
        sequences: of every evaluation.
    """

    figure: str
    models: Replicates
    tuning: PromptTuning = PromptTuning()
    sequences: int = 2048

    def __post_init__(self) -> None:
        require(self.pairs(PairLayout()) >= _LATE, "models", self.models.task.length, "of a context for 30 pairs")

    @property
    def claims(self) -> tuple[Claim, ...]:
        one, two = (f"{_PAPER}, {figure_name(self.figure + panel)}" for panel in "ab")
        return (
            self._claim("a.learns", "Loss on the last pair divided by that on the first", one, Threshold(high=0.6)),
            self._claim(
                "a.early_ascent",
                f"Largest loss on a pair of 2 to {_EARLY} divided by that on the first",
                one,
                Threshold(low=1.0),
            ),
            self._claim(
                "a.eos_helps",
                "Mean loss with a tuned token after every pair divided by that without, over the pairs both have",
                one,
                Threshold(high=1.0),
            ),
            self._claim(
                "a.prefix_helps",
                "Loss with tuned tokens after every pair and before the first divided by that without the latter, "
                f"largest ratio of pairs 1 to {_EARLY}",
                one,
                Threshold(high=1.0),
            ),
            self._claim(
                "a.like_least_squares",
                "Loss divided by that of least squares on all pairs of neighbouring tokens, whose ridge is the best of "
                f"a grid: the ratio farthest from 1 of pairs from {_LATE} on",
                f"{one}; 20 % are ours",
                Threshold(0.8, 1.2),
            ),
            self._claim(
                "b.jumps_at_the_switch",
                "Two tasks in a row: loss on the first pair of the second task divided by that on the last pair of the "
                "first",
                f"{two}; threshold ours",
                Threshold(low=1.5),
            ),
            self._claim(
                "b.learns_the_second_task",
                "Two tasks in a row: loss on the last pair of the second task divided by that on its first",
                f"{two}; threshold ours",
                Threshold(high=0.8),
            ),
        )

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return self.models.by_label

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        learners = [self._least_squares(tasks) for tasks in (1, 2)]
        singles, doubles, prompts = [], [], []
        for label, model in zip(self.models.by_label, self.models.models(trained), strict=True):
            prompt = self._tune(model, self.models.by_label[label].seed)
            prompts.append(prompt)
            singles.append(self._evaluate(model, prompt, learners[0], 1))
            doubles.append(self._evaluate(model, prompt, learners[1], 2))
        self._judge_one_task(singles, sheet)
        self._judge_two_tasks(doubles, sheet)
        return Findings(
            figures=(
                few_shot_figure(singles, f"{self.figure}a", self._title("a", "one task"), _CAPTION),
                few_shot_figure(doubles, f"{self.figure}b", self._title("b", "two tasks"), _CAPTION),
            ),
            tables=(
                singles[0].table(f"{self.figure}a", self._title("a", "one task")),
                doubles[0].table(f"{self.figure}b", self._title("b", "two tasks")),
            ),
            notes=self._notes(singles[0], learners),
        )

    def _claim(self, id: str, statement: str, source: str, threshold: Threshold) -> Claim:
        """A claim about every seed."""
        return Claim(f"{self.figure}{id}", f"{statement}; the seed farthest from it", source, "not given", threshold)

    def _title(self, panel: str, tasks: str) -> str:
        return f"Few-shot regression, {tasks} ({figure_name(self.figure + panel)})"

    def pairs(self, layout: PairLayout | EOSLayout | PrefixLayout, tasks: int = 1) -> int:
        """Pairs of each task that fit into the context the models were trained with, 60 in all at most."""
        return most_pairs(layout, tasks, self.models.task.length)

    def _task(self, layout: PairLayout | EOSLayout | PrefixLayout, tasks: int) -> FewShotRegression:
        length = self.models.task.length
        pairs = (self.pairs(layout, tasks),) * tasks
        return FewShotRegression(self.models.task.n_s, pairs, layout, max_length=length)

    def _least_squares(self, tasks: int) -> RidgeRegression:
        task = self._task(PairLayout(), tasks)
        return search_least_squares(task.sample(_TUNING, stream(0, "few-shot ridge"))).predictor

    def _tune(self, model: Transformer, seed: int) -> Prompt:
        eos_task, prefix_task = self._task(EOSLayout(), 1), self._task(PrefixLayout(), 1)
        eos = tune_eos(model, eos_task, stream(seed, "EOS token"), self.tuning).prompt.eos
        assert eos is not None
        return tune_prefix(model, prefix_task, eos, stream(seed, "prefix tokens"), self.tuning).prompt

    def _evaluate(self, model: Predictor, prompt: Prompt, learner: RidgeRegression, tasks: int) -> FewShotResult:
        """Curves on fresh sequences, the same for all predictors of a layout."""
        plain, eos, prefix = (self._task(layout, tasks) for layout in (PairLayout(), EOSLayout(), PrefixLayout()))

        def draw() -> torch.Generator:
            return stream(0, "few-shot evaluation")

        return FewShotResult(
            (
                few_shot_curve(model, plain, self.sequences, draw(), label=_MODEL),
                few_shot_curve(model, eos, self.sequences, draw(), prompt=Prompt(prompt.eos), label=_EOS),
                few_shot_curve(model, prefix, self.sequences, draw(), prompt=prompt, label=_PREFIX),
                few_shot_curve(learner, plain, self.sequences, draw(), label=_LSQ, role="hypothesis"),
            )
        )

    def _judge_one_task(self, results: list[FewShotResult], sheet: ClaimSheet) -> None:
        curves = [{curve.label: curve.mean for curve in result.curves} for result in results]

        def record(id: str, values: list[float], judge: float, note: str = "") -> None:
            sheet.record(f"{self.figure}a.{id}", judge, tuple(values), note)

        falls = [curve[_MODEL][-1] / curve[_MODEL][0] for curve in curves]
        record("learns", falls, max(falls), f"pair {len(curves[0][_MODEL])}")
        rises = [curve[_MODEL][1:_EARLY].max() / curve[_MODEL][0] for curve in curves]
        record("early_ascent", rises, min(rises), str(self._ascent(results[0].curve(_MODEL))))
        eos = [_means(curve[_EOS], curve[_MODEL]) for curve in curves]
        record("eos_helps", eos, max(eos), f"{len(curves[0][_EOS])} pairs")
        prefix = [float((curve[_PREFIX][:_EARLY] / curve[_EOS][:_EARLY]).max()) for curve in curves]
        record("prefix_helps", prefix, max(prefix))
        late = [worst(curve[_MODEL][_LATE - 1 :] / curve[_LSQ][_LATE - 1 :]) for curve in curves]
        record("like_least_squares", late, worst(late))

    def _judge_two_tasks(self, results: list[FewShotResult], sheet: ClaimSheet) -> None:
        first, second = (
            np.array([result.curve(_MODEL).of_task(task).mean(0) for result in results]) for task in (0, 1)
        )
        jumps, falls = second[:, 0] / first[:, -1], second[:, -1] / second[:, 0]
        note = f"{first.shape[1]} pairs of each task"
        sheet.record(f"{self.figure}b.jumps_at_the_switch", min(jumps), tuple(jumps), note)
        sheet.record(f"{self.figure}b.learns_the_second_task", max(falls), tuple(falls), note)

    def _ascent(self, curve: FewShotCurve) -> EarlyAscent:
        return early_ascent(torch.from_numpy(curve.losses), stream(0, "early ascent"), last=_EARLY)

    def _notes(self, result: FewShotResult, learners: list[RidgeRegression]) -> tuple[str, ...]:
        ascents = "; ".join(f"{curve.label}: {self._ascent(curve)}" for curve in result.curves)
        ridges = " and ".join(f"{learner.ridge:.3g}" for learner in learners)
        return (
            f"{figure_name(self.figure + 'a')}, first seed. {ascents}.",
            "Least squares takes every pair of neighbouring tokens, half of which are spurious. Its ridge is the best "
            f"of 21 values from 0.001 to 100 for the mean loss over all pairs: {ridges} for one and two tasks. How "
            "high its ascent is depends on the ridge: at 0.1 the loss doubles, from 1 on there is none.",
        )


_CAPTION = (
    "Loss on y_i of pair i of linear regression problems that a model of dynamics was not trained on (solid): as it "
    "is, with a tuned token after every pair (EOS), and with 20 tuned tokens before the first pair, too; its weights "
    "are frozen. Dashed: least squares on all pairs of neighbouring tokens. Curves end where the context is full."
)


def _means(some: Array, others: Array) -> float:
    shared = min(len(some), len(others))
    return float(some[:shared].mean() / others[:shared].mean())


def few_shot_settings(
    figure: str,
    architecture: Literal["softmax-7", "hybrid"],
    profile: Profile,
    seeds: int | None,
    *,
    paper_minutes: float,
    quick_minutes: float,
) -> Settings:
    """An experiment of this study alone, with the reductions of its quick profile."""
    count = seeds or (1 if profile == "quick" else 5)
    models = Replicates.of(
        f"few-shot {architecture}", lambda seed: few_shot_training(architecture, profile, seed), count
    )
    if profile == "paper":
        return Settings((FewShot(figure, models),), (), paper_minutes)
    study = FewShot(figure, models, PromptTuning(steps=600, batch_size=32, learning_rate=0.1))
    reductions = (
        *FEW_SHOT_REDUCTIONS,
        "One seed instead of five.",
        "Tokens are tuned for 600 steps of 32 sequences at a learning rate of 0.1, instead of 5,000 of 256 at 0.001.",
        f"{study.pairs(EOSLayout())} pairs with EOS and {study.pairs(PrefixLayout())} with a prefix instead of 60, as "
        "many as fit into the context.",
    )
    return Settings((study,), reductions, quick_minutes)
