"""Find the tensors that deserve more bits: quantise each alone in the reference, then raise the worst together."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .behaviour import PairOutput, Spread, difference, logits, run, spread
from .cases import QualityCase
from .comparison import Comparison, Progress

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Ranked:
    """Holds what a tensor, or the tensors of a layer, cost when quantised."""

    label: str
    names: tuple[str, ...]
    kl: Spread
    """The KL of the reference with these tensors alone in the quantised pair's types."""
    extra_bytes: int
    """Bytes that the reference's types take in addition."""

    @property
    def per_mib(self) -> float:
        """Return the typical KL per MiB that raising them takes; infinity if it takes none."""
        if self.extra_bytes > 0:
            return self.kl.typical / self.extra_bytes * MIB
        return math.inf if self.kl.typical else 0.0


@dataclass(frozen=True, slots=True)
class RaisedTensors:
    """Holds the result of raising the first `n` entries of a ranking to the reference's types."""

    n: int
    extra_bytes: int
    kl: Spread


def groups(names: Sequence[str], by_layer: bool) -> dict[str, tuple[str, ...]]:
    """Group tensors by label: each by itself, or by layer those of a block, or of the projector, together."""
    members: dict[str, list[str]] = {}
    for name in names:
        match = re.match(r"(v\.)?blk\.\d+|mm", name)
        members.setdefault(match[0] if by_layer and match else name, []).append(name)
    return {label: tuple(names) for label, names in members.items()}


def rank(
    c: Comparison,
    cases: Sequence[QualityCase],
    wanted: Sequence[PairOutput],
    parts: Mapping[str, tuple[str, ...]],
    progress: Progress,
) -> list[Ranked]:
    """Rank groups of tensors, those that cost most KL per byte first. Each takes one pass through every case."""
    ours, theirs = c.quantised.tensors(), c.reference_pair.tensors()
    ranked = []
    for done, (label, names) in enumerate(parts.items(), 1):
        kl = _alone(c, cases, wanted, names)
        extra = sum(len(theirs[name].data) - len(ours[name].data) for name in names)
        ranked.append(Ranked(label, names, kl, extra))
        progress(f"{done} of {len(parts)} quantised alone: {label}")
    return sorted(ranked, key=lambda entry: -entry.per_mib)


def _alone(c: Comparison, cases: Sequence[QualityCase], wanted: Sequence[PairOutput], names: Sequence[str]) -> Spread:
    """Measure the reference with `names` alone quantised, in precision `exact`; a decoder's tensors need no tower
    run."""
    ours = c.quantised.tensors()
    pair = c.reference_pair.with_tensors({name: ours[name] for name in names})
    if c.quantised.text is not None and names[0] in c.quantised.text.tensors:
        text = c.text(pair, "exact") or c.reference.text
        got = [PairOutput(want.rows, logits(text, case, want.rows)) for case, want in zip(cases, wanted, strict=True)]
    else:
        text, tower = c.reference.text, c.tower(pair, "exact") or c.reference.tower
        got = [run(text, tower, case) for case in cases]
    return _spread(cases, got, wanted)


def raised(
    c: Comparison,
    cases: Sequence[QualityCase],
    wanted: Sequence[PairOutput],
    ranking: Sequence[Ranked],
    progress: Progress,
) -> list[RaisedTensors]:
    """Measure the quantised pair, in its own precision, with the first 1, 2, 4, 8, ... of the ranking raised."""
    theirs, steps = c.reference_pair.tensors(), []
    counts = [1 << i for i in range(len(ranking).bit_length()) if 1 << i < len(ranking)]
    for n in counts:
        first = ranking[:n]
        pair = c.quantised.with_tensors({name: theirs[name] for entry in first for name in entry.names})
        text, tower = c.text(pair, c.precision), c.tower(pair, c.precision)
        kl = _spread(cases, [run(text, tower, case) for case in cases], wanted)
        steps.append(RaisedTensors(n, sum(entry.extra_bytes for entry in first), kl))
        progress(f"the first {n} raised together")
    return steps


def _spread(cases: Sequence[QualityCase], got: Sequence[PairOutput], wanted: Sequence[PairOutput]) -> Spread:
    result = spread(difference(case, a, b) for case, a, b in zip(cases, got, wanted, strict=True))
    assert result is not None, "there is a text model"
    return result
