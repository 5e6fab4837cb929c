"""How figures look: one place for both renderers.

The colours are those of Okabe and Ito (Color Universal Design, 2008), ordered by contrast on white, without their
yellow and with dark grey for their black; a brown makes eight. Under simulated protanopia, deuteranopia and
tritanopia (Machado, Oliveira and Fernandes 2009) every two of them stay at least 16 apart in CIELAB. The diverging
scale is ColorBrewer's 11-class RdBu, blue for negative.
"""

from dataclasses import dataclass
from typing import Literal

from mesascope.figures import Line, Role

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#404040", "#E69F00", "#56B4E9", "#6A3D00")

DIVERGING = (
    "#053061",
    "#2166ac",
    "#4393c3",
    "#92c5de",
    "#d1e5f0",
    "#f7f7f7",
    "#fddbc7",
    "#f4a582",
    "#d6604d",
    "#b2182b",
    "#67001f",
)
MISSING = "#c8c8c8"
"""Cells of a heatmap that are not finite."""

INK = "#1f2430"
MUTED = "#5b6472"
GRID = "#e3e6eb"
AXIS = "#9aa2ae"
SEPARATOR = "#7d8590"

BAND_OPACITY = 0.18
SPARSE = 15
"""Curves of at most this many points get a marker on each of them."""

Marker = Literal["circle", "square", "diamond", "triangle-up"]
_MARKERS: tuple[Marker, ...] = ("circle", "square", "diamond", "triangle-up")


@dataclass(frozen=True)
class RoleStyle:
    """The stroke of a role.

    Attributes:
        width: in points.
        dash: lengths of dash and gap in points; empty for a solid line.
        shade: share of black mixed into the colour. A hypothesis that coincides with its model is drawn over it as
            darker, narrower dashes, so both stay visible.
        order: curves of a higher order are drawn over those of a lower one.
    """

    width: float
    dash: tuple[float, ...]
    shade: float
    order: int


ROLES: dict[Role, RoleStyle] = {
    "model": RoleStyle(width=2.4, dash=(), shade=0.0, order=1),
    "hypothesis": RoleStyle(width=1.6, dash=(6.0, 3.5), shade=0.4, order=3),
    "reference": RoleStyle(width=1.6, dash=(1.6, 2.4), shade=0.4, order=2),
}


def base_colour(line: Line) -> str:
    """The palette's colour of a line and of its band; indices past the palette start it again."""
    return PALETTE[line.colour % len(PALETTE)]


def stroke_colour(line: Line) -> str:
    """The colour of the stroke of a line: its palette colour, darkened as its role says."""
    colour, keep = base_colour(line), 1 - ROLES[line.role].shade
    channels = (round(int(colour[start : start + 2], 16) * keep) for start in (1, 3, 5))
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def marker(line: Line) -> Marker | None:
    """The marker of a line: on sparse curves, and on those past the palette, to tell them from its first colours."""
    cycle = line.colour // len(PALETTE)
    return _MARKERS[cycle % len(_MARKERS)] if cycle or line.x.size <= SPARSE else None


def rgba(colour: str, opacity: float) -> str:
    """A `#rrggbb` colour with an opacity, as CSS."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"
