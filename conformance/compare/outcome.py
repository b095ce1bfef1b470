"""Compare two runs of one prompt end to end: their next-token distributions, and the tokens that follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llava_ref.model import Llava
from llava_ref.tracing.distance import kl, rounding

from ..engines.reference import Case, Run
from .bounds import coarsest, divergence, margin, recorded_logits
from .comparing import continued, in_axes, shared_ids


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Holds a token that this project would not have chosen after the reference's text."""

    place: int
    ours: int
    theirs: int
    margin: float  # this project's logit of `ours`, less its logit of `theirs`


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """Holds what differs at the end of two runs."""

    token_ids: tuple[tuple[int, ...], tuple[int, ...]]  # ours, the reference's; -1 where a picture stands
    kl: tuple[float, ...] | None  # nats at each position; None if token ids differ or the reference has no logits
    kl_bound: float
    top_1: float | None  # share of positions with the same likeliest token
    greedy: tuple[int, ...]  # the reference's, up to and including the first that ends an answer
    disagreements: tuple[Disagreement, ...]
    margin_bound: float
    texts: Mapping[int, str]
    """Token id -> its piece as the file stores it, for the tokens of `greedy` and `disagreements`."""

    @property
    def within(self) -> bool:
        """Tell whether KL and margins are within their bounds."""
        close = all(x <= self.kl_bound for x in self.kl or ())  # false for NaN
        return close and all(d.margin <= self.margin_bound for d in self.disagreements)


def end_to_end(model: Llava, case: Case, run: Run, ids: tuple[int, ...], logits: np.ndarray) -> EndToEnd:
    """Compare this project's run end to end, with token `ids` and `logits` (T, V), with the reference's."""
    kinds = set(model.types().values()) | ({"BF16"} if model.settings["precision"] == "fast" else set())
    kind = coarsest(kinds)
    theirs = None if "result_output" not in run.stages else in_axes(run.stages["result_output"], 2)
    if ids != run.token_ids or theirs is None or theirs.shape != logits.shape:
        divergences = top_1 = None
    else:
        divergences = tuple(float(x) for x in kl(logits, theirs))
        top_1 = float((logits.argmax(-1) == theirs.argmax(-1)).mean())
    greedy = _answer(run.greedy, model.tokenizer.end_ids)
    disagreements = _disagreements(model, case, shared_ids(ids, run.token_ids), greedy)
    shown = {*greedy, *(d.ours for d in disagreements)}
    return EndToEnd(
        token_ids=(ids, run.token_ids),
        kl=divergences,
        kl_bound=recorded_logits(divergence(kind), _moved(run)),
        top_1=top_1,
        greedy=greedy,
        disagreements=disagreements,
        margin_bound=margin(kind),
        texts={token: model.tokenizer.text_of(token) for token in sorted(shown)},
    )


def _moved(run: Run) -> float:
    """Return by how much recording may have rounded the reference's logits."""
    kind = run.rounded.get("result_output")
    return 0.0 if kind is None else rounding(run.stages["result_output"], kind)[1]


def _answer(greedy: tuple[int, ...], end_ids: frozenset[int]) -> tuple[int, ...]:
    """Cut a continuation after the first token that ends an answer; references do not stop there."""
    ends = (i + 1 for i, token in enumerate(greedy) if token in end_ids)
    return greedy[: next(ends, len(greedy))]


def _disagreements(model: Llava, case: Case, ids: Sequence[int], greedy: tuple[int, ...]) -> tuple[Disagreement, ...]:
    """Feed the reference's continuation token by token; return where this project expects another token."""
    if not greedy:
        return ()
    disagreements = []
    for place, (token, row) in enumerate(zip(greedy, continued(model, case.images, ids, greedy), strict=True)):
        ours = int(row.argmax())
        if ours != token:
            disagreements.append(Disagreement(place, ours, token, float(row[ours] - row[token])))
    return tuple(disagreements)
