"""Find the first stage in which this project and a reference differ on one pair, prompt and pictures, and why.

The reference has run already (`conformance.engines.reference.Run`). This project runs twice: once with every stage
computed from the reference's inputs, to find the fault, and once end to end, to measure the accumulated error. Then one
known quirk after another is switched; a quirk that brings a stage back within its bound is the explanation (`explain`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from typing import Any

import numpy as np

from llava_ref.model import Llava
from llava_ref.models.order import place
from llava_ref.models.stages import Stage, of_picture
from llava_ref.tracing.distance import Distance, rounding
from llava_ref.tracing.tracefile import hashes

from ..engines.reference import Case, Run
from .bounds import ARITHMETICS, Bound, Tolerances, arithmetic, bound, recorded, widened
from .comparing import Measured, kept, run_against, shared_ids
from .explain import explain
from .likeness import likeness
from .outcome import EndToEnd, end_to_end

LIKENESSES = 3
"""Findings that are looked at once more, at most."""
MOST_KEPT = 1 << 25
"""Numbers of arrays kept for one finding, at most."""
Loader = Callable[[Mapping[str, str]], Llava]
"""Loads this project's model with these quirks changed."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """Holds one stage's comparison. `problem` is None if the stage is within its bound."""

    name: str
    kind: str
    weight_type: str | None
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]  # ours, the reference's
    own: Distance | None  # local error: computed from the reference's inputs
    whole: Distance | None  # cumulative error: computed end to end
    bound: Bound
    problem: str | None
    remark: str | None = None
    """A note without blame: how the stage was recorded, that only one side has it, or NaN on both sides."""

    @property
    def bad_number(self) -> bool:
        """Tell whether a NaN or an infinity, which `problem` then names, is what is wrong."""
        return self.problem is not None and self.problem.startswith(("NaN", "infinity"))

    @property
    def compared(self) -> bool:
        """Tell whether both sides have the stage."""
        return None not in self.shapes


@dataclass(frozen=True, slots=True)
class Deviation:
    """Holds neighbouring stages that exceed their bounds for one reason."""

    stage: str
    n_stages: int
    problem: str
    explained: tuple[str, ...]
    """Quirks as NAME=VALUE, each of which alone brings the stage within its bound, or `explain.TOGETHER` others."""
    likeness: str | None = None
    """How the reference's array may have come from this run's, where no quirk explains the first stage."""


@dataclass(frozen=True, slots=True)
class Conformance:
    """Holds everything that `conform` found."""

    settings: dict[str, Any]
    reference: str
    about: Mapping[str, str]
    prompt: str
    stages: tuple[StageResult, ...]
    findings: tuple[Deviation, ...]
    outcome: EndToEnd
    table: tuple[Stage, ...] = ()
    """The model's own rows, which give the names of its stages in other engines."""

    @property
    def same(self) -> bool:
        """Tell whether every stage and the outcome are within their bounds."""
        return not self.findings and self.outcome.within

    @property
    def n_compared(self) -> int:
        """Return the number of stages that both sides have."""
        return sum(stage.compared for stage in self.stages)


def conform(load: Loader, case: Case, run: Run) -> Conformance:
    """Compare a reference's run with this project. Raises LlavaError if this project's side fails."""
    model, files = load({}), (case.text, case.mmproj, *case.images)
    compare = partial(_compare, case=case, run=run)
    compared = compare(model)
    bad = [stage.name for stage in compared.stages if stage.problem]

    @cache
    def problems(changed: frozenset[tuple[str, str]]) -> set[str]:
        return {stage.name for stage in compare(load(dict(changed)), whole=False).stages if stage.problem}

    explained = explain(lambda changed: problems(frozenset(changed.items())), bad, model.quirks)
    return Conformance(
        settings=model.settings | {"files": hashes(path for path in files if path is not None)},
        reference=run.name,
        about=run.about,
        prompt=case.prompt,
        stages=compared.stages,
        findings=_alike(_findings(compared.stages, explained), model, case, run, compared),
        outcome=end_to_end(model, case, run, compared.ids, compared.logits),
        table=model.stage_table(),
    )


def _alike(
    findings: Sequence[Deviation], model: Llava, case: Case, run: Run, compared: "_Compared"
) -> tuple[Deviation, ...]:
    """Add to the first findings without an explanation how the reference's array may have come from this run's."""
    stages = {stage.name: stage for stage in compared.stages}
    first = [f for f in findings if not f.explained and stages[f.stage].compared and f.stage in run.stages][:LIKENESSES]
    if not first:
        return tuple(findings)
    asked = {finding.stage: _like_shapes(stages, finding.stage) for finding in first}
    names = {name for near in asked.values() for name in near}
    ours = kept(model, case.images, shared_ids(compared.ids, run.token_ids), run.stages, names)

    def said(name: str) -> str | None:
        near = {other: ours[other] for other in asked.get(name, ()) if other in ours}
        return likeness(name, near, run.stages, stages[name].bound.limit) if name in near else None

    return tuple(replace(finding, likeness=said(finding.stage)) for finding in findings)


def _like_shapes(stages: Mapping[str, StageResult], name: str) -> list[str]:
    """Return a stage and those of its shape, the nearest ones first, as many as memory may hold."""
    names, shape = list(stages), stages[name].shapes[0]
    most = max(1, MOST_KEPT // max(1, prod(shape or (1,))))
    alike = [other for other in names if other == name or stages[other].shapes[0] == stages[name].shapes[1]]
    return sorted(alike, key=lambda other: abs(names.index(other) - names.index(name)))[:most]


@dataclass(frozen=True, slots=True)
class _Compared:
    """Holds the stages of both runs, and the token ids and logits of the last run."""

    stages: tuple[StageResult, ...]
    ids: tuple[int, ...]
    logits: np.ndarray  # (T, V)


def _compare(model: Llava, case: Case, run: Run, *, whole: bool = True) -> _Compared:
    """Run the model from the reference's inputs, and end to end if `whole`; judge every stage by its bound."""
    ids = tuple(model.raw_request(case.rendered(model.quirks.image_order), case.images).token_ids)
    stages = {stage.name: stage for stage in model.stage_table()}
    types = model.types()
    tolerances = _tolerances(model, case, run)
    bounds = {name: bound(stage, types.get(name), tolerances) for name, stage in stages.items()}
    if run.chosen:
        computed = {name: limit for name, limit in bounds.items() if case.images or not of_picture(name)}
        bounds |= widened(computed, run.stages)
    other, kinds = Bound("rel_rms", 0.0), {name: stage.kind for name, stage in stages.items()}
    moved = {name: rounding(run.stages[name], kind) for name, kind in run.rounded.items()}
    most = max((relative for relative, _ in moved.values()), default=0.0)

    def bound_of(name: str) -> Bound:
        bare = name.partition("#")[0]
        return recorded(bounds.get(bare, other), kinds.get(bare, "float"), moved.get(name), most)

    theirs = shared_ids(ids, run.token_ids)
    local, logits = run_against(model, case.images, theirs, run.stages, bound_of, teacher_forced=True)
    cumulative: Mapping[str, Measured] = {}
    if whole:
        cumulative, logits = run_against(model, case.images, ids, run.stages, bound_of, teacher_forced=False)
    results = [_token_ids(ids, run.token_ids)]
    for name in dict.fromkeys(name for name in [*local, *run.stages] if name != "token_ids"):
        stage = stages.get(name.partition("#")[0])
        results.append(_result(name, stage, types, local.get(name), cumulative.get(name), run, bound_of(name)))
    return _Compared(tuple(sorted(results, key=lambda result: place(result.name))), ids, logits)


def _tolerances(model: Llava, case: Case, run: Run) -> Tolerances:
    """Return what the tolerances depend on: how both sides compute, and the prompt."""
    ours = arithmetic(model.settings)
    theirs = ARITHMETICS.get(run.about.get("arithmetic", ""), "float32")
    flash = run.about.get("attention") == "float16" or (ours == "ggml" and model.quirks.flash_attention == "on")
    jpeg = any(path.suffix.lower() in (".jpg", ".jpeg") for path in case.images)
    return Tolerances(ours, theirs, flash, len(run.token_ids), jpeg)


def _result(
    name: str, stage: Stage | None, types: Mapping[str, str], local: Measured | None, cumulative: Measured | None,
    run: Run, limit: Bound,
) -> StageResult:  # fmt: skip
    """Judge one stage by its local error; `local` and `cumulative` are None if this project has no such stage."""
    reference = run.stages[name].shape if name in run.stages else None
    shapes = (None if local is None else local.shape, reference)
    distance = local.distance if local else None
    problem, remark = None, None
    if local is None and run.chosen:
        remark = "only in the reference"
    elif local is None:
        problem = "this run has no such stage"
    elif reference is None:
        may_lack = run.chosen or stage is None or name.startswith("image.seen")
        problem, remark = (None, "not in the reference") if may_lack else ("the reference has no such stage", None)
    elif distance is None:
        problem = "shapes differ"
    elif not getattr(distance, limit.measure) <= limit.limit:
        over = f"{limit.measure.replace('_', ' ')} {getattr(distance, limit.measure):.2g} over {limit.limit:.2g}"
        problem = local.bad or over
    else:
        remark = local.bad or (f"recorded as {run.rounded[name]}" if name in run.rounded else None)
    kind = stage.kind if stage else "float"
    weight_type = types.get(name.partition("#")[0])
    total = cumulative.distance if cumulative else None
    return StageResult(name, kind, weight_type, shapes, distance, total, limit, problem, remark)


def _token_ids(ours: Sequence[int], theirs: Sequence[int]) -> StageResult:
    """Judge the prompt's token ids, which must be equal."""
    problem = None
    if tuple(ours) != tuple(theirs):
        differ = (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        at = next(differ, min(len(ours), len(theirs)))
        a, b = (ids[at] if at < len(ids) else "nothing" for ids in (ours, theirs))
        problem = f"{a} at position {at}, the reference has {b}"
    shapes = ((len(ours),), (len(theirs),))
    return StageResult("token_ids", "exact", None, shapes, None, None, Bound("max_abs", 0.0), problem)


def _findings(stages: Sequence[StageResult], explained: Mapping[str, tuple[str, ...]]) -> tuple[Deviation, ...]:
    """Join neighbouring stages that have one explanation, or that one side lacks for one reason."""
    groups: list[list[StageResult]] = []
    for before, result in zip((None, *stages), stages, strict=False):
        if not result.problem:
            continue
        same = before is not None and before.problem and groups and explained[before.name] == explained[result.name]
        if same and (explained[result.name] or not result.compared and result.problem == groups[-1][0].problem):
            groups[-1].append(result)
        else:
            groups.append([result])
    return tuple(
        Deviation(group[0].name, len(group), group[0].problem or "", explained[group[0].name]) for group in groups
    )
