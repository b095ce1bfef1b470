"""Say what `conform` has found: in sentences, in rows of stages, as plain data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..errors import visible
from ..profiles import QUIRKS
from .output import coloured

if TYPE_CHECKING:
    from ..conformance.compare.conform import Conformance, StageResult


def settings(settings: Mapping[str, Any]) -> str:
    return f"llava_ref {settings['backend']} {settings['precision']}, profile {settings['profile']}"


def verdict(report: "Conformance") -> list[str]:
    """Say the result in sentences: the first stage that exceeds its bound, and each finding."""
    what = f"{settings(report.settings)} against {report.reference}"
    if not report.findings:
        lines = [f"{what}: no stage exceeds its bound, {report.n_compared} of {len(report.stages)} compared"]
        if not report.same:
            lines.append("  the outcome exceeds its own: the stages' roundings have added up")
        return lines
    lines = [f"{what}: {report.findings[0].stage} is the first stage that exceeds its bound"]
    for i, finding in enumerate(report.findings, 1):
        more = f" and {finding.n_stages - 1} after it" if finding.n_stages > 1 else ""
        lines.append(f"  {i}. {finding.stage}{more}: {finding.problem}")
        for change in finding.explained:
            names = [part.partition("=")[0] for part in change.split(" --quirk ")]
            lines.append(f"     vanishes with --quirk {change}: {', and '.join(QUIRKS[name].about for name in names)}")
        if not finding.explained:
            lines.append(f"     no known quirk explains it{f'; {finding.likeness}' if finding.likeness else ''}")
    return lines


def _outcome(report: "Conformance") -> list[str]:
    """Say in sentences how logits and tokens differ."""
    from ..conformance.report.words import worst

    o, lines = report.outcome, []
    if o.token_ids[0] != o.token_ids[1]:
        lines.append("token ids differ, so logits cannot be compared position by position")
    elif o.kl is None:
        lines.append("logits: the reference has none to compare")
    else:
        at = worst(o.kl)
        lines.append(
            f"logits: KL {sum(o.kl) / len(o.kl):.2g} nats a position, at most {o.kl[at]:.2g} (position {at}; "
            f"{o.kl_bound:g} allowed), the same likeliest token at {o.top_1:.1%}"
        )
    if o.greedy:
        agreed = len(o.greedy) - len(o.disagreements)
        lines.append(f"greedy tokens, fed the reference's: {agreed} of {len(o.greedy)} agree")
    for d in o.disagreements:
        ours, theirs = (f"{token} ({o.texts[token]})" for token in (d.ours, d.theirs))
        lines.append(f"  token {d.place}: ours {ours}, the reference's {theirs}, ahead by {d.margin:.3g} logits")
    return lines


def print_report(report: "Conformance", *, every: bool) -> None:
    """Print the sentences, then the rows of stages."""
    first, *more = [*verdict(report), *_outcome(report)]
    print(coloured(visible(first), "green" if report.same else "red"))
    for line in more:
        print(visible(line))
    shown = set(range(len(report.stages))) if every else _around(report.stages)
    if not shown:
        print("--all prints the row of every stage")
        return
    width = max(len(stage.name) for stage in report.stages)
    print(f"\n{'stage':{width}}  {'own':>8}  {'whole':>8}  {'bound':>8}")
    left_out = 0
    for i, stage in enumerate(report.stages):
        if i in shown:
            _print_left_out(left_out)
            row = visible(_row(stage, width))
            print(coloured(row, "red") if stage.problem else row)
        left_out = 0 if i in shown else left_out + 1
    _print_left_out(left_out)
    print("own: local error, relative RMS, computed from the reference's inputs; whole: cumulative error, end to end")


def _around(stages: Sequence["StageResult"]) -> set[int]:
    """Return the places of the stages that exceed their bounds, of the stages beside them, and of those alone between
    two of these, as a row takes no more than the words for it."""
    bad = {i for i, stage in enumerate(stages) if stage.problem}
    near = {j for i in bad for j in (i - 1, i, i + 1)}
    near |= {-1, len(stages)} if bad else set()
    return {i for i in range(len(stages)) if i in near or {i - 1, i + 1} <= near}


def _print_left_out(n: int) -> None:
    if n:
        print(f"... {n} more stages, none over its bound (--all prints every row)")


def _row(stage: "StageResult", width: int) -> str:
    own, whole = (f"{d.rel_rms:8.1e}" if d else " " * 8 for d in (stage.own, stage.whole))
    at = f", first at {list(stage.own.first_bad)}" if stage.problem and stage.own and stage.own.first_bad else ""
    remark = (stage.problem or stage.remark or "") + ("" if stage.bad_number else at)
    return f"{stage.name:{width}}  {own}  {whole}  {stage.bound.limit:8.1e}  {remark}".rstrip()


def as_json(report: "Conformance") -> Any:
    """Convert the report to plain data, without the table of stages, which is no result."""
    fields = asdict(report)
    del fields["table"]
    return {"same": report.same, "verdict": verdict(report)} | _finite(fields)


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by None: JSON has no number for them."""
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
