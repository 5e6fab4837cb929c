"""The first layer binds neighbouring tokens: they can be read off its output at one time step (Fig. 2A)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Profile, Trained
from mesascope.experiments.studies.probing import NAMES, SHORT_NAMES, ProbedModel, bound_tokens_of, probe_line, shares
from mesascope.experiments.studies.trainings import Architecture
from mesascope.figures import Figure, Line, LinePanel
from mesascope.training.config import TrainingConfig
from mesascope.uncover import ControlledProbe

_SOURCE = "arXiv 2309.05858v2, Fig. 2A; threshold ours"
ARCHITECTURES: tuple[Architecture, ...] = ("softmax-7", "hybrid")

BINDING = {
    kind: Claim(
        f"fig2a.binding_{SHORT_NAMES[kind]}",
        f"{NAMES[kind]}, full observation: squared error of held-out probes of layer 1 at t = 50 for s_49 and s_50, "
        "the larger, as a share of the variance, for the seed with the largest",
        _SOURCE,
        "near 0",
        Threshold(high=0.05),
    )
    for kind in ARCHITECTURES
}
NOTHING_OLDER = {
    kind: Claim(
        f"fig2a.nothing_older_{SHORT_NAMES[kind]}",
        f"{NAMES[kind]}, full observation: squared error for s_48 divided by that for s_49, for the seed with the "
        "least",
        _SOURCE,
        "not given",
        Threshold(low=10.0),
    )
    for kind in ARCHITECTURES
}
PARTIAL = {
    kind: Claim(
        f"fig2a.partial_{SHORT_NAMES[kind]}",
        f"{NAMES[kind]}, partial observation, width 80: squared error for s_46, s_47, s_48 and s_49, the largest, as a "
        "share of the variance, for the seed with the largest",
        _SOURCE,
        "low for t' = 46 .. 49",
        Threshold(high=0.25),
    )
    for kind in ARCHITECTURES
}
UNTRAINED = Claim(
    "fig2a.untrained_models_bind_nothing",
    "Control: squared error for s_49 (full observation) and s_46 .. s_49 (partial observation) read off layer 1 of "
    "untrained models, the least share of the variance over models and seeds. s_50 is left out: a layer adds to its "
    "input, which holds s_50 without any training",
    "control; threshold ours",
    "not given",
    Threshold(low=0.5),
)
SHUFFLED = Claim(
    "fig2a.shuffled_targets_are_not_found",
    "Control: squared error for s_49 and s_50 (full) and s_46 .. s_49 (partial) with the observations of other "
    "sequences as targets, the least share of the variance over models and seeds",
    "control; threshold ours",
    "not given",
    Threshold(low=0.5),
)

# time steps counted back from the last, which is T = 50
_PAIR, _PREVIOUS, _BEFORE, _WINDOW = slice(-2, None), slice(-2, -1), -3, slice(-5, -1)


@dataclass(frozen=True)
class TokenBinding:
    """The study.

    Attributes:
        profile: of the trainings.
        seeds: trainings of each model.
        sequences: on which probes are fitted (half) and scored (half).
    """

    profile: Profile
    seeds: int
    sequences: int = 2048

    claims = (*BINDING.values(), *NOTHING_OLDER.values(), *PARTIAL.values(), UNTRAINED, SHUFFLED)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        models = [model for kind in ARCHITECTURES for model in (_full(kind), _partial(kind))]
        return {
            label: config for model in models for label, config in model.trainings(self.profile, self.seeds).items()
        }

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        full, partial = (
            {kind: bound_tokens_of(trained, model(kind), self.seeds, self.sequences) for kind in ARCHITECTURES}
            for model in (_full, _partial)
        )
        for kind in ARCHITECTURES:
            pair = [shares(found.model)[0, _PAIR].max() for found in full[kind]]
            sheet.record(BINDING[kind].id, max(pair), tuple(pair))
            older = [found.model.mse.value[0, _BEFORE] / found.model.mse.value[0, -2] for found in full[kind]]
            sheet.record(NOTHING_OLDER[kind].id, min(older), tuple(older))
            window = [shares(found.model)[0, _WINDOW].max() for found in partial[kind]]
            sheet.record(PARTIAL[kind].id, max(window), tuple(window))
        _judge_controls(sheet, full, partial)
        tables = tuple(
            found[0].table(f"tokens_{setting}_{SHORT_NAMES[kind]}", f"Tokens in layer 1: {NAMES[kind]}, {name}, seed 0")
            for setting, name, probes in (
                ("full", "full observation", full),
                ("partial", "partial observation", partial),
            )
            for kind, found in probes.items()
        )
        return Findings(figures=(_figure(full, partial),), tables=tables)


def _full(kind: Architecture) -> ProbedModel:
    return ProbedModel("linear", kind)


def _partial(kind: Architecture) -> ProbedModel:
    return ProbedModel("partial", kind)


Probes = Mapping[Architecture, Sequence[ControlledProbe]]


def _judge_controls(sheet: ClaimSheet, full: Probes, partial: Probes) -> None:
    untrained, shuffled = [], []
    for probes, never_bound, looked_for in ((full, _PREVIOUS, _PAIR), (partial, _WINDOW, _WINDOW)):
        for found in (one for kind in ARCHITECTURES for one in probes[kind]):
            untrained.append(shares(found.untrained)[0, never_bound].min())
            shuffled.append(shares(found.shuffled)[0, looked_for].min())
    sheet.record(UNTRAINED.id, min(untrained), tuple(untrained))
    sheet.record(SHUFFLED.id, min(shuffled), tuple(shuffled))


def _figure(full: Probes, partial: Probes) -> Figure:
    panels = []
    for title, probes in (("Full observation", full), ("Partial observation, width 80", partial)):
        lines: list[Line] = []
        for colour, (kind, found) in enumerate(probes.items()):
            lines.append(probe_line(NAMES[kind], [one.model for one in found], "model", colour))
            untrained = [one.untrained for one in found]
            lines.append(probe_line(f"{NAMES[kind]}, untrained", untrained, "reference", colour))
        shuffled = [one.shuffled for one in probes["softmax-7"]]
        lines.append(probe_line("targets of other sequences", shuffled, "reference", 4))
        axis = "time step t' of the token that is read"
        panels.append(LinePanel(title, axis, "squared error of the probe, held out", tuple(lines)))
    caption = (
        "How well the last eight observations can be read off the output of the first layer at t = 50, by linear maps "
        "fitted on half of the sequences and scored on the others. Where the error is near 0, the layer holds the "
        "observation of that time beside the current one: what a layer of regression needs. Dotted: the same for "
        "models that were never trained, and for observations of other sequences. Bands: 95 % intervals of one seed, "
        "or one standard deviation over seeds."
    )
    return Figure("token_probes", "What the first layer holds (Fig. 2A)", caption, tuple(panels), 2)
