"""Which tensors deserve more bits: each quantised alone in the reference, then the worst raised together."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .behaviour import Outcome, Spread, difference, logits, run, spread
from .cases import Case
from .comparison import Comparison, Say

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Ranked:
    """A tensor, or the tensors of a layer."""

    label: str
    names: tuple[str, ...]
    kl: Spread
    """Of the reference with these alone in the quantised pair's types."""
    extra_bytes: int
    """What the reference's types take more."""

    @property
    def per_mib(self) -> float:
        """Typical KL for each MiB that raising them takes; infinite where it takes none."""
        if self.extra_bytes > 0:
            return self.kl.typical / self.extra_bytes * MIB
        return math.inf if self.kl.typical else 0.0


@dataclass(frozen=True, slots=True)
class Raised:
    """The quantised pair with the first `n` of a ranking in the reference's types."""

    n: int
    extra_bytes: int
    kl: Spread


def groups(names: Sequence[str], by_layer: bool) -> dict[str, tuple[str, ...]]:
    """Label -> tensors: each by itself, or those of a block, or of the projector, together."""
    found: dict[str, list[str]] = {}
    for name in names:
        match = re.match(r"(v\.)?blk\.\d+|mm", name)
        found.setdefault(match[0] if by_layer and match else name, []).append(name)
    return {label: tuple(members) for label, members in found.items()}


def rank(
    c: Comparison, cases: Sequence[Case], wanted: Sequence[Outcome], parts: Mapping[str, tuple[str, ...]], say: Say
) -> list[Ranked]:
    """Those that cost most KL for their bytes first. One pass through every case for each."""
    ours, theirs = c.quantised.tensors(), c.reference_pair.tensors()
    ranked = []
    for done, (label, names) in enumerate(parts.items(), 1):
        kl = _alone(c, cases, wanted, names)
        extra = sum(len(theirs[name].data) - len(ours[name].data) for name in names)
        ranked.append(Ranked(label, names, kl, extra))
        say(f"{done} of {len(parts)} quantised alone: {label}")
    return sorted(ranked, key=lambda entry: -entry.per_mib)


def _alone(c: Comparison, cases: Sequence[Case], wanted: Sequence[Outcome], names: Sequence[str]) -> Spread:
    """The reference with `names` alone quantised, in precision `exact`; the half they are not in is not run again."""
    ours = c.quantised.tensors()
    pair = c.reference_pair.with_tensors({name: ours[name] for name in names})
    if c.quantised.text is not None and names[0] in c.quantised.text.tensors:
        text = c.text(pair, "exact") or c.reference.text
        got = [Outcome(want.rows, logits(text, case, want.rows)) for case, want in zip(cases, wanted, strict=True)]
    else:
        text, tower = c.reference.text, c.tower(pair, "exact") or c.reference.tower
        got = [run(text, tower, case) for case in cases]
    return _spread(cases, got, wanted)


def raised(
    c: Comparison, cases: Sequence[Case], wanted: Sequence[Outcome], ranking: Sequence[Ranked], say: Say
) -> list[Raised]:
    """The quantised pair, in its own precision, with the first 1, 2, 4, 8, ... of the ranking raised."""
    theirs, steps = c.reference_pair.tensors(), []
    counts = [1 << i for i in range(len(ranking).bit_length()) if 1 << i < len(ranking)]
    for n in counts:
        first = ranking[:n]
        pair = c.quantised.with_tensors({name: theirs[name] for entry in first for name in entry.names})
        text, tower = c.text(pair, c.precision), c.tower(pair, c.precision)
        kl = _spread(cases, [run(text, tower, case) for case in cases], wanted)
        steps.append(Raised(n, sum(entry.extra_bytes for entry in first), kl))
        say(f"the first {n} raised together")
    return steps


def _spread(cases: Sequence[Case], got: Sequence[Outcome], wanted: Sequence[Outcome]) -> Spread:
    found = spread(difference(case, a, b) for case, a, b in zip(cases, got, wanted, strict=True))
    assert found is not None, "there is a text model"
    return found
