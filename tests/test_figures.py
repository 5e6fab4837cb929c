"""Figures as data: bands over seeds, and shapes that do not fit."""

import numpy as np
import pytest

from mesascope.errors import InputError
from mesascope.figures import Figure, HeatmapPanel, Line, LinePanel, Table

X = np.array([1.0, 2.0, 3.0])


def test_a_band_is_one_standard_deviation_over_seeds() -> None:
    ys = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 5.0], [2.0, 2.0, 7.0]])
    line = Line.over_seeds("loss", X, ys, "hypothesis", 2)
    assert (line.label, line.role, line.colour) == ("loss", "hypothesis", 2)
    np.testing.assert_allclose(line.y, [2.0, 2.0, 5.0])
    assert line.low is not None
    assert line.high is not None
    # n - 1 in the denominator: deviations -1, 1, 0 give 1, and -2, 0, 2 give 2
    np.testing.assert_allclose(line.high - line.y, [1.0, 0.0, 2.0])
    np.testing.assert_allclose(line.y - line.low, [1.0, 0.0, 2.0])


def test_a_single_seed_has_no_band() -> None:
    line = Line.over_seeds("loss", X, X[None])
    np.testing.assert_array_equal(line.y, X)
    assert line.low is None
    assert line.high is None


def test_the_band_covers_what_it_should() -> None:
    """Two thirds of normal draws lie within one standard deviation of their mean."""
    ys = np.random.default_rng(0).normal(size=(400, 50))
    line = Line.over_seeds("noise", np.arange(50.0), ys)
    inside = (ys > line.low) & (ys < line.high)
    assert abs(inside.mean() - 0.6827) < 0.02


def test_shapes_must_fit() -> None:
    with pytest.raises(InputError, match=r"y: got \(2,\), but it must be of the shape of x \(3,\)"):
        Line("a", X, X[:2])
    with pytest.raises(InputError, match=r"low: got .*, but it must be of the shape of x \(3,\)"):
        Line("a", X, X, low=X[:2], high=X)
    with pytest.raises(InputError, match=r"high: got .*, but it must be of the shape of x \(3,\)"):
        Line("a", X, X, low=X, high=X[:2])


def test_table_rows_are_as_long_as_the_columns() -> None:
    assert Table("t", "T", ("a", "b"), (("x", 1.0), ("y", 2))).rows[1] == ("y", 2)
    assert Table("t", "T", ("a", "b"), ()).rows == ()
    with pytest.raises(InputError, match=r"rows: got \[1, 3\], but it must be of 2 entries, one per column"):
        Table("t", "T", ("a", "b"), (("x",), ("x", 1), ("x", 1, 2)))


def test_a_figure_holds_both_kinds_of_panels() -> None:
    lines = LinePanel("Loss", "t", "loss", (Line("model", X, X),), log_y=True)
    figure = Figure("f", "F", "caption", (lines, HeatmapPanel("QK", "query", "key", np.eye(4), block=2)))
    assert figure.columns == 2
    assert [type(panel) for panel in figure.panels] == [LinePanel, HeatmapPanel]
