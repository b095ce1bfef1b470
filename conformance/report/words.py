"""What a report says in words: the verdict, the outcome, each finding, each number."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from llava_ref.models import stages
from llava_ref.models.stages import Stage

from ..compare.conform import Finding, Report, StageResult

EXPLANATIONS = {  # NAME=VALUE -> what it says about the reference
    "class_token=first": "the class token stands first in the reference",
    "class_token=last": "the class token stands last in the reference",
    "vit_layers=stored": "the reference runs every stored block of the tower",
    "vit_layers=one-less": "the reference runs one block of the tower less than the file says",
    "post_ln=skip": "the reference leaves out the norm behind the tower",
    "post_ln=apply": "the reference applies the norm behind the tower",
    "gelu=erf": "the reference's GELU is the exact one, by the error function",
    "gelu=tanh": "the reference's GELU is the approximation by tanh",
    "square=pad-resize": "the reference pads a picture to a square and then resizes it",
    "square=crop": "the reference resizes a picture's shortest side and cuts out the centre",
    "square=resize-pad": "the reference resizes a picture to fit and then pads it to a square",
    "fit=stretch": "the reference stretches a picture to the shape that the tower takes",
    "fit=letterbox": "the reference keeps a picture's aspect and centres it on black",
    "exif=ignore": "the reference ignores the picture's EXIF orientation",
    "exif=apply": "the reference turns the picture as its EXIF orientation says",
    "alpha=convert": "the reference converts transparent pictures as Pillow does",
    "alpha=drop": "the reference drops the alpha channel",
    "text_pieces=separate": "the reference tokenises each piece of text around pictures by itself",
    "text_pieces=whole": "the reference tokenises the whole prompt at once",
    "text_pieces=separate-prefixed": "the reference tokenises each piece of text around pictures by itself, and puts a "
    "space before text that follows a control token",
    "image_order=first": "the reference puts a message's pictures before its texts",
    "image_order=template": "the reference leaves the order of pictures and texts to the chat template",
    "image_order=given": "the reference keeps pictures and texts in the order given",
    "image_newlines=double": "the reference puts two line feeds before and after a picture's markers",
    "image_newlines=none": "the reference puts no line feeds around a picture's markers",
    "window=honour": "the reference applies the sliding window that the file asks for",
    "window=ignore": "the reference ignores the sliding window that the file asks for",
    "attention_scale=honour": "the reference scales attention by what the file says",
    "attention_scale=ignore": "the reference scales attention by the size of a head, whatever the file says",
    "yarn_keys=honour": "the reference takes YaRN's ramp and length from the file",
    "yarn_keys=ignore": "the reference has YaRN's ramp and length at their defaults, whatever the file says",
    "end_token=leave": "the reference puts no EOS behind a prompt",
    "end_token=append": "the reference puts EOS behind a prompt, as the vocabulary asks",
    "kv_cache=f32": "the reference keeps keys and values in float32",
    "kv_cache=f16": "the reference keeps keys and values in float16",
    "flash_attention=off": "the reference computes attention step by step",
    "flash_attention=on": "the reference computes attention in ggml's fused kind",
}
MEASURES = {"rel_rms": "Relative RMS", "max_abs": "Largest difference"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The page's first lines."""

    same: bool
    headline: str
    why: str
    outcome: str


def verdict(report: Report) -> Verdict:
    """One sentence, why, and what it comes to."""
    if report.same:
        n, absent = report.n_compared, len(report.stages) - report.n_compared
        why = f"All {n} stages that both have are within their bounds"
        return Verdict(
            True, "The same", f"{why}; {absent} are on one side only." if absent else f"{why}.", outcome(report)
        )
    if not report.findings:
        why = "What is left of each stage by itself is within its bound; what they come to together is not."
        return Verdict(False, "Not the same: no stage is out by itself, but the outcome is", why, outcome(report))
    first = report.findings[0]
    others = len(grouped(report.findings)) - 1
    more = [f"{others} more {'finding' if others == 1 else 'findings'} below."] * (others > 0)
    why = " ".join([problem(report, first), explanation(first), *more])
    return Verdict(False, f"Not the same: {_first(report, first)}", why, outcome(report))


def _first(report: Report, finding: Finding) -> str:
    if finding.stage == "token_ids":
        return "token_ids differ first"
    ours, theirs = stage_of(report, finding).shapes
    if ours is None:
        return f"{finding.stage} is in the reference only"
    if theirs is None:
        return f"{finding.stage} is missing from the reference"
    return f"{finding.stage} differs first" if ours == theirs else f"{finding.stage} has another shape"


def problem(report: Report, finding: Finding) -> str:
    """What is wrong with a finding's first stage, as a sentence."""
    stage = stage_of(report, finding)
    if stage.own is not None and not stage.bad_number:
        found = figure(getattr(stage.own, stage.bound.measure))
        return f"{MEASURES[stage.bound.measure]} {found}, allowed {figure(stage.bound.limit)}."
    ours, theirs = stage.shapes
    if ours is not None and theirs is not None and ours != theirs and finding.stage != "token_ids":
        return f"Shape {shape(ours)} here, {shape(theirs)} in the reference."
    return finding.problem[:1].upper() + finding.problem[1:] + "."


def explanation(finding: Finding) -> str:
    """Which change makes it vanish, and what that means."""
    if not finding.explained:
        return "No known quirk by itself makes it vanish."
    if len(finding.explained) == 1:
        change = finding.explained[0]
        return f"It vanishes with {change}: {EXPLANATIONS.get(change, 'so it is in the reference')}."
    return f"It vanishes with any one of {', '.join(finding.explained)}."


def outcome(report: Report) -> str:
    """Logits and tokens, in sentences."""
    o = report.outcome
    if o.token_ids[0] != o.token_ids[1]:
        said = ["The token ids differ, so logits cannot be compared position by position."]
    elif o.kl is None:
        said = ["There are no logits to compare."]
    elif not o.kl:
        said = []
    else:
        at = worst(o.kl)
        said = [f"Next-token KL is at most {figure(o.kl[at])} nats (position {at}; {figure(o.kl_bound)} allowed)"]
        said[0] += "." if o.top_1 is None else f", the likeliest token is the same at {share(o.top_1)} of positions."
    if o.greedy:
        n, wrong = len(o.greedy), len(o.disagreements)
        said.append(f"Of {n} greedy tokens {n - wrong} agree" if wrong else f"All {n} greedy tokens agree.")
    if o.disagreements:
        margin = figure(max((d.margin for d in o.disagreements), key=_size))
        said[-1] += f"; this run's own choice leads by up to {margin} logits ({figure(o.margin_bound)} allowed)."
    return " ".join(said)


def parties(report: Report) -> tuple[str, str]:
    """What is compared: this run and the reference."""
    s = report.settings
    named = [str(s[key]) for key in ("backend", "precision", "profile") if key in s]
    return " ".join(["llava_ref", *named]), report.reference


def grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings without an explanation at the same place of several blocks as one group; others by themselves."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        number = "" if finding.explained else block(finding.stage)
        key = finding.stage.replace(f"blk.{number}.", "blk.*.") if number else finding.stage
        groups.setdefault((key, *finding.explained), []).append(finding)
    return list(groups.values())


def block(name: str) -> str:
    """The number of a stage's block, or nothing."""
    bare = name.partition("#")[0].removeprefix("vision.")
    return bare.split(".")[1] if bare.startswith("blk.") else ""


def stage_of(report: Report, finding: Finding) -> StageResult:
    return next(stage for stage in report.stages if stage.name == finding.stage)


def elsewhere(name: str) -> Stage | None:
    """The row of the table of stages that a name stands for: what other engines call it."""
    bare = name.partition("#")[0]
    block = re.fullmatch(r"((?:vision\.)?blk)\.(\d+)\.(\w+)", bare)
    if block is None:
        outside = (*stages.IMAGE, *stages.TOWER_IN, *stages.TOWER_OUT, *stages.TEXT_IN, *stages.TEXT_OUT)
        return next((stage for stage in outside if stage.name == bare), None)
    rows = stages.TOWER_BLOCK if block[1] == "vision.blk" else stages.TEXT_BLOCK
    found = next((stage for stage in rows if stage.name == block[3]), None)
    if found is None:
        return None
    return replace(
        found,
        weight=found.weight and found.weight.replace("{i}", block[2]),
        llama_cpp=found.llama_cpp.replace("{i}", block[2]),
        transformers=found.transformers.replace("{i}", block[2]),
    )


def worst(values: Sequence[float]) -> int:
    """Where the largest stands; NaN is larger than any."""
    return max(range(len(values)), key=lambda i: _size(values[i]))


def _size(value: float) -> float:
    return math.inf if math.isnan(value) else value


def share(value: float) -> str:
    """A part of one in per cent; all of it only where it is all."""
    return "100 %" if value == 1 else f"{min(value * 100, 99.9):.1f} %"


def shape(value: tuple[int, ...] | None) -> str:
    return "none" if value is None else " × ".join(map(str, value)) or "scalar"


def figure(value: Any) -> str:
    """Two digits: 0.55, 2e-6, 0, ∞; a dash for None."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return re.sub(r"e([+-])0*(\d)", r"e\1\2", f"{float(f'{value:.2g}'):g}").replace("e+", "e")
