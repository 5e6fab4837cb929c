from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from mesascope.figures import Line
from mesascope.report import style

LINE = Line("model", np.arange(40.0), np.arange(40.0))

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# IEC 61966-2-1, D65
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear_rgb(colour: str) -> np.ndarray:
    encoded = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def cielab(rgb: np.ndarray) -> np.ndarray:
    relative = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(1)
    f = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast_on_white(colour: str) -> float:
    return 1.05 / (XYZ[1] @ linear_rgb(colour) + 0.05)


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_every_two_colours_differ_for_every_reader(deficiency: str) -> None:
    seen = [cielab(np.array(DEFICIENCIES[deficiency]) @ linear_rgb(colour)) for colour in style.PALETTE]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) >= 16


def test_first_colours_have_the_contrast_of_graphics_on_white() -> None:
    # WCAG 2.1, 1.4.11: 3 to 1
    assert min(contrast_on_white(colour) for colour in style.PALETTE[:5]) >= 3


@pytest.mark.parametrize("colour", range(len(style.PALETTE)))
@pytest.mark.parametrize("role", ["hypothesis", "reference"])
def test_a_stroke_over_its_model_is_darker_and_narrower(colour: int, role: str) -> None:
    over = replace(LINE, role=role, colour=colour)
    assert contrast_on_white(style.stroke_colour(over)) > 1.4 * contrast_on_white(
        style.stroke_colour(replace(over, role="model"))
    )
    assert style.ROLES[role].width < style.ROLES["model"].width
    assert style.ROLES[role].order > style.ROLES["model"].order


def test_colours_past_the_palette_start_again_with_a_marker() -> None:
    first, ninth, seventeenth = (replace(LINE, colour=colour) for colour in (0, 8, 16))
    assert style.base_colour(first) == style.base_colour(ninth)
    assert len({style.marker(first), style.marker(ninth), style.marker(seventeenth)}) == 3


def test_sparse_curves_have_markers() -> None:
    assert style.marker(LINE) is None
    assert style.marker(Line("probe", np.arange(8.0), np.arange(8.0))) == "circle"
