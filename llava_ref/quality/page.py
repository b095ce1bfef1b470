"""Render a quality report as one self-contained HTML page: no script, font, other file or network."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..html import data_uri, environment
from . import words
from .behaviour import Difference, spread
from .cases import QualityCase
from .ranking import Ranked
from .report import QualityReport, same_answer

WIDTH, HEIGHT, LEFT, TOP = 1100, 240, 70, 20
"""Width and height of a plot's inside, and the margins for labels, in units of the drawing."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Holds a label of an axis and its place on it."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Holds a point of a plot, its label, and the text shown when it is pointed at."""

    x: float
    y: float
    tooltip: str
    label: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Holds the marks of a plot, a line of further values, and the axes. y grows downwards."""

    marks: list[Mark]
    line: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]


@dataclass(frozen=True, slots=True)
class Token:
    """Holds one scored position; `strength`, 0 to 1, is how strongly it is shaded."""

    text: str
    tooltip: str
    strength: float
    same: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """Holds a case as the page shows it."""

    case: QualityCase
    images: list[str]
    kl: str
    same: bool
    question: list[Token]
    answer: list[Token]


def render(r: QualityReport) -> str:
    """Render the page. Text from files and models is escaped."""
    made = environment(error=lambda x: "-" if x is None else f"{x:.1e}")
    template = made.get_template("quality.html.jinja")
    products = r.behaviour.products
    return template.render(
        r=r,
        verdict=words.verdict(r),
        headline=words.headline(r),
        tensors=words.worst(r),
        products=products,
        most=max([*products.values(), *(t.rel_rms for t in r.tensors if math.isfinite(t.rel_rms))], default=0.0) or 1.0,
        layers=layers(r) if any(r.behaviour.carried.values()) else None,
        curve=curve(r) if r.raised else None,
        grids=grids(r.ranking),
        shown=[_shown(case, d) for case, d in zip(r.cases, r.behaviour.differences, strict=True)],
        width=WIDTH, height=HEIGHT, left=LEFT, top=TOP,
    )  # fmt: skip


def layers(r: QualityReport) -> Plot:
    """Plot the error that each layer adds as marks and the accumulated error as a line, on a logarithmic axis."""
    added, carried = r.behaviour.added, r.behaviour.carried
    positive = [x for x in (*added.values(), *carried.values()) if x > 0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    step = WIDTH / max(len(added), 1)

    def y(x: float) -> float:
        share = (math.log10(x) - low) / max(high - low, 1) if x > 0 else 0.0
        return round(HEIGHT * (1 - share), 1)

    at = {name: round((i + 0.5) * step, 1) for i, name in enumerate(added)}
    marks = [
        Mark(at[name], y(x), f"{name}: adds {x:.1e}, carries {carried[name]:.1e}", short(name))
        for name, x in added.items()
    ]
    every = math.ceil(len(added) / 40)
    return Plot(
        marks,
        " ".join(f"{at[name]},{y(x)}" for name, x in carried.items()),
        [Tick(mark.x, mark.label) for mark in marks[::every]],
        [Tick(y(10.0**e), f"1e{e}") for e in range(low, high + 1)],
    )


def short(stage: str) -> str:
    """Abbreviate a layer's name: `v3` for a block of the tower, `3` for one of the decoder."""
    match = re.match(r"(vision\.)?blk\.(\d+)", stage)
    names = {"vision.pos_embd": "in", "vision.pre_ln": "ln", "projector.out": "proj", "result_output": "out"}
    return f"{'v' if match[1] else ''}{match[2]}" if match else names.get(stage, stage)


def curve(r: QualityReport) -> Plot:
    """Plot the share of the typical KL that is left against the bytes that raising tensors takes."""
    points = [(0, 1.0, "as it is"), *((s.extra_bytes, 1 - r.share(s), f"the first {s.n} raised") for s in r.raised)]
    widest, highest = max(x for x, _, _ in points) or 1, max(1.0, *(y for _, y, _ in points))
    total = sum(size.n_bytes for size in r.files.values())
    marks = [
        Mark(
            round(x / widest * WIDTH, 1),
            round(HEIGHT * (1 - y / highest), 1),
            f"{label}: {x:,} bytes more (+{x / total:.1%}), {y:.0%} of the typical KL left",
            label,
        )
        for x, y, label in points
    ]
    return Plot(
        marks,
        " ".join(f"{mark.x},{mark.y}" for mark in marks),
        [Tick(round(WIDTH * i / 4, 1), f"+{widest / total * i / 4:.1%}") for i in range(5)],
        [Tick(round(HEIGHT * (1 - i / 4 / highest), 1), f"{i / 4:.0%}") for i in range(int(4 * highest) + 1)],
    )


@dataclass(frozen=True, slots=True)
class Grid:
    """Holds the typical KL per MiB by block (columns) and matrix (rows); None for a matrix that is not ranked.

    `most`: nats per MiB at the end of the scale."""

    name: str
    most: float
    blocks: list[int]
    rows: dict[str, list[tuple[float, str] | None]]


def grids(ranking: Sequence[Ranked]) -> list[Grid]:
    """Make a grid for the tower and one for the decoder if single tensors were ranked.

    Shades are 0 to 1, relative to the largest value in either, and share a scale."""
    halves: dict[str, dict[str, dict[int, Ranked]]] = {}
    for entry in ranking:
        match = re.fullmatch(r"(v\.)?blk\.(\d+)\.(.+)", entry.label)
        if match:
            tower = "vision tower" if match[1] else "text model"
            halves.setdefault(tower, {}).setdefault(match[3].removesuffix(".weight"), {})[int(match[2])] = entry
    most = max((e.per_mib for rows in halves.values() for row in rows.values() for e in row.values()), default=0.0)
    return [_grid(name, rows, most if 0 < most < math.inf else 1.0) for name, rows in sorted(halves.items())]


def _grid(name: str, rows: dict[str, dict[int, Ranked]], most: float) -> Grid:
    blocks = sorted({block for row in rows.values() for block in row})

    def cell(entry: Ranked | None) -> tuple[float, str] | None:
        if entry is None:
            return None
        tooltip = f"{entry.label}: typical KL {entry.kl.typical:.1e}, {entry.per_mib:.1e} per MiB"
        return min(1.0, entry.per_mib / most), tooltip

    cells = {part: [cell(row.get(block)) for block in blocks] for part, row in sorted(rows.items())}
    return Grid(name, most, blocks, cells)


def _shown(case: QualityCase, d: Difference) -> Shown:
    tokens = [
        Token(text, f"KL {kl:.2g} nats", min(1.0, math.sqrt(kl)), bool(same))
        for text, kl, same in zip(case.texts, d.kl.tolist(), d.same_top, strict=True)
    ]
    begin = len(tokens) - int(d.in_answer.sum())
    s = spread([d], True)
    kl = "" if s is None else f"KL in the answer {s.mean:.1e} on average, {s.max:.1e} at most"
    return Shown(
        case, [data_uri(picture.seen) for picture in case.pictures], kl, same_answer(d), tokens[:begin], tokens[begin:]
    )
