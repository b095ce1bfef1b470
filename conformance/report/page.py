"""Render a report as one HTML page that needs nothing else: no script, no font, no other file, no network."""

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from llava_ref import __version__, images
from llava_ref.errors import ImageError
from llava_ref.html import environment

from ..compare.conform import Conformance, StageResult
from ..compare.outcome import Disagreement, EndToEnd
from . import words
from .plot import kl_panels, section, stage_panels

SHOWN = 12
"""Number of findings that are not folded away."""


@dataclass(frozen=True, slots=True)
class PictureFile:
    """Holds a picture of the prompt, as it is in its file."""

    name: str
    size: str
    uri: str


@dataclass(frozen=True, slots=True)
class Setting:
    """Holds one setting of both sides; None if a side does not state it."""

    name: str
    ours: str | None
    theirs: str | None

    @property
    def differs(self) -> bool:
        return self.ours is not None and self.theirs is not None and self.ours != self.theirs


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Holds consecutive token ids, a picture's rows as one, and whether the other side has them too."""

    text: str
    agrees: bool


@dataclass(frozen=True, slots=True)
class StageRow:
    """Holds a stage of the table; `head` is set if a section or a block begins with it."""

    id: str
    stage: StageResult
    head: str
    llama_cpp: str
    transformers: str


def render(report: Conformance, pictures: Sequence[Path]) -> str:
    """Render the page. `pictures`: the prompt's picture files, in order. Raises ImageError for an unreadable one."""
    made = environment(
        figure=words.figure,
        shape=words.shape,
        share=words.share,
        elsewhere=partial(words.elsewhere, report),
        place=_place,
        cosine=_cosine,
    )
    template = made.from_string((files(__package__) / "page.html.jinja").read_text("utf-8"))
    ours, theirs = words.parties(report)
    rows = _rows(report)
    return template.render(
        report=report,
        ours=ours,
        theirs=theirs,
        verdict=words.verdict(report),
        findings=words.grouped(report.findings),
        problem=partial(words.problem, report),
        explanation=words.explanation,
        block=words.block,
        ids_of={row.stage.name: row.id for row in rows},
        stages={stage.name: stage for stage in report.stages},
        shown=SHOWN,
        panels=stage_panels(report),
        kl=kl_panels(report.outcome),
        worst=words.worst(report.outcome.kl) if report.outcome.kl else None,
        tokens=_tokens(report.outcome),
        greedy=_greedy(report.outcome),
        pictures=[_picture(path) for path in pictures],
        prompt=report.prompt.split("<image>"),
        settings=_settings(report),
        rows=rows,
    )


def _place(value: tuple[int, ...] | None) -> str:
    return "–" if value is None else f"[{', '.join(map(str, value))}]"


def _cosine(value: float) -> str:
    return f"{value:.6f}" if math.isfinite(value) else words.figure(value)


def _picture(path: Path) -> PictureFile:
    """Embed a picture's file. Raises ImageError if it cannot be read."""
    decoded = images.load(path)
    try:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise ImageError("report", str(path), error.strerror or str(error)) from None
    size = f"{decoded.width} × {decoded.height} {decoded.format}"
    return PictureFile(path.name, size, f"data:image/{decoded.format.lower()};base64,{data}")


def _settings(report: Conformance) -> list[Setting]:
    ours, theirs = _flat({"llava_ref": __version__} | report.settings), _flat(report.about)
    return [Setting(name, ours.get(name), theirs.get(name)) for name in dict.fromkeys([*ours, *theirs])]


def _flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """Flatten settings: each entry of a mapping, or of one written as JSON, gets a name of its own."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        inner = value if isinstance(value, Mapping) else _json(value)
        if isinstance(inner, Mapping):
            flat |= {f"{name}.{key}": text for key, text in _flat(inner).items()}
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _json(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith("{"):
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _tokens(outcome: EndToEnd) -> tuple[list[TokenRun], list[TokenRun]]:
    """Cut both sides' token ids where they begin to differ and where they agree again."""
    ours, theirs = (_joined(ids) for ids in outcome.token_ids)
    sides: tuple[list[TokenRun], list[TokenRun]] = ([], [])
    for tag, a, b, c, d in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        for side, part in zip(sides, (ours[a:b], theirs[c:d]), strict=True):
            if part:
                side.append(TokenRun(" ".join(part), tag == "equal"))
    return sides


def _joined(ids: Iterable[int]) -> list[str]:
    """Write token ids as words, a picture's positions as one."""
    texts: list[str] = []
    for picture, run in groupby(ids, key=lambda token: token < 0):
        tokens = list(run)
        texts += [f"<image × {len(tokens)}>"] if picture else map(str, tokens)
    return texts


def _greedy(outcome: EndToEnd) -> list[tuple[int, Disagreement | None]]:
    wrong = {d.place: d for d in outcome.disagreements}
    return [(token, wrong.get(i)) for i, token in enumerate(outcome.greedy)]


def _rows(report: Conformance) -> list[StageRow]:
    """Make the rows of the table of stages."""
    rows, before = [], ""
    for i, stage in enumerate(report.stages):
        number = words.block(stage.name)
        head = f"{section(stage.name)}, block {number}" if number else section(stage.name)
        known = words.elsewhere(report, stage.name)
        names = (known.llama_cpp, known.transformers) if known else ("", "")
        rows.append(StageRow(f"s{i}", stage, head if head != before else "", *names))
        before = head
    return rows
