"""Put a report into words: the verdict, the outcome, each finding, each number."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava_ref.models.stages import Stage
from llava_ref.profiles import QUIRKS

from ..compare.conform import Conformance, Deviation, StageResult
from ..compare.explain import TOGETHER

MEASURES = {"rel_rms": "Relative RMS", "max_abs": "Largest difference"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Holds the page's first lines."""

    same: bool
    headline: str
    why: str
    outcome: str


def verdict(report: Conformance) -> Verdict:
    """Tell whether the two are the same, why, and what differs at the end."""
    if report.same:
        n, absent = report.n_compared, len(report.stages) - report.n_compared
        why = f"All {n} stages that both have are within their bounds"
        return Verdict(
            True, "The same", f"{why}; {absent} are on one side only." if absent else f"{why}.", outcome(report)
        )
    if not report.findings:
        why = "The local error of each stage is within its bound; the cumulative error is not."
        return Verdict(False, "Not the same: only the cumulative error exceeds its bound", why, outcome(report))
    first = report.findings[0]
    others = len(grouped(report.findings)) - 1
    more = [f"{others} more {'finding' if others == 1 else 'findings'} below."] * (others > 0)
    why = " ".join([problem(report, first), explanation(first), *more])
    return Verdict(False, f"Not the same: {_first(report, first)}", why, outcome(report))


def _first(report: Conformance, finding: Deviation) -> str:
    if finding.stage == "token_ids":
        return "token_ids differ first"
    ours, theirs = stage_of(report, finding).shapes
    if ours is None:
        return f"{finding.stage} is in the reference only"
    if theirs is None:
        return f"{finding.stage} is missing from the reference"
    return f"{finding.stage} differs first" if ours == theirs else f"{finding.stage} has another shape"


def problem(report: Conformance, finding: Deviation) -> str:
    """Say in a sentence what is wrong with a finding's first stage."""
    stage = stage_of(report, finding)
    if stage.own is not None and not stage.bad_number:
        error = figure(getattr(stage.own, stage.bound.measure))
        return f"{MEASURES[stage.bound.measure]} {error}, allowed {figure(stage.bound.limit)}."
    ours, theirs = stage.shapes
    if ours is not None and theirs is not None and ours != theirs and finding.stage != "token_ids":
        return f"Shape {shape(ours)} here, {shape(theirs)} in the reference."
    return finding.problem[:1].upper() + finding.problem[1:] + "."


def explanation(finding: Deviation) -> str:
    """Say which quirk makes a finding vanish, and what that means for the reference."""
    if not finding.explained:
        said = finding.likeness
        return "No known quirks make it vanish." + (f" {said[:1].upper()}{said[1:]}." if said else "")
    if len(finding.explained) == 1:
        changes = [change.split("=") for change in finding.explained[0].split(TOGETHER)]
        said = ", and ".join(QUIRKS[name].values[value] for name, value in changes)
        return f"It vanishes with {' and '.join(map('='.join, changes))}: the reference {said}."
    return f"It vanishes with any one of {', '.join(finding.explained)}."


def outcome(report: Conformance) -> str:
    """Say in sentences how logits and tokens differ."""
    o = report.outcome
    if o.token_ids[0] != o.token_ids[1]:
        sentences = ["The token ids differ, so logits cannot be compared position by position."]
    elif o.kl is None:
        sentences = ["There are no logits to compare."]
    elif not o.kl:
        sentences = []
    else:
        at = worst(o.kl)
        sentences = [f"Next-token KL is at most {figure(o.kl[at])} nats (position {at}; {figure(o.kl_bound)} allowed)"]
        sentences[0] += (
            "." if o.top_1 is None else f", the likeliest token is the same at {share(o.top_1)} of positions."
        )
    if o.greedy:
        n, wrong = len(o.greedy), len(o.disagreements)
        sentences.append(f"{n - wrong} of {n} greedy tokens agree" if wrong else f"All {n} greedy tokens agree.")
    if o.disagreements:
        margin = figure(max((d.margin for d in o.disagreements), key=size))
        sentences[-1] += f"; this run's own choice leads by up to {margin} logits ({figure(o.margin_bound)} allowed)."
    return " ".join(sentences)


def parties(report: Conformance) -> tuple[str, str]:
    """Name the two that are compared: this run and the reference."""
    s = report.settings
    named = [str(s[key]) for key in ("backend", "precision", "profile") if key in s]
    return " ".join(["llava_ref", *named]), report.reference


def grouped(findings: Sequence[Deviation]) -> list[list[Deviation]]:
    """Group findings without an explanation that stand at the same place of several blocks; leave others alone."""
    groups: dict[tuple[str, ...], list[Deviation]] = {}
    for finding in findings:
        number = "" if finding.explained else block(finding.stage)
        key = finding.stage.replace(f"blk.{number}.", "blk.*.") if number else finding.stage
        groups.setdefault((key, *finding.explained), []).append(finding)
    return list(groups.values())


def block(name: str) -> str:
    """Return the number of a stage's block; "" outside of blocks."""
    bare = name.partition("#")[0].removeprefix("vision.")
    return bare.split(".")[1] if bare.startswith("blk.") else ""


def stage_of(report: Conformance, finding: Deviation) -> StageResult:
    """Return a finding's first stage."""
    return next(stage for stage in report.stages if stage.name == finding.stage)


def elsewhere(report: Conformance, name: str) -> Stage | None:
    """Return the model's own row of a stage, which gives its names in other engines; None if the model lacks it."""
    bare = name.partition("#")[0]
    return next((row for row in report.table if row.name == bare), None)


def worst(values: Sequence[float]) -> int:
    """Return the index of the largest value; NaN counts as larger than any."""
    return max(range(len(values)), key=lambda i: size(values[i]))


def size(value: float) -> float:
    """Return what to order a number by: NaN counts as larger than any."""
    return math.inf if math.isnan(value) else value


def share(value: float) -> str:
    """Write a share of one in per cent; "100 %" for exactly one only."""
    return "100 %" if value == 1 else f"{min(value * 100, 99.9):.1f} %"


def shape(value: tuple[int, ...] | None) -> str:
    """Write a shape as 2 × 3; "none" for None."""
    return "none" if value is None else " × ".join(map(str, value)) or "scalar"


def figure(value: Any) -> str:
    """Write a number with two digits: 0.55, 2e-6, 0, ∞; a dash for None."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return re.sub(r"e([+-])0*(\d)", r"e\1\2", f"{float(f'{value:.2g}'):g}").replace("e+", "e")
