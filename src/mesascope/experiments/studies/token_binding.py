"""The first layer binds neighbouring tokens: they can be read off its output at one time step (Fig. 2A)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.bound_tokens import (
    NAMES,
    SHORT_NAMES,
    bound_tokens,
    probe_line,
    shares,
    token_panel,
)
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.trainings import Architecture
from mesascope.figures import Figure, Line
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
_PAIR, _PREVIOUS, _BEFORE, _WINDOW = slice(-2, None), -2, -3, slice(-5, -1)


@dataclass(frozen=True)
class TokenBinding:
    """The study. Claims are judged by the worst seed; tables show the first.

    Attributes:
        full, partial: models with full and with partial observation (width 80), each "softmax-7" and "hybrid".
    """

    full: Mapping[Architecture, Replicates]
    partial: Mapping[Architecture, Replicates]

    claims = (*BINDING.values(), *NOTHING_OLDER.values(), *PARTIAL.values(), UNTRAINED, SHUFFLED)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        models = (*self.full.values(), *self.partial.values())
        return {label: config for one in models for label, config in one.by_label.items()}

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        full, partial = (
            {kind: bound_tokens(models[kind], trained) for kind in ARCHITECTURES}
            for models in (self.full, self.partial)
        )
        for kind in ARCHITECTURES:
            pair = [shares(found.model)[_PAIR].max() for found in full[kind]]
            sheet.record(BINDING[kind].id, max(pair), tuple(pair))
            older = [shares(found.model)[_BEFORE] / shares(found.model)[_PREVIOUS] for found in full[kind]]
            sheet.record(NOTHING_OLDER[kind].id, min(older), tuple(older))
            window = [shares(found.model)[_WINDOW].max() for found in partial[kind]]
            sheet.record(PARTIAL[kind].id, max(window), tuple(window))
        _judge_controls(sheet, full, partial)
        tables = tuple(
            found[0].table(f"tokens_{setting}_{SHORT_NAMES[kind]}", f"{NAMES[kind]}, {setting} observation, seed 0")
            for setting, probes in (("full", full), ("partial", partial))
            for kind, found in probes.items()
        )
        return Findings(figures=(_figure(full, partial),), tables=tables)


Probes = Mapping[Architecture, Sequence[ControlledProbe]]


def _judge_controls(sheet: ClaimSheet, full: Probes, partial: Probes) -> None:
    untrained, shuffled = [], []
    for probes, never_bound, looked_for in ((full, _PREVIOUS, _PAIR), (partial, _WINDOW, _WINDOW)):
        for found in (one for kind in ARCHITECTURES for one in probes[kind]):
            untrained.append(shares(found.untrained)[never_bound].min())
            shuffled.append(shares(found.shuffled)[looked_for].min())
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
        panels.append(token_panel(title, lines))
    caption = (
        "How well the last eight observations can be read off the output of the first layer at t = 50, by linear maps "
        "fitted on half of the sequences and scored on the others. Where the error is near 0, the layer holds the "
        "observation of that time beside the current one: what a layer of regression needs. Dotted: the same for "
        "models that were never trained, and for observations of other sequences. Bands: 95 % intervals of one seed, "
        "or one standard deviation over seeds."
    )
    return Figure("token_probes", "What the first layer holds (Fig. 2A)", caption, tuple(panels), 2)
