"""The curse of dimension: an induction head falls behind least squares as observations grow (Figs. 5B and 20)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mesascope.claims import Claim, Threshold
from mesascope.experiments.base import ClaimSheet, Findings, Trained
from mesascope.figures import Figure
from mesascope.tasks import Dynamics, fully_observed_linear
from mesascope.training.config import TrainingConfig
from mesascope.training.seeds import stream
from mesascope.uncover import LEAST_SQUARES, SOFTMAX_KERNEL, LossesByDimension, losses_by_dimension

SIZES = (4, 6, 10, 20, 40, 60)
"""Sizes of an observation in the figures; sequences have T = 4 n_s."""

_PAPER = "arXiv 2309.05858v2"

FLAT = Claim(
    "fig5b.least_squares_is_flat",
    "Largest loss per dimension of least squares over n_s = 4 .. 60, divided by the smallest",
    f"{_PAPER}, Fig. 5B; threshold ours",
    "about 0.02 throughout",
    Threshold(high=1.3),
)
CURSE = Claim(
    "fig5b.softmax_grows",
    "Loss per dimension of softmax-kernel regression at n_s = 60, divided by that at n_s = 4",
    f"{_PAPER}, Fig. 5B; threshold ours",
    "grows",
    Threshold(low=1.3),
)
BETTER = Claim(
    "fig5b.least_squares_is_better",
    "Loss of least squares divided by that of softmax-kernel regression, for the n_s where it is largest",
    f"{_PAPER}, Fig. 5B",
    "below at every n_s",
    Threshold(high=1.0),
)


@dataclass(frozen=True)
class CurseOfDimension:
    """The study of Fig. 5B; it trains nothing.

    Attributes:
        sizes: values of n_s, from 4 to 60.
        tuning_sequences: sequences on which ridge and beta are tuned.
        sequences: sequences measured on.
    """

    sizes: tuple[int, ...] = SIZES
    tuning_sequences: int = 512
    sequences: int = 1024

    claims = (FLAT, CURSE, BETTER)

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return {}

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        losses = losses_by_dimension(
            task_of_size,
            self.sizes,
            [(stream(0, "tuning"), stream(0, "evaluation"))],
            tuning_sequences=self.tuning_sequences,
            sequences=self.sequences,
        )
        least_squares, softmax = (_per_dimension(losses, name) for name in (LEAST_SQUARES.name, SOFTMAX_KERNEL.name))
        sheet.record(FLAT.id, max(least_squares) / min(least_squares), least_squares)
        sheet.record(CURSE.id, softmax[-1] / softmax[0], softmax)
        ratios = tuple(ours / theirs for ours, theirs in zip(least_squares, softmax, strict=True))
        sheet.record(BETTER.id, max(ratios), ratios)
        caption = (
            "Loss per dimension on sequences of length 4 n_s, mean over time. Ridge and inverse temperature are tuned "
            "for every n_s on other sequences. Least squares needs n_s transitions, the same share of every sequence; "
            "an induction head finds ever fewer past tokens that resemble the current one."
        )
        title = "Least squares and softmax kernel (Fig. 5B)"
        return Findings(
            figures=(losses.figure("loss_by_dimension", title, caption, "per dimension"),),
            tables=(losses.table("loss_by_dimension", title, "per dimension"),),
        )


def task_of_size(n_s: int, noise_variance: float = 1e-4) -> Dynamics:
    """Linear dynamics of size n_s with T = 4 n_s, whose states are not clipped."""
    return replace(fully_observed_linear(n_s, 4 * n_s), noise_std=noise_variance**0.5, clip=None)


@dataclass(frozen=True)
class Noise:
    """The study of Fig. 20; it trains nothing.

    Attributes:
        seeds: draws of sequences.
        variances: of the state noise, sigma_h^2.
        sizes: values of n_s.
        sequences: sequences measured on, per seed.
        tuning_sequences: sequences on which ridge and beta are tuned, per seed.
    """

    seeds: int
    variances: tuple[float, ...] = (0.1, 0.25, 0.5)
    sizes: tuple[int, ...] = SIZES
    sequences: int = 32
    tuning_sequences: int = 64

    @property
    def claims(self) -> tuple[Claim, ...]:
        return tuple(
            Claim(
                _noise_id(variance),
                f"Loss of least squares divided by that of softmax-kernel regression at sigma_h^2 = {variance:g}, for "
                "the n_s and the seed where it is largest",
                f"{_PAPER}, Fig. 20",
                "below at every n_s",
                Threshold(high=1.0),
            )
            for variance in self.variances
        )

    def trainings(self) -> Mapping[str, TrainingConfig]:
        return {}

    def measure(self, trained: Trained, sheet: ClaimSheet) -> Findings:
        """Measure all claims of the study."""
        panels, tables = [], []
        for variance in self.variances:
            losses = losses_by_dimension(
                lambda n_s, variance=variance: task_of_size(n_s, variance),  # type: ignore[misc]
                self.sizes,
                [(stream(seed, "tuning"), stream(seed, "evaluation")) for seed in range(self.seeds)],
                tuning_sequences=self.tuning_sequences,
                sequences=self.sequences,
            )
            ratios = losses.of(LEAST_SQUARES.name) / losses.of(SOFTMAX_KERNEL.name)
            sheet.record(_noise_id(variance), ratios.max(), tuple(ratios.max(0)))
            title = f"sigma_h^2 = {variance:g}"
            panels.append(losses.panel(title))
            tables.append(losses.table(f"noise_{variance:g}", f"Losses with {title}"))
        caption = (
            "Loss summed over dimensions, mean over time, for three variances of the state noise. Band: one standard "
            f"deviation over {self.seeds} draws of {self.sequences} sequences."
        )
        title = "Least squares and softmax kernel with noise (Fig. 20)"
        return Findings(figures=(Figure("noise", title, caption, tuple(panels), 3),), tables=tuple(tables))


def _noise_id(variance: float) -> str:
    return f"fig20.least_squares_is_better_{variance:g}"


def _per_dimension(losses: LossesByDimension, family: str) -> tuple[float, ...]:
    return tuple(float(loss) for loss in losses.of(family, "per dimension").mean(0))
