import numpy as np
import pytest

from mesascope.errors import InputError
from mesascope.figures import HeatmapPanel, Line, LinePanel
from mesascope.report import geometry

X = np.array([1.0, 2.0, 3.0])


def panel(*lines: Line, log_y: bool = False, y_limits: tuple[float, float] | None = None) -> LinePanel:
    return LinePanel("title", "x", "y", lines, log_y, y_limits)


def matrix_panel(matrix: np.ndarray, **options: object) -> HeatmapPanel:
    return HeatmapPanel("title", "x", "y", matrix, **options)


def test_ranges_hold_curves_and_bands_with_a_margin() -> None:
    drawn = panel(Line("a", X, X, low=X - 1, high=X + 2), Line("b", X, np.array([np.nan, 1.0, np.inf])))
    assert geometry.x_range(drawn) == pytest.approx((1 - 0.04, 3 + 0.04))
    assert geometry.y_range(drawn) == pytest.approx((0 - 0.25, 5 + 0.25))


def test_logarithmic_range_ignores_what_cannot_be_shown() -> None:
    drawn = panel(Line("a", X, np.array([0.0, 0.1, 10.0]), low=np.array([-1.0, 1e-9, 1.0]), high=X), log_y=True)
    # from a decade below the smallest positive value of the curve, 0.01, to 10, and 5 % of three decades around them
    assert geometry.y_range(drawn) == pytest.approx((10**-2.15, 10**1.15))


def test_logarithmic_horizontal_range_and_its_ticks() -> None:
    drawn = LinePanel("t", "x", "y", (Line("a", np.array([0.0, 10.0, 1000.0]), X), Line("b", X[:1], X[:1])), log_x=True)
    # three decades from 1 to 1000, and 2 % of them on either side
    assert geometry.x_range(drawn) == pytest.approx((10**-0.06, 10**3.06))
    assert geometry.x_range(LinePanel("t", "x", "y", (), log_x=True)) == (0.1, 1.0)
    few = LinePanel("t", "x", "y", (Line("a", 2.0**X, X), Line("b", 2.0**X, X)), log_x=True)
    assert geometry.x_ticks(few) == [2.0, 4.0, 8.0]
    assert geometry.x_ticks(panel(Line("a", X, X))) is None
    many = np.arange(1.0, 30.0)
    assert geometry.x_ticks(LinePanel("t", "x", "y", (Line("a", many, many),), log_x=True)) is None


def test_band_is_cut_at_the_bottom_of_a_logarithmic_axis_only() -> None:
    line = Line("a", X, np.ones(3), low=np.array([-1.0, 0.5, np.nan]), high=np.full(3, 2.0))
    low, high = geometry.band_edges(line, panel(line, log_y=True, y_limits=(0.1, 3.0)))
    np.testing.assert_array_equal(low, [0.1, 0.5, np.nan])
    np.testing.assert_array_equal(high, line.high)
    np.testing.assert_array_equal(geometry.band_edges(line, panel(line))[0], line.low)
    assert geometry.band_edges(Line("b", X, X), panel(line)) is None


@pytest.mark.parametrize(("limits", "log_y"), [((1.0, 1.0), False), ((2.0, 1.0), False), ((0.0, 1.0), True)])
def test_limits_that_cannot_be_drawn(limits: tuple[float, float], log_y: bool) -> None:
    with pytest.raises(InputError, match=r"y_limits: got .* increasing and positive on a logarithmic axis"):
        geometry.y_range(panel(Line("a", X, X), log_y=log_y, y_limits=limits))


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize("y", [np.full(3, np.nan), np.zeros(3), np.full(3, 0.7)])
def test_degenerate_curves_have_a_range(y: np.ndarray, log_y: bool) -> None:
    low, high = geometry.y_range(panel(Line("a", X, y), log_y=log_y))
    assert np.isfinite([low, high]).all()
    assert low < high
    assert low > 0 or not log_y
    assert geometry.y_range(panel(log_y=log_y))[0] < geometry.y_range(panel(log_y=log_y))[1]


def test_colour_limit() -> None:
    assert geometry.colour_limit(matrix_panel(np.array([[0.1, -0.4], [np.nan, np.inf]]))) == 0.4
    assert geometry.colour_limit(matrix_panel(np.eye(2), limit=0.2)) == 0.2
    assert geometry.colour_limit(matrix_panel(np.zeros((2, 2)))) == 1.0
    with pytest.raises(InputError, match=r"limit: got 0\.0, but it must be positive"):
        geometry.colour_limit(matrix_panel(np.eye(2), limit=0.0))


def test_blocks() -> None:
    labelled = matrix_panel(np.zeros((40, 30)), block=10, block_labels=("y", "x", "x'", "0"))
    assert geometry.block_edges(40, 10) == [9.5, 19.5, 29.5]
    assert geometry.block_edges(40, None) == []
    assert geometry.block_ticks(labelled, 40) == ([4.5, 14.5, 24.5, 34.5], ["y", "x", "x'", "0"])
    assert geometry.block_ticks(labelled, 25) == ([4.5, 14.5, 22.0], ["y", "x", "x'"])
    assert geometry.block_ticks(matrix_panel(np.zeros((4, 4)), block=2), 4) == ([], [])
