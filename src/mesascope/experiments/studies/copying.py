"""The first layer copies: it attends to the current and the previous token, whatever they hold (Figs. 3A, 14, 15)."""

from collections.abc import Mapping
from dataclasses import dataclass

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.experiments.studies.evaluation import evaluation_sequences, in_batches
from mesascope.experiments.studies.replicates import Replicates, figure_name
from mesascope.training.config import TrainingConfig
from mesascope.uncover import AttentionMaps, mean_attention_maps

COPIED = (0, 1)
"""Offsets of the current and of the previous token."""


@dataclass(frozen=True)
class Copying:
    """The study, for the models of one figure.

    Attributes:
        figure: id of the paper's figure; claims are named after it.
        name: of the models, for titles.
        models: whose first layer is looked at.
        sequences: number of sequences averaged over.
    """

    figure: str
    name: str
    models: Replicates
    sequences: int = 2048

    @property
    def claims(self) -> tuple[Claim, ...]:
        source = f"arXiv 2309.05858v2, {figure_name(self.figure)}; threshold ours"
        return (
            Claim(
                self.mass_id,
                "Share of the attention of the first layer on the current and the previous token, mean over sequences "
                "and over time steps with a choice (t > 2), in the head with the most, for the seed with the least",
                source,
                "zero elsewhere",
                Threshold(low=0.8),
            ),
            Claim(
                self.spread_id,
                "Standard deviation over sequences of that head's attention on the current and on the previous token: "
                "mean over time steps, the larger of the two, for the seed with the largest",
                source,
                "not given",
                Threshold(high=0.1),
            ),
        )

    @property
    def mass_id(self) -> str:
        return f"{self.figure}.attends_to_two_tokens"

    @property
    def spread_id(self) -> str:
        return f"{self.figure}.whatever_they_contain"

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return self.models.by_label

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure both claims."""
        sequences = evaluation_sequences(self.models.task, self.sequences)
        maps = [mean_attention_maps(model, in_batches(sequences)) for model in self.models.models(trained)]
        shares, spreads = zip(*(_best_head(each) for each in maps), strict=True)
        sheet.record(self.mass_id, min(shares), shares)
        sheet.record(self.spread_id, max(spreads), spreads)
        caption = (
            f"Attention of the first layer of {self.name}, mean over {self.sequences:,} sequences that nothing "
            "was trained on: row t shows how the update of token t is composed of tokens t'. A head that reads the "
            "current and the previous token shows the diagonal and its neighbour below."
        )
        id, title = f"{self.figure}_attention", f"First-layer attention, {self.name} ({figure_name(self.figure)})"
        return Findings(figures=(maps[0].figure(id, title, caption),), tables=(maps[0].table(id, title),))


def _best_head(maps: AttentionMaps) -> tuple[float, float]:
    """The share on the copied tokens of the head with the most, and the spread of its attention on them."""
    shares = maps.shares(COPIED)[0]
    head = int(shares.argmax())
    return float(shares[head]), max(float(maps.spread(offset)[0, head]) for offset in COPIED)
