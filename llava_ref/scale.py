"""The one colour scale: how a number looks on every map, table, picture and page.

A number's colour lies over what the number belongs to, the more opaque the larger it is: the ground of a table, or a
picture, which stays in its own colours. `MORE` is for numbers above 0, `LESS` for those below. Lightness alone tells
how much, on light ground and on dark; the two hues stay apart for every kind of colour blindness; and black text on
white ground, or white on black, is readable over both (tests/test_scale.py measures all of it).
"""

import numpy as np

MORE, LESS = (224, 48, 160), (70, 135, 20)
"""sRGB of numbers above and below 0."""
STRONGEST = 0.8
"""Opacity at the end of a scale; it rises from 0 in proportion to the number."""


def laid(ground: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Lay numbers (...) over colours (..., 3) uint8, or over one colour; return colours (..., 3) uint8.

    `parts`: the number over the end of its scale, clipped to -1 to 1. NaN is no number and leaves the ground."""
    parts = np.clip(np.nan_to_num(parts), -1, 1)[..., None]
    opacity = STRONGEST * np.abs(parts)
    return np.asarray(np.rint((1 - opacity) * ground + opacity * np.where(parts < 0, LESS, MORE)), np.uint8)


def style() -> str:
    """Return the scale for pages, as CSS: `.shade` colours an element by its `--part`, `.bar` shows the whole scale.

    A bar lies over white and over black. It goes from 0 to the end; with `--zero`, the place of 0 in percent, and
    `--low`, the first number over the end, 0 to 1, from numbers below 0."""
    more, less = (f"rgb({' '.join(map(str, colour))})" for colour in (MORE, LESS))
    return f"""\
:root {{ --more: {more}; --less: {less}; --strongest: {STRONGEST};
  --most: color-mix(in srgb, var(--more) {STRONGEST:.0%}, transparent); }}
.shade {{ background: color-mix(in srgb, var(--more) calc(var(--part, 0) * {STRONGEST:.0%}), transparent); }}
.bar {{ height: 1rem; border-radius: .2rem; box-shadow: 0 0 0 1px #8886; background:
  linear-gradient(to right, color-mix(in srgb, var(--less) calc(var(--low, 0) * {STRONGEST:.0%}), transparent),
    transparent var(--zero, 0%), var(--most)), linear-gradient(#fff 50%, #111 50%); }}
.ends {{ display: flex; justify-content: space-between; gap: .8rem; font-size: .85rem;
  font-variant-numeric: tabular-nums; }}
"""
