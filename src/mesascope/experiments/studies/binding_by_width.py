"""With partial observation the first layer binds as many tokens as its width has room for (Fig. 21)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mesascope.claims import Claim, Threshold
from mesascope.errors import require
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.bound_tokens import (
    NAMES,
    SHORT_NAMES,
    bound_tokens,
    probe_line,
    shares,
    token_panel,
)
from mesascope.experiments.studies.evaluation import Array
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.trainings import Architecture
from mesascope.figures import Figure, Table
from mesascope.training.config import TrainingConfig
from mesascope.uncover import ControlledProbe

_SOURCE = "arXiv 2309.05858v2, Fig. 21; threshold ours"
ARCHITECTURES: tuple[Architecture, ...] = ("softmax-7", "hybrid")
NARROWEST, WIDEST = 5, 80
_COUNT = (
    "number of t' = 43 .. 50 whose s_t' is read off layer 1 at t = 50 with a squared error below 25 % of the variance"
)

GROWS = {
    kind: Claim(
        f"fig21.grows_{SHORT_NAMES[kind]}",
        f"{NAMES[kind]}: {_COUNT}, its increase from one width to the next, the least, for the seed with the least",
        _SOURCE,
        "larger widths bind more",
        Threshold(low=0),
    )
    for kind in ARCHITECTURES
}
NARROW = {
    kind: Claim(
        f"fig21.narrow_{SHORT_NAMES[kind]}",
        f"{NAMES[kind]}, width {NARROWEST}: {_COUNT}, for the seed with the most",
        _SOURCE,
        "not given",
        Threshold(high=2),
    )
    for kind in ARCHITECTURES
}
WIDE = {
    kind: Claim(
        f"fig21.wide_{SHORT_NAMES[kind]}",
        f"{NAMES[kind]}, width {WIDEST}: {_COUNT}, for the seed with the least",
        _SOURCE,
        "not given",
        Threshold(low=4),
    )
    for kind in ARCHITECTURES
}
_READ = 0.25


@dataclass(frozen=True)
class BindingByWidth:
    """The study. Claims are judged by the worst seed.

    Attributes:
        models: with partial observation, "softmax-7" and "hybrid", by width from 5 to 80.
    """

    models: Mapping[Architecture, Mapping[int, Replicates]]

    claims = (*GROWS.values(), *NARROW.values(), *WIDE.values())

    def __post_init__(self) -> None:
        for by_width in self.models.values():
            widths = tuple(by_width)
            ends = widths[:1] + widths[-1:] == (NARROWEST, WIDEST)
            allowed = f"of ascending widths from {NARROWEST} to {WIDEST}"
            require(ends and widths == tuple(sorted(widths)), "models", widths, allowed)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        models = [self.models[kind][width] for kind in ARCHITECTURES for width in self.models[kind]]
        return {label: config for one in models for label, config in one.by_label.items()}

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        probes = {
            kind: {width: bound_tokens(models, trained) for width, models in self.models[kind].items()}
            for kind in ARCHITECTURES
        }
        counts = {kind: _counts(found) for kind, found in probes.items()}
        for kind, count in counts.items():
            steps = np.diff(count, axis=0).min(0)
            sheet.record(GROWS[kind].id, min(steps), tuple(steps))
            sheet.record(NARROW[kind].id, max(count[0]), tuple(count[0]))
            sheet.record(WIDE[kind].id, min(count[-1]), tuple(count[-1]))
        return Findings(figures=(_figure(probes),), tables=(_table(probes, counts),))


Probes = Mapping[Architecture, Mapping[int, Sequence[ControlledProbe]]]


def _counts(by_width: Mapping[int, Sequence[ControlledProbe]]) -> Array:
    """Observations that can be read, `[widths, seeds]`."""
    counts = [[(shares(one.model) < _READ).sum() for one in found] for found in by_width.values()]
    return np.array(counts, dtype=np.float64)


def _figure(probes: Probes) -> Figure:
    panels = []
    for kind, by_width in probes.items():
        lines = [
            probe_line(f"width {width}", [one.model for one in found], "model", colour)
            for colour, (width, found) in enumerate(by_width.items())
        ]
        widest = by_width[WIDEST]
        lines += [
            probe_line(f"width {WIDEST}, untrained", [one.untrained for one in widest], "reference", len(lines) - 1),
            probe_line(f"width {WIDEST}, other sequences", [one.shuffled for one in widest], "reference", len(lines)),
        ]
        panels.append(token_panel(NAMES[kind], lines))
    caption = (
        "How well the last eight observations can be read off the output of the first layer at t = 50, for models of "
        "several widths; an observation has 5 coordinates, the state behind it 15. Linear maps, fitted on half of the "
        "sequences and scored on the others. Dotted: models that were never trained, and observations of other "
        "sequences. Bands: 95 % intervals of one seed, or one standard deviation over seeds."
    )
    return Figure("token_probes_width", "Width and the number of bound tokens (Fig. 21)", caption, tuple(panels), 2)


def _table(probes: Probes, counts: Mapping[Architecture, Array]) -> Table:
    rows: list[tuple[str | float, ...]] = [
        (NAMES[kind], width, seed, int(counts[kind][index, seed]), *(float(share) for share in shares(found.model)))
        for kind, by_width in probes.items()
        for index, (width, seeds) in enumerate(by_width.items())
        for seed, found in enumerate(seeds)
    ]
    first = probes[ARCHITECTURES[0]][WIDEST][0].model.time_steps
    columns = ("model", "width", "seed", "below 25 %", *(f"t' = {int(step)}" for step in first))
    return Table("bound_tokens", "Squared errors by t' as shares of the variance, held out", columns, tuple(rows))
