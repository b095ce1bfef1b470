"""Lay out the marks of the report's plots.

The page draws them as inline SVG: they take the page's colours, light and dark, every mark is a link with a text, and
no plotting library is needed. Lengths are units of the drawing, 1180 across; y grows downwards.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from ..compare.conform import Conformance, StageResult
from ..compare.outcome import EndToEnd
from .words import block, figure, grouped

WIDTH, LEFT, RIGHT = 1180, 62, 12
READOUT = 24
"""Height of the line that describes the mark under the pointer."""
LINE = 15
"""Height of a line of labels."""
LEDGE = 24
"""Height of the floor, where zeros stand, and of the shelf, where values without a number stand."""
HEIGHT = 180
"""Height of the logarithmic part."""
LETTER = 6.6
"""Width of a letter of a label."""
STAGES, POSITIONS = 280, 700
"""Largest number of columns in a row."""
SMALLEST = -10
"""The lowest decade shown; smaller values stand on it."""
LABELLED = 5
"""Number of findings that have a label in the plot."""

State = Literal["within", "out", "absent", "unmeasured"]


@dataclass(frozen=True, slots=True)
class Item:
    """Holds one column's values. `out` and `absent` are faults; `absent` and `unmeasured` have no number."""

    text: str
    link: str | None
    value: float | None
    line: float | None
    bound: float | None
    state: State
    section: str
    group: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """Holds one column as drawn: its middle `x`, and the height `y` of its mark."""

    item: Item
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Label:
    """Holds a text: where it begins, and the height of its line."""

    text: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Band:
    """Holds the background of a section."""

    section: str
    x: float
    width: float


@dataclass(slots=True)
class Panel:
    """Holds one row of a plot."""

    top: float
    bottom: float
    height: float
    step: float
    columns: list[Column]
    bands: list[Band]
    labels: list[Label]
    groups: list[Label]
    flags: list[Label]
    ticks: list[Label] = field(default_factory=list)
    line: str = ""
    bound: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """Map values to heights: logarithmic from 10^low to 10^high, zero on a floor below, infinity on a shelf above."""

    low: int
    high: int
    shelf: bool

    @classmethod
    def over(cls, items: Sequence[Item]) -> "Scale":
        """Fit a scale to all values, lines and bounds."""
        values = [value for item in items for value in (item.value, item.line, item.bound) if value is not None]
        logs = [math.log10(value) for value in values if 0 < value < math.inf]
        low = max(SMALLEST, math.floor(min(logs, default=-7)))
        high = max(low + 1, math.ceil(max(logs, default=0)))
        unnumbered = any(item.state in ("absent", "unmeasured") for item in items)
        return cls(low, high, unnumbered or any(not math.isfinite(value) for value in values))

    def y(self, value: float | None, top: float) -> float:
        """Return the height of a value; None and values that are not finite stand on the shelf."""
        if value is None or not math.isfinite(value):
            return top + LEDGE / 2
        start = top + LEDGE * self.shelf
        if value <= 0:
            return start + HEIGHT + LEDGE / 2
        share = (max(math.log10(value), self.low) - self.low) / (self.high - self.low)
        return start + HEIGHT * (1 - share)

    def ticks(self, top: float) -> list[Label]:
        stride = math.ceil((self.high - self.low) / 8)
        powers = range(self.high, self.low - 1, -stride)
        marks = [Label(_power(power), 0, self.y(10.0**power, top)) for power in powers]
        shelf = [Label("∞, none", 0, self.y(None, top))] if self.shelf else []
        return [*shelf, *marks, Label("0", 0, self.y(0.0, top))]


def stage_panels(report: Conformance) -> list[Panel]:
    """Plot every stage in order: its local error, its cumulative error, and its bound."""
    numbers = {group[0].stage: i for i, group in enumerate(grouped(report.findings)[:LABELLED], 1)}
    return _panels([_stage(i, stage, numbers.get(stage.name)) for i, stage in enumerate(report.stages)], STAGES)


def kl_panels(outcome: EndToEnd) -> list[Panel]:
    """Plot KL at every position. Return no panels if it could not be computed."""
    if not outcome.kl:
        return []
    n = len(outcome.kl)
    stride = next((s for s in (5, 10, 20, 50, 100) if n <= 25 * s), 200)
    items = []
    for i, (value, token) in enumerate(zip(outcome.kl, outcome.token_ids[1], strict=True)):
        section, what = ("picture", "picture") if token < 0 else ("text", f"token {token}")
        within = value <= outcome.kl_bound
        text = f"position {i}, {what}: KL {figure(value)} nats, bound {figure(outcome.kl_bound)}"
        group = str(i // stride * stride)
        items.append(Item(text, None, value, None, outcome.kl_bound, "within" if within else "out", section, group))
    return _panels(items, POSITIONS)


def section(name: str) -> str:
    """Return the section of a stage; for a further picture with its number."""
    bare, _, run = name.partition("#")
    known = {"image.": "picture", "vision.pixels": "picture", "vision.": "tower", "projector.": "projector"}
    title = next((known[start] for start in known if bare.startswith(start)), "decoder")
    return f"{title} #{run}" if run else title


def _stage(index: int, stage: StageResult, number: int | None) -> Item:
    """Make a stage's column; `number`: that of its finding, if it has a label."""
    measure = stage.bound.measure
    own = getattr(stage.own, measure) if stage.own else None
    whole = stage.whole.rel_rms if stage.whole else None
    state: State = "out" if stage.problem else "within"
    if stage.own is None:
        state = "absent" if stage.problem else "unmeasured"
    if stage.name == "token_ids" and not stage.problem:
        state, own = "within", 0.0
    largest = " largest difference" if measure == "max_abs" else ""
    errors = f"local{largest} {figure(own)}, bound {figure(stage.bound.limit)}, cumulative {figure(whole)}"
    text = f"{stage.name}: {errors if stage.own else stage.problem or 'on one side only'}"
    if stage.name == "token_ids":
        text = f"token_ids: {stage.problem or 'equal'}"
    label = f"{number} {stage.name}" if number else ""
    bound = stage.bound.limit if stage.own else None
    return Item(text, f"#s{index}", own, whole, bound, state, section(stage.name), block(stage.name), label)


def _panels(items: Sequence[Item], most: int) -> list[Panel]:
    scale = Scale.over(items)
    return [_panel(row, scale) for row in _rows(items, most)]


def _rows(items: Sequence[Item], most: int) -> Iterable[list[Item]]:
    """Split items into rows of about one length; each begins with a group."""
    n_rows = math.ceil(len(items) / most)
    row: list[Item] = []
    done = n_made = 0
    for _, members in groupby(items, key=lambda item: (item.section, item.group)):
        unit = list(members)
        if row and done + len(unit) / 2 > len(items) * (n_made + 1) / n_rows:
            yield row
            row, n_made = [], n_made + 1
        row += unit
        done += len(unit)
    if row:
        yield row


def _panel(items: Sequence[Item], scale: Scale) -> Panel:
    step = (WIDTH - LEFT - RIGHT) / len(items)
    bands = [Band(name, LEFT + at * step, n * step) for name, at, n in _runs([item.section for item in items])]
    groups = [Label(name, LEFT + at * step, 0) for name, at, _ in _runs([item.group for item in items]) if name]
    middles = [(band.section, band.x + band.width / 2 - len(band.section) * LETTER / 2) for band in bands]
    labels, below = _stacked(middles, READOUT)
    middle = [LEFT + (i + 0.5) * step for i in range(len(items))]
    flags, top = _stacked([(item.label, x + 5) for item, x in zip(items, middle, strict=True) if item.label], below)
    bottom = scale.y(0.0, top) + LEDGE / 2
    columns = [Column(item, x, scale.y(item.value, top)) for item, x in zip(items, middle, strict=True)]
    panel = Panel(top, bottom, bottom + LINE + 4, step, columns, bands, labels, _spread(groups, bottom), flags)
    panel.ticks = scale.ticks(top)
    panel.line, panel.bound = _line(columns, scale, top), _bound(columns, scale, top, step)
    return panel


def _runs(names: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return (name, first index, count) of each run of equal names."""
    runs, at = [], 0
    for name, run in groupby(names):
        n = len(list(run))
        runs.append((name, at, n))
        at += n
    return runs


def _stacked(texts: Sequence[tuple[str, float]], top: float) -> tuple[list[Label], float]:
    """Place labels on as many lines as they need; return them and the height below them."""
    ends: list[float] = []
    labels = []
    for text, wanted in texts:
        width = len(text) * LETTER
        x = max(LEFT, min(wanted, WIDTH - width))
        line = next((i for i, end in enumerate(ends) if end <= x), len(ends))
        ends[line : line + 1] = [x + width + LETTER]
        labels.append(Label(text, x, top + LINE * (line + 0.75)))
    return labels, top + LINE * len(ends)


def _spread(groups: Sequence[Label], bottom: float) -> list[Label]:
    """Place the labels of groups; those without room get an empty text."""
    labels, end = [], 0.0
    for group in groups:
        free = group.x >= end
        end = group.x + (len(group.text) + 1.5) * LETTER if free else end
        labels.append(Label(group.text if free else "", group.x, bottom + LINE))
    return labels


def _line(columns: Sequence[Column], scale: Scale, top: float) -> str:
    """Return the path through the cumulative errors, broken where there is none."""
    path, pen = [], "M"
    for column in columns:
        if column.item.line is None:
            pen = "M"
        else:
            path.append(f"{pen}{column.x:.1f} {scale.y(column.item.line, top):.1f}")
            pen = "L"
    return "".join(path)


def _bound(columns: Sequence[Column], scale: Scale, top: float, step: float) -> str:
    """Return a path with a level line for each run of equal bounds."""
    path: list[str] = []
    before: float | None = None
    for column in columns:
        bound = column.item.bound
        if bound is not None:
            start = "" if bound == before else f"M{column.x - step / 2:.1f} {scale.y(bound, top):.1f}"
            path.append(f"{start}H{column.x + step / 2:.1f}")
        before = bound
    return "".join(path)


def _power(exponent: int) -> str:
    if -3 < exponent < 4:
        return f"{10.0**exponent:g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
