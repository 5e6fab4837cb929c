"""With partial observation the first layer binds as many tokens as its width has room for (Fig. 21)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mesascope.claims import Claim, Threshold
from mesascope.errors import require
from mesascope.experiments.base import ClaimSheet, Findings, Profile, Trained
from mesascope.experiments.studies.evaluation import Array
from mesascope.experiments.studies.probing import NAMES, SHORT_NAMES, ProbedModel, bound_tokens_of, probe_line, shares
from mesascope.experiments.studies.trainings import Architecture
from mesascope.figures import Figure, LinePanel, Table
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
    """The study.

    Attributes:
        profile: of the trainings.
        seeds: trainings of each model and width.
        widths: d_e, ascending from 5 to 80.
        sequences: on which probes are fitted (half) and scored (half).
    """

    profile: Profile
    seeds: int
    widths: tuple[int, ...]
    sequences: int = 2048

    claims = (*GROWS.values(), *NARROW.values(), *WIDE.values())

    def __post_init__(self) -> None:
        ascending = self.widths == tuple(sorted(self.widths))
        ends = self.widths[:1] + self.widths[-1:] == (NARROWEST, WIDEST)
        require(ascending and ends, "widths", self.widths, f"ascending from {NARROWEST} to {WIDEST}")

    def trainings(self) -> Mapping[str, TrainingConfig]:
        models = [ProbedModel("partial", kind, width) for kind in ARCHITECTURES for width in self.widths]
        return {
            label: config for model in models for label, config in model.trainings(self.profile, self.seeds).items()
        }

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        probes = {
            kind: [
                bound_tokens_of(trained, ProbedModel("partial", kind, width), self.seeds, self.sequences)
                for width in self.widths
            ]
            for kind in ARCHITECTURES
        }
        counts = {kind: _counts(found) for kind, found in probes.items()}
        for kind, count in counts.items():
            steps = np.diff(count, axis=0).min(0)
            sheet.record(GROWS[kind].id, min(steps), tuple(steps))
            sheet.record(NARROW[kind].id, max(count[0]), tuple(count[0]))
            sheet.record(WIDE[kind].id, min(count[-1]), tuple(count[-1]))
        return Findings(figures=(self._figure(probes),), tables=(self._table(counts),))

    def _figure(self, probes: Mapping[Architecture, Sequence[Sequence[ControlledProbe]]]) -> Figure:
        panels = []
        for kind, by_width in probes.items():
            lines = [
                probe_line(f"width {width}", [one.model for one in found], "model", colour)
                for colour, (width, found) in enumerate(zip(self.widths, by_width, strict=True))
            ]
            widest, colour = by_width[-1], len(self.widths) - 1
            lines.append(
                probe_line(f"width {WIDEST}, untrained", [one.untrained for one in widest], "reference", colour)
            )
            shuffled = [one.shuffled for one in widest]
            lines.append(probe_line(f"width {WIDEST}, other sequences", shuffled, "reference", len(self.widths)))
            axis = "time step t' of the token that is read"
            panels.append(LinePanel(NAMES[kind], axis, "squared error of the probe, held out", tuple(lines)))
        caption = (
            "How well the last eight observations can be read off the output of the first layer at t = 50, for models "
            "of several widths; each observation has 5 coordinates of a state of 15. Linear maps, fitted on half of "
            "the sequences and scored on the others. Dotted: an untrained model and shuffled targets. Bands: 95 % "
            "intervals of one seed, or one standard deviation over seeds."
        )
        return Figure("token_probes_width", "Width and the number of bound tokens (Fig. 21)", caption, tuple(panels), 2)

    def _table(self, counts: Mapping[Architecture, Array]) -> Table:
        rows = [
            (NAMES[kind], width, seed, int(count[index, seed]))
            for kind, count in counts.items()
            for index, width in enumerate(self.widths)
            for seed in range(self.seeds)
        ]
        columns = ("model", "width", "seed", "tokens below 25 % of the variance")
        return Table("bound_tokens", "Observations that can be read off layer 1", columns, tuple(rows))


def _counts(by_width: Sequence[Sequence[ControlledProbe]]) -> Array:
    """Tokens that can be read, `[widths, seeds]`."""
    return np.array([[(shares(one.model)[0] < _READ).sum() for one in found] for found in by_width], dtype=np.float64)
