import json
from dataclasses import replace

import numpy as np
import pytest

from mesascope.figures import Figure, HeatmapPanel, Line, LinePanel
from mesascope.report import style, to_plotly
from report import demo

X = np.arange(1.0, 21.0)
SEEDS = Line.over_seeds("model", X, np.stack([X - 1, X + 1]), colour=1)


def figure(*panels: LinePanel | HeatmapPanel, columns: int = 2) -> Figure:
    return Figure("figure", "Title", "Caption.", panels, columns)


def lines(*drawn: Line, log_y: bool = False) -> LinePanel:
    return LinePanel("panel", "x", "y", drawn, log_y)


def test_band_has_the_height_of_two_standard_deviations() -> None:
    band, curve = to_plotly(figure(lines(SEEDS))).data
    for x in X:
        edges = band.y[band.x == x]
        np.testing.assert_allclose([edges.min(), edges.max()], [x - 2**0.5, x + 2**0.5])
    np.testing.assert_array_equal(curve.y, X)
    assert band.fill == "toself"
    assert band.fillcolor == style.rgba(style.PALETTE[1], style.BAND_OPACITY)
    assert band.legendgroup == curve.legendgroup
    assert not band.showlegend


def test_a_gap_splits_the_band() -> None:
    low = np.array([0.0, 0.0, np.nan, 0.0, 0.0])
    gapped = Line("model", X[:5], np.ones(5), low=low, high=np.full(5, 2.0))
    band = to_plotly(figure(lines(gapped))).data[0]
    np.testing.assert_array_equal(band.x, [1, 2, 2, 1, np.nan, 4, 5, 5, 4])
    np.testing.assert_array_equal(band.y, [2, 2, 0, 0, np.nan, 2, 2, 0, 0])


def test_a_band_of_nothing_is_drawn_as_nothing() -> None:
    nothing = np.full(20, np.nan)
    band = to_plotly(figure(lines(replace(SEEDS, low=nothing, high=nothing)))).data[0]
    assert len(band.x) == len(band.y) == 0


def test_roles_map_to_dashes_and_hypotheses_are_on_top() -> None:
    roles = tuple(Line(role, X, X, role) for role in ("hypothesis", "model", "reference"))
    drawn = to_plotly(figure(lines(*roles))).data
    assert [trace.name for trace in drawn] == ["model", "reference", "hypothesis"]
    assert [trace.legendrank for trace in drawn] == [2, 3, 1]
    assert drawn[0].line.dash == "solid"
    dashes = {
        trace.name: [float(part.removesuffix("px")) for part in trace.line.dash.split(",")] for trace in drawn[1:]
    }
    np.testing.assert_allclose(dashes["hypothesis"], np.array(style.ROLES["hypothesis"].dash) * 4 / 3, rtol=1e-2)
    np.testing.assert_allclose(dashes["reference"], np.array(style.ROLES["reference"].dash) * 4 / 3, rtol=1e-2)
    assert drawn[0].line.color == style.PALETTE[0].lower()


def test_logarithmic_axis_counts_in_powers_of_ten() -> None:
    layout = to_plotly(figure(lines(Line("model", X, 10.0 ** (X / 10)), log_y=True))).layout
    assert layout.yaxis.type == "log"
    # from 0.1 to 2 powers of ten, and 5 % of them on either side
    assert layout.yaxis.range == pytest.approx((0.1 - 0.095, 2 + 0.095))


def test_logarithmic_horizontal_axis_is_labelled_at_its_points() -> None:
    times = np.array([64.0, 512.0, 8192.0])
    panel = LinePanel("p", "T", "s", (Line("a", times, times),), log_x=True)
    layout = to_plotly(figure(panel)).layout
    assert layout.xaxis.type == "log"
    low, high = layout.xaxis.range
    assert low < np.log10(64) < np.log10(8192) < high
    assert layout.xaxis.tickvals == (64, 512, 8192)
    assert layout.xaxis.ticktext == ("64", "512", "8192")
    assert layout.yaxis.type == "linear"


def test_heatmap_colours_are_symmetric_about_zero() -> None:
    matrix = np.diag([0.1, -0.3, 0.2, 0.0])
    drawing = to_plotly(figure(HeatmapPanel("m", "c", "r", matrix, block=2, block_labels=("a", "b"))))
    (trace,) = drawing.data
    assert (trace.zmin, trace.zmax) == (-0.3, 0.3)
    assert [colour for _, colour in trace.colorscale] == list(style.DIVERGING)
    np.testing.assert_array_equal(trace.z, matrix)
    assert drawing.layout.yaxis.range == (3.5, -0.5), "row 0 is on top"
    assert drawing.layout.xaxis.tickvals == (0.5, 2.5)
    assert drawing.layout.xaxis.ticktext == ("a", "b")
    assert [(line.x0, line.x1, line.y0, line.y1) for line in drawing.layout.shapes] == [
        (-0.5, 3.5, 1.5, 1.5),
        (1.5, 1.5, -0.5, 3.5),
    ]


def test_panels_have_their_own_axes_legend_and_colour_bar() -> None:
    generator = np.random.default_rng(0)
    curves, products = to_plotly(demo.loss_curves(generator)), to_plotly(demo.weight_products(generator))
    assert {trace.legend for trace in curves.data} == {"legend", "legend2", "legend3", "legend4"}
    for trace in curves.data:
        assert trace.xaxis.removeprefix("x") == trace.legend.removeprefix("legend")
    assert len({(trace.colorbar.x, trace.colorbar.y) for trace in products.data}) == 4
    assert curves.layout.width is None
    assert curves.layout.autosize


@pytest.mark.parametrize("panels", [0, 1, 3])
def test_any_number_of_panels(panels: int) -> None:
    drawing = to_plotly(figure(*[lines(SEEDS)] * panels))
    assert len(drawing.data) == 2 * panels


def test_legends_stay_below_their_own_panels() -> None:
    drawn = demo.loss_curves(np.random.default_rng(0))
    layout = to_plotly(drawn).layout
    room = layout.yaxis.domain[0] - layout.yaxis3.domain[1]
    for suffix in ("", "2", "3", "4"):
        legend, entries = layout[f"legend{suffix}"], len(drawn.panels[int(suffix or 1) - 1].lines)
        assert legend.orientation == "v"
        assert legend.x == layout[f"xaxis{suffix}"].domain[0]
        inner = layout.height - layout.margin.t - layout.margin.b
        assert layout[f"yaxis{suffix}"].domain[0] - legend.y + 20 * entries / inner < room
    assert to_plotly(replace(drawn, columns=1)).layout.legend.orientation == "h"


def test_markup_in_texts_is_shown_as_it_is() -> None:
    drawing = to_plotly(figure(LinePanel("<b>&", "<i>", "a<b", (replace(SEEDS, label="<a href='x'>l</a>"),))))
    texts = json.loads(drawing.to_json())
    assert texts["layout"]["annotations"][0]["text"] == "&lt;b&gt;&amp;"
    assert texts["layout"]["xaxis"]["title"]["text"] == "&lt;i&gt;"
    assert texts["data"][1]["name"] == "&lt;a href='x'&gt;l&lt;/a&gt;"


def test_the_same_figure_gives_the_same_json() -> None:
    drawn = figure(lines(SEEDS), HeatmapPanel("m", "c", "r", np.eye(3)))
    assert to_plotly(drawn).to_json() == to_plotly(drawn).to_json()


def test_a_single_panel_may_have_a_legend_higher_than_itself() -> None:
    many = [Line(f"a hypothesis with a long name, number {number}", X, X + number) for number in range(40)]
    drawing = to_plotly(figure(lines(*many), columns=1))
    assert len(drawing.data) == 40
    assert drawing.layout.height > 1000
