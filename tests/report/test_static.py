import re
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from PIL import Image

from mesascope.errors import InputError, StorageError
from mesascope.figures import Figure, HeatmapPanel, Line, LinePanel, Role
from mesascope.report import save_figure, style
from mesascope.report.static import draw_figure, write_figure
from report import demo

X = np.arange(1.0, 21.0)
SEEDS = Line.over_seeds("model", X, np.stack([X - 1, X + 1]))
ROLES = tuple(Line(role, X, X, role) for role in ("hypothesis", "model", "reference"))


def figure(*panels: LinePanel | HeatmapPanel, columns: int = 2) -> Figure:
    return Figure("figure", "Title", "Caption.", panels, columns)


def lines(*drawn: Line, log_y: bool = False) -> LinePanel:
    return LinePanel("panel", "x", "y", drawn, log_y)


def test_files_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    drawn = figure(lines(SEEDS, log_y=True), HeatmapPanel("m", "c", "r", np.eye(4), block=2))
    first = save_figure(drawn, tmp_path / "first")
    second = save_figure(drawn, tmp_path / "second")
    assert [path.name for path in first] == ["figure.png", "figure.svg"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert b"<dc:date>" not in first[1].read_bytes()
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["figure.png", "figure.svg"]


def test_resolution(tmp_path: Path) -> None:
    with Image.open(save_figure(figure(lines(SEEDS)), tmp_path)[0]) as image:
        assert image.info["dpi"] == pytest.approx((200, 200), rel=1e-3)


def test_global_settings_are_left_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    save_figure(figure(lines(SEEDS)), tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_band_has_the_height_of_two_standard_deviations() -> None:
    (axes,) = draw_figure(figure(lines(SEEDS))).axes
    (band,) = [artist for artist in axes.collections if isinstance(artist, PolyCollection)]
    vertices = band.get_paths()[0].vertices
    # the two seeds are one below and one above their mean, so their deviation (n - 1) is the root of two
    for x in X:
        edges = np.unique(vertices[vertices[:, 0] == x, 1])
        np.testing.assert_allclose([edges.min(), edges.max()], [x - 2**0.5, x + 2**0.5])


def test_a_single_seed_has_no_band() -> None:
    (axes,) = draw_figure(figure(lines(Line.over_seeds("model", X, X[None])))).axes
    assert not axes.collections


def test_roles_and_order() -> None:
    (axes,) = draw_figure(figure(lines(*ROLES))).axes
    drawn = {line.get_label(): line for line in axes.get_lines()}
    assert list(drawn) == ["model", "reference", "hypothesis"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["hypothesis", "model", "reference"]
    assert drawn["model"].get_linestyle() == "-"
    assert to_hex(drawn["model"].get_color()).upper() == style.PALETTE[0]


@pytest.mark.parametrize("role", style.ROLES)
def test_roles_map_to_dashes(role: Role, tmp_path: Path) -> None:
    svg = save_figure(figure(lines(Line(role, X, X, role))), tmp_path)[1].read_text()
    # the curve and its legend entry; strokes of the SVG are in points
    found = [[float(length) for length in dash.split(",")] for dash in re.findall(r"stroke-dasharray: ([\d.,]+)", svg)]
    expected = list(style.ROLES[role].dash)
    np.testing.assert_allclose(found, [expected, expected] if expected else [], rtol=1e-6)


def test_logarithmic_horizontal_axis_is_labelled_at_its_points() -> None:
    times = np.array([64.0, 512.0, 8192.0])
    panel = LinePanel("p", "T", "s", (Line("a", times, times),), log_y=True, log_x=True)
    (axes,) = draw_figure(figure(panel)).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "512", "8192"]
    np.testing.assert_allclose(axes.get_xticks(), times)
    assert axes.get_xlim()[0] < 64 < 8192 < axes.get_xlim()[1]
    assert draw_figure(figure(lines(SEEDS))).axes[0].get_xscale() == "linear"


def test_one_file_is_written_in_its_format(tmp_path: Path) -> None:
    png, svg = tmp_path / "a" / "one.png", tmp_path / "a" / "two.svg"
    for path in (png, svg):
        write_figure(figure(lines(SEEDS)), path)
        first = path.read_bytes()
        write_figure(figure(lines(SEEDS)), path)
        assert path.read_bytes() == first
    assert png.read_bytes() == save_figure(figure(lines(SEEDS)), tmp_path)[0].read_bytes()
    assert svg.read_text().rstrip().endswith("</svg>")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["one.png", "two.svg"]
    with pytest.raises(InputError, match=r"path: got 'a\.pdf', but it must be a file that ends in \.png or \.svg"):
        write_figure(figure(lines(SEEDS)), Path("a.pdf"))


def test_legend_covers_no_curve() -> None:
    drawing = draw_figure(demo.loss_curves(np.random.default_rng(0)))
    drawing.draw_without_rendering()
    for axes in drawing.axes:
        legend, inside = axes.get_legend().get_window_extent(), axes.get_window_extent()
        assert legend.y1 < axes.xaxis.label.get_window_extent().y0
        assert legend.y0 >= 0
        assert not legend.overlaps(inside)


def test_equal_entries_share_one_legend() -> None:
    drawing = draw_figure(figure(lines(*ROLES), lines(*ROLES)))
    assert len(drawing.legends) == 1
    assert all(axes.get_legend() is None for axes in drawing.axes)
    assert not draw_figure(figure(lines(*ROLES), lines(SEEDS))).legends


def test_heatmap_colours_are_symmetric_about_zero() -> None:
    matrix = np.diag([0.1, -0.3, 0.2, np.nan])
    axes, bar = draw_figure(figure(HeatmapPanel("m", "c", "r", matrix, block=2, block_labels=("a", "b")))).axes
    (image,) = axes.get_images()
    assert image.get_clim() == (-0.3, 0.3)
    colours = image.to_rgba(matrix)
    assert to_hex(colours[1, 1]) == style.DIVERGING[0]
    assert to_hex(colours[0, 1]) == style.DIVERGING[5]
    assert to_hex(colours[3, 3]) == style.MISSING
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "row 0 is on top"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert [float(tick) for tick in axes.get_yticks()] == [0.5, 2.5]
    assert sorted({line.get_xdata()[0] for line in axes.get_lines()}) == [0, 1.5]
    assert bar.get_ylim() == (-0.3, 0.3)


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_odd_numbers_of_panels(columns: int) -> None:
    drawing = draw_figure(figure(lines(SEEDS), lines(*ROLES), lines(SEEDS), columns=columns))
    assert len(drawing.axes) == 3


def test_panels_without_curves_and_texts_that_look_like_formulas(tmp_path: Path) -> None:
    hostile = replace(SEEDS, label="$x_1 $ & <b>")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure(lines(), lines(hostile)), tmp_path)
        save_figure(replace(figure(), id="empty", title="costs $5"), tmp_path)


def test_a_number_of_the_paper_stays_in_its_line() -> None:
    titled = replace(figure(lines(SEEDS)), title="Loss along the sequence, one layer (Fig. 4C)")
    assert draw_figure(titled).get_suptitle() == "Loss along the sequence, one layer\n(Fig.\N{NO-BREAK SPACE}4C)"


def test_a_file_alone_is_the_same_as_among_both(tmp_path: Path) -> None:
    drawn = figure(lines(*ROLES), HeatmapPanel("m", "c", "r", np.eye(4), block=2))
    for path in save_figure(drawn, tmp_path):
        alone = tmp_path / f"alone{path.suffix}"
        write_figure(drawn, alone)
        assert alone.read_bytes() == path.read_bytes()


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot be written"):
        save_figure(figure(lines(SEEDS)), tmp_path / "file")
