"""Render what `conform` found about the cases of a folder as one page: which are out, where first, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files

from llava_ref.html import environment

from ..compare.conform import Conformance
from . import words


@dataclass(frozen=True, slots=True)
class CaseRow:
    """Holds a case: its name, its verdict in words, and a sentence or two for each finding, by its stage."""

    name: str
    report: Conformance
    verdict: words.Verdict
    findings: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Parting:
    """Holds a place where cases part first: its stage ("" for the outcome alone), what explains it, whose it is."""

    stage: str
    explanation: str
    cases: tuple[str, ...]


def render(reports: Mapping[str, Conformance]) -> str:
    """Render the page. `reports`: what was found for each case, at least one, by its name."""
    rows = [_row(name, report) for name, report in reports.items()]
    template = environment(figure=words.figure, share=words.share, worst=partial(max, key=words.size)).from_string(
        (files(__package__) / "cases.html.jinja").read_text("utf-8")
    )
    ours, theirs = words.parties(rows[0].report)
    n_same = sum(row.verdict.same for row in rows)
    return template.render(ours=ours, theirs=theirs, rows=rows, partings=_partings(rows), n_same=n_same)


def _row(name: str, report: Conformance) -> CaseRow:
    firsts = [group[0] for group in words.grouped(report.findings)]
    sentences = tuple((one.stage, f"{words.problem(report, one)} {words.explanation(one)}") for one in firsts)
    return CaseRow(name, report, words.verdict(report), sentences)


def _partings(rows: list[CaseRow]) -> list[Parting]:
    """Group the cases that are not the same by where they part first; the place with most cases comes first."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if not row.verdict.same:
            first = next(iter(row.report.findings), None)
            key = ("", "") if first is None else (first.stage, words.explanation(first))
            found.setdefault(key, []).append(row.name)
    partings = [Parting(stage, why, tuple(names)) for (stage, why), names in found.items()]
    return sorted(partings, key=lambda parting: -len(parting.cases))
