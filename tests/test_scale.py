"""The colour scale: ordered by lightness on every ground, apart for every kind of colour blindness, text readable."""

import re

import numpy as np
import pytest

from llava_ref import scale
from llava_ref.html import asset
from llava_ref.study.overlay import SHARE

LINEAR_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1, 1.089])
SEEN = {  # linear RGB as people with each kind see it: Machado, Oliveira, Fernandes 2009, severity 1
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def style_colour(name: str, dark: bool) -> np.ndarray:
    """Return a colour of the reports' style, light or dark."""
    found = re.findall(rf"--{name}: #(\w+);", asset("report.css"))[dark]
    digits = found if len(found) == 6 else "".join(2 * digit for digit in found)
    return np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)])


THEMES = {dark: (style_colour("paper", dark), style_colour("ink", dark)) for dark in (False, True)}
GROUNDS = [np.array([255] * 3), np.zeros(3), *(paper for paper, _ in THEMES.values())]


def linear(rgb):
    share = np.asarray(rgb, float) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def lab(rgb, kind="usual"):
    xyz = np.clip(linear(rgb) @ np.transpose(SEEN[kind]), 0, 1) @ LINEAR_TO_XYZ.T / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def contrast(one, other):
    """Return the contrast of two colours: WCAG 2.2, 1 to 21."""
    high, low = sorted((float(linear(c) @ LINEAR_TO_XYZ[1]) for c in (one, other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("ground", GROUNDS, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_more_is_further_from_the_ground_in_even_steps(ground, kind, sign):
    lightness = lab(scale.laid(ground, sign * np.linspace(0, 1, 21)), kind)[:, 0]
    steps = np.diff(lightness) * (1 if ground.sum() < 300 else -1)
    assert (steps > 0).all() and abs(lightness[-1] - lightness[0]) > 25
    assert steps.max() < 3 * steps.min(), "no part of the scale hides what another shows"


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("ground", GROUNDS, ids=str)
def test_the_signs_stay_apart(ground, kind):
    for part in (0.5, 1.0):
        more, less = lab(scale.laid(ground, np.array([part, -part])), kind)
        assert np.linalg.norm(more - less) > 40 * part


@pytest.mark.parametrize("dark", THEMES)
def test_text_and_ends_are_readable_in_both_themes(dark):
    paper, ink = THEMES[dark]
    for part in np.linspace(-1, 1, 21):
        assert contrast(scale.laid(paper, np.array(part)), ink) >= 4.5
    for part in (-1.0, 1.0):
        assert contrast(scale.laid(paper, np.array(part)), paper) >= 3


def test_numbers_outside_of_the_scale():
    ground = np.array([10, 20, 30], np.uint8)
    ends = scale.laid(ground, np.array([-9.0, -1.0, np.nan, 0.0, 1.0, 9.0]))
    assert (ends[0] == ends[1]).all() and (ends[4] == ends[5]).all() and (ends[2:4] == ground).all()


def test_there_is_one_table_of_colours():
    """Pages and scripts take the colours from the style that is made of it; none has a scale of its own."""
    style = scale.style()
    assert f"rgb({' '.join(map(str, scale.MORE))})" in style and f"rgb({' '.join(map(str, scale.LESS))})" in style
    assert 'property("--more")' in asset("map.js") and asset("map.js").count("rgb") == 0
    for name in ("look.js", "page.css", "report.css", "attend.html.jinja", "lens.html.jinja", "patch.html.jinja"):
        text = asset(name)
        assert "grayscale" not in text and not re.search(r"rgba?\(|\[\d+, \d+, \d+\]", text), name


def test_the_page_s_measure_is_that_of_attend():
    unit, factor, least = re.search(
        r'SHARE = \{ unit: "(.*?)", factor: (\d+), least: ([\d.]+) \}', asset("look.js")
    ).groups()
    assert (unit, float(factor), float(least)) == (SHARE.unit, SHARE.factor, SHARE.least)
