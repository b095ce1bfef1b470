"""Activation patching: arrays of one run put into another, to see which of them carry what differs.

Two prompts of the same length, one with each of two pictures (or of two questions). Rows of a stage are copied from the
`source` run into the `into` run, and the rest is computed from there (Meng et al. 2022, https://arxiv.org/abs/2202.05262,
"causal tracing"; Heimersheim, Nanda 2024, https://arxiv.org/abs/2404.15255 on how to read the results).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..errors import ParameterError
from ..generation.request import Reply, Request
from ..generation.sampler import Sampling
from ..model import Llava
from ..models.stages import residual
from ..ops.protocol import Array
from ..tracing.trace import At, Edits


def record(model: Llava, source: Request, stage: str) -> np.ndarray:
    """All rows of one stage, of a prompt."""
    with model.trace(stage) as trace:
        model.request_logits(source)
    return trace[stage]


def transplant(model: Llava, stage: str, rows: Sequence[int], values: np.ndarray) -> Edits:
    """An edit that puts `values[row]` in the place of those rows of `stage`: positions of the sequence, or, in the
    tower and the projector, the rows of the first picture."""

    def put(x: Array, at: At) -> Array:
        if at.run:
            return x
        positions = range(x.shape[0]) if at.positions is None else at.positions
        changed = np.array(x if isinstance(x, np.ndarray) else model.ops.numpy(x))
        for row in rows:
            if row in positions:
                changed[row - positions.start] = values[row]
        return changed

    return Edits({stage: put}, model.ops)


def patched_logits(model: Llava, into: Request, source: Request, stage: str, rows: Sequence[int]) -> np.ndarray:
    """Logits (T, V) of `into` with rows of one stage taken from `source`. ParameterError if they differ in length."""
    _check(into, source)
    values = record(model, source, stage)
    with model.probed(transplant(model, stage, rows, values)):
        return model.request_logits(into)


def patched_answer(
    model: Llava, into: Request, source: Request, stage: str, rows: Sequence[int], *, max_tokens: int = 16
) -> Reply:
    """The same, as an answer: what the model says after the patched prompt."""
    _check(into, source)
    values = record(model, source, stage)
    with model.probed(transplant(model, stage, rows, values)):
        return model.answer(into, Sampling(), max_tokens=max_tokens).finish()


def sweep(
    model: Llava,
    into: Request,
    source: Request,
    groups: Mapping[str, Sequence[int]],
    tokens: tuple[int, int],
    *,
    stages: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda done: None,
) -> np.ndarray:
    """(stages, groups) float32: how far patching each group of positions at each stage, by default the input and every
    block, moves the next token from that of `into` to that of `source`: 0 not at all, 1 all the way.

    `tokens`: the first token of the answer to `source`, and of that to `into`; what is measured is their difference in
    logits. `say` is told what begins. ParameterError if the two prompts do not differ in it."""
    _check(into, source)
    wanted, given = tokens

    def difference(logits: np.ndarray) -> float:
        return float(logits[-1, wanted]) - float(logits[-1, given])

    stages = stages or residual(range(model.text.config.n_layer))
    with model.trace(*stages) as values:
        high = difference(model.request_logits(source))
    low = difference(model.request_logits(into))
    if high == low:
        raise ParameterError("tokens", str(tokens), "the two prompts do not differ in these tokens")
    effects = np.empty((len(stages), len(groups)), np.float32)
    for i, stage in enumerate(stages):
        say(f"{i + 1} of {len(stages)} stages: {stage}")
        for j, rows in enumerate(groups.values()):
            with model.probed(transplant(model, stage, rows, values[stage])):
                effects[i, j] = (difference(model.request_logits(into)) - low) / (high - low)
    return effects


def _check(into: Request, source: Request) -> None:
    a, b = into.token_ids, source.token_ids
    if len(a) != len(b) or [token < 0 for token in a] != [token < 0 for token in b]:
        raise ParameterError("patching", "prompts", f"{len(a)} and {len(b)} positions, expected the same layout")
