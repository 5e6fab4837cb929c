"""Few-shot evaluation, its controls against numpy and the numbers of the specification, and the early ascent."""

from typing import Any

import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.figures import LinePanel
from mesascope.learners import PairRegression, RidgeRegression
from mesascope.predictor import TokenPredictor
from mesascope.tasks import EOSLayout, FewShotRegression, PairLayout, PrefixLayout
from mesascope.uncover import (
    FewShotCurve,
    FewShotResult,
    Prompt,
    early_ascent,
    few_shot_curve,
    few_shot_figure,
    most_pairs,
    search_least_squares,
    search_true_pairs,
)

LAST = TokenPredictor("last token", lambda tokens: tokens)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ascending(losses: np.ndarray, **settings: Any) -> Any:
    return early_ascent(torch.from_numpy(losses), seeded(), **settings)


def test_losses_are_those_on_y_at_the_positions_of_x() -> None:
    task = FewShotRegression(3, (4, 2), PrefixLayout(5))
    prompt = Prompt(torch.ones(3), torch.arange(15.0).reshape(5, 3))
    curve = few_shot_curve(LAST, task, 300, seeded(), prompt=prompt)
    assert curve.losses.shape == (300, 6)
    generator = seeded()
    parts = [task.sample(size, generator, eos=prompt.eos, prefix=prompt.prefix).tokens.numpy() for size in (256, 44)]
    tokens = np.concatenate(parts).astype(np.float64)
    starts = [5, 8, 11, 14, 22, 25]
    expected = np.stack([0.5 * ((tokens[:, s] - tokens[:, s + 1]) ** 2).sum(-1) for s in starts], axis=-1)
    np.testing.assert_allclose(curve.losses, expected, rtol=1e-12)
    np.testing.assert_allclose(curve.mean, expected.mean(0), rtol=1e-12)
    np.testing.assert_allclose(curve.of_task(1), expected[:, 4:], rtol=1e-12)
    assert curve.label == "last token"


def test_least_squares_takes_spurious_pairs_for_true_ones() -> None:
    """The peak lies where half as many true pairs as regressors were seen; float64 reference values."""
    task = FewShotRegression(pairs=(30,))
    pairs = np.array([1, 2, 3, 4, 5, 8, 10, 15, 20, 30]) - 1
    curve = few_shot_curve(RidgeRegression(1e-3), task, 4096, seeded())
    expected = [1.71, 1.73, 1.99, 2.98, 8.2, 4.5, 2.1, 1.10, 0.85, 0.68]
    np.testing.assert_allclose(curve.mean[pairs], expected, rtol=0.12)
    np.testing.assert_allclose(curve.mean[pairs[[0, 1, 2, 7, 8, 9]]], np.array(expected)[[0, 1, 2, 7, 8, 9]], rtol=0.06)
    ascent = ascending(curve.losses)
    assert ascent.found
    assert ascent.peak == 6
    clean = few_shot_curve(PairRegression(1e-3), task, 1024, seeded())
    assert clean.mean[9] < 0.3
    assert (clean.mean[12:] < 1e-3).all()
    assert not ascending(clean.losses).found


def test_ridge_is_searched_on_the_stated_grid() -> None:
    tuning = FewShotRegression(4, (12,)).sample(200, seeded(1))
    spurious, clean = search_least_squares(tuning), search_true_pairs(tuning)
    assert spurious.grid[0] == pytest.approx(1e-3)
    assert spurious.grid[-1] == pytest.approx(100.0)
    assert len(spurious.grid) == 21
    losses = [float(few_shot_curve_on(tuning, RidgeRegression(ridge)).mean()) for ridge in (spurious.value, 0.01, 30.0)]
    assert losses[0] == pytest.approx(min(spurious.losses), rel=1e-6)
    assert losses[0] < min(losses[1:])
    assert clean.value < spurious.value
    assert search_least_squares(tuning, (0.1, 0.2, 0.3)).grid == (0.1, 0.2, 0.3)


def few_shot_curve_on(sequences: Any, predictor: Any) -> torch.Tensor:
    error = (predictor.predict(sequences).double() - sequences.targets.double()).square().sum(-1)
    return 0.5 * error[:, sequences.scored]


def test_noise_is_no_ascent() -> None:
    """Over many draws of a flat curve, the largest of nine noisy means is called a rise at most as often as stated."""
    generator = np.random.default_rng(0)
    found = [ascending(generator.exponential(size=(60, 12)), resamples=300).found for _ in range(200)]
    assert sum(found) <= 14
    naive = [
        losses[:, 1:10].mean(0).max() > losses[:, 0].mean() for losses in generator.exponential(size=(200, 60, 12))
    ]
    assert sum(naive) > 150


def test_ascent_is_measured_where_it_is() -> None:
    generator = np.random.default_rng(1)
    shape = np.array([1.0, 1.1, 1.2, 1.8, 1.3, 1.0, 0.8, 0.7, 0.6, 0.5, 9.0])
    losses = shape + 0.3 * generator.standard_normal((900, 11))
    ascent = ascending(losses)
    assert (ascent.start, ascent.peak, ascent.peak_low, ascent.peak_high) == (1, 4, 4, 4)
    assert ascent.rise == pytest.approx((losses[1::2, 3] - losses[1::2, 0]).mean(), rel=1e-12)
    error = (losses[1::2, 3] - losses[1::2, 0]).std() / np.sqrt(450)
    assert ascent.high - ascent.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert str(ascent).startswith("an early ascent: from pair 1 to the peak at pair 4")
    falling = ascending(losses[:, ::-1].copy()[:, 1:])
    assert falling.found
    assert not ascending(np.sort(losses, axis=1)[:, ::-1].copy()).found
    assert ascending(losses, last=11).peak == 11
    later = ascending(np.concatenate([losses[:, :1] + 2.0, losses[:, :1] + 0.5, losses], axis=1))
    assert (later.start, later.peak) == (3, 6)
    assert later.rise == pytest.approx(ascent.rise, rel=1e-12)


@pytest.mark.parametrize(
    ("layout", "tasks", "length", "expected"),
    [
        (PairLayout(), 1, 224, 60),
        (EOSLayout(), 1, 224, 60),
        (PrefixLayout(), 1, 224, 60),
        (PairLayout(), 2, 224, 30),
        (PrefixLayout(), 2, 224, 30),
        (PairLayout(), 1, 100, 50),
        (EOSLayout(), 1, 128, 42),
        (PrefixLayout(), 1, 128, 36),
        (PrefixLayout(), 2, 128, 14),
        (PairLayout(), 2, 5, 1),
    ],
    ids=str,
)
def test_as_many_pairs_as_fit(layout: Any, tasks: int, length: int, expected: int) -> None:
    pairs = most_pairs(layout, tasks, length)
    assert pairs == expected
    FewShotRegression(pairs=(pairs,) * tasks, layout=layout, max_length=length)
    if pairs * tasks < 60:
        with pytest.raises(InputError, match="max_length"):
            FewShotRegression(pairs=(pairs + 1,) * tasks, layout=layout, max_length=length)


def two_tasks() -> FewShotResult:
    long, short = FewShotRegression(2, (3, 3)), FewShotRegression(2, (2, 2), EOSLayout())
    return FewShotResult(
        (
            few_shot_curve(LAST, long, 5, seeded(), label="long"),
            few_shot_curve(LAST, short, 5, seeded(), prompt=Prompt(torch.ones(2)), label="short", role="hypothesis"),
        )
    )


def test_table_leaves_out_what_a_layout_has_no_room_for() -> None:
    result = two_tasks()
    table = result.table("few_shot", "Few-shot")
    assert table.columns == ("task", "pair", "long", "short")
    assert [row[:2] for row in table.rows] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert [row[2] for row in table.rows] == list(result.curve("long").mean)
    assert [row[3] for row in table.rows] == [*result.curve("short").mean[:2], "", *result.curve("short").mean[2:], ""]


def test_figure_has_a_panel_per_task() -> None:
    result = two_tasks()
    figure = result.figure("few_shot", "Few-shot", "caption")
    first, second = figure.panels
    assert isinstance(first, LinePanel)
    assert isinstance(second, LinePanel)
    assert (first.title, second.title) == ("First task", "Second task")
    np.testing.assert_array_equal(second.lines[0].y, result.curve("long").mean[3:])
    np.testing.assert_array_equal(second.lines[1].x, [1, 2])
    assert [line.role for line in first.lines] == ["model", "hypothesis"]
    losses = result.curve("long").of_task(0)
    np.testing.assert_allclose(first.lines[0].high, losses.mean(0) + losses.std(0, ddof=1) / np.sqrt(5))


def test_figure_of_seeds_has_bands_over_them() -> None:
    task = FewShotRegression(2, (3,))
    results = [FewShotResult((few_shot_curve(LAST, task, 4, seeded(seed)),)) for seed in (0, 1)]
    (panel,) = few_shot_figure(results, "few_shot", "Few-shot", "caption").panels
    assert isinstance(panel, LinePanel)
    means = np.stack([result.curves[0].mean for result in results])
    np.testing.assert_allclose(panel.lines[0].y, means.mean(0))
    np.testing.assert_allclose(panel.lines[0].low, means.mean(0) - means.std(0, ddof=1))


def test_bad_input_is_named() -> None:
    task = FewShotRegression(2, (3,))
    with pytest.raises(InputError, match="count: got 0, but it must be at least 1"):
        few_shot_curve(LAST, task, 0, seeded())
    with pytest.raises(InputError, match="eos: got None, but EOSLayout needs a tensor"):
        few_shot_curve(LAST, FewShotRegression(2, (3,), EOSLayout()), 2, seeded())
    curve = few_shot_curve(LAST, task, 2, seeded())
    with pytest.raises(InputError, match="index: got 1, but it must be between 0 and 0"):
        curve.of_task(1)
    with pytest.raises(InputError, match="label: got 'other', but it must be one of 'last token'"):
        FewShotResult((curve,)).curve("other")
    with pytest.raises(InputError, match=r"curves: got .* at least one curve"):
        FewShotResult(())
    with pytest.raises(InputError, match=r"curves: got .* with distinct labels"):
        FewShotResult((curve, curve))
    two = FewShotCurve("two", FewShotRegression(2, (1, 2)), curve.losses)
    with pytest.raises(InputError, match=r"curves: got \[1, 2\], but it must be on the same number of tasks"):
        FewShotResult((curve, two))
    with pytest.raises(InputError, match=r"results: got \[\], but it must be at least one result"):
        few_shot_figure([], "id", "", "")
    with pytest.raises(InputError, match="tasks: got 0"):
        most_pairs(PairLayout(), 0, 100)
    with pytest.raises(InputError, match="max_length: got 22, in which 1 tasks with PrefixLayout"):
        most_pairs(PrefixLayout(), 1, 22)
    with pytest.raises(InputError, match=r"losses: got \(1, 5\), but it must be of at least two sequences"):
        ascending(np.zeros((1, 5)))
    for last in (1, 6):
        with pytest.raises(InputError, match=f"last: got {last}, but it must be between 2 and the number of pairs"):
            ascending(np.zeros((4, 5)), last=last)
