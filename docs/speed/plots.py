"""Draw bars and lines as SVG, on a card of their own that is light or dark as the reader's system is."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log2, log10

WIDTH, LEFT, RIGHT, TOP, BAR, GAP, PLOT = 760, 190, 64, 64, 15, 12, 240
STYLE = """<style>
  .card { fill: #ffffff; stroke: #d0d7de } text { fill: #1f2328; font: 12px system-ui, sans-serif }
  .title { font-weight: 600; font-size: 14px } .soft { fill: #656d76 }
  .grid { stroke: #d8dee4 } .mark { stroke: #656d76 }
  .c0 { fill: #2563c9 } .c1 { fill: #a8b1bb } .c2 { fill: #d9822b }
  .l0 { stroke: #2563c9 } .l1 { stroke: #7d8894 } .l2 { stroke: #d9822b } polyline { fill: none; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #30363d } text { fill: #e6edf3 } .soft { fill: #8d96a0 } .grid { stroke: #2b323b }
    .mark { stroke: #8d96a0 } .c0 { fill: #539bf5 } .c1 { fill: #5b6570 } .c2 { fill: #e09b4d }
    .l0 { stroke: #539bf5 } .l1 { stroke: #8b949e } .l2 { stroke: #e09b4d }
  }
</style>"""


@dataclass(frozen=True, slots=True)
class Series:
    """Holds the values of one colour, one for each label; None where there is none."""

    name: str
    values: Sequence[float | None]


def bars(title: str, labels: Sequence[str], series: Sequence[Series], mark: Sequence[float] = ()) -> str:
    """Draw a group of horizontal bars for each label. `mark`: values at which a line crosses each group."""
    found = [value for one in series for value in one.values if value is not None] + list(mark)
    scale = (WIDTH - LEFT - RIGHT) / max(found, default=1.0)
    group = BAR * len(series) + GAP
    drawn = []
    for i, label in enumerate(labels):
        y = TOP + i * group
        drawn.append(_text(LEFT - 8, y + BAR * len(series) / 2 + 4, label, "end"))
        for j, one in enumerate(series):
            if (value := one.values[i]) is not None:
                at, length = y + j * BAR, value * scale
                drawn.append(
                    f'<rect class="c{j}" x="{LEFT}" y="{at:.1f}" width="{length:.1f}" height="{BAR - 2}" rx="2"/>'
                )
                drawn.append(_text(LEFT + length + 5, at + BAR - 4, f"{value:.3g}", "start", "soft"))
        if mark:
            x = LEFT + mark[i] * scale
            drawn.append(f'<path class="mark" d="M{x:.1f} {y - 3}v{group - GAP + 4}" stroke-dasharray="3 2"/>')
    return _card(title, [one.name for one in series], TOP + len(labels) * group + 4, drawn)


def lines(title: str, across: str, x: Sequence[float], series: Sequence[Series]) -> str:
    """Draw lines over x, whose steps are doublings; y begins at 0."""
    most = max((value for one in series for value in one.values if value is not None), default=1.0)
    grid = _grid(most)
    top = grid * ceil(most / grid)
    left, right, bottom = 64, WIDTH - RIGHT, TOP + PLOT

    def at(value: float) -> float:
        return left + (right - left) * (log2(value) - log2(x[0])) / (log2(x[-1]) - log2(x[0]))

    drawn = [_text(at(value), bottom + 18, f"{value:,.0f}", "middle", "soft") for value in x]
    for step in range(ceil(most / grid) + 1):
        y = bottom - PLOT * step * grid / top
        drawn.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        drawn.append(_text(left - 8, y + 4, f"{grid * step:g}", "end", "soft"))
    for j, one in enumerate(series):
        points = [(at(a), bottom - PLOT * b / top) for a, b in zip(x, one.values, strict=True) if b is not None]
        drawn.append(f'<polyline class="l{j}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>')
        drawn += [f'<circle class="c{j}" cx="{a:.1f}" cy="{b:.1f}" r="3.5"/>' for a, b in points]
    drawn.append(_text((left + right) / 2, bottom + 38, across, "middle", "soft"))
    return _card(title, [one.name for one in series], bottom + 50, drawn)


def _grid(most: float) -> float:
    """Return the distance of grid lines: 1, 2 or 5 times a power of ten, for 3 to 7 of them."""
    power = 10.0 ** floor(log10(most / 3))
    return next(step * power for step in (5, 2, 1) if step * power <= most / 3)


def _card(title: str, names: Sequence[str], height: float, drawn: Sequence[str]) -> str:
    key, x = [], 20.0
    for j, name in enumerate(names):
        key.append(f'<rect class="c{j}" x="{x:.0f}" y="36" width="11" height="11" rx="2"/>')
        key.append(_text(x + 16, 46, name, "start", "soft"))
        x += 34 + 6.6 * len(name)
    frame = f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="8"/>'
    size = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">'
    return "\n".join([head, STYLE, frame, _text(20, 24, title, "start", "title"), *key, *drawn, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'
