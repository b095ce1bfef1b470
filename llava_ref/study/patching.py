"""Patch activations: put arrays of one run into another, to see which of them carry the difference.

Two prompts of the same length, one with each of two pictures (or of two questions). Rows of a stage are copied from the
`source` run into the `into` run, and the rest is computed from there (Meng et al. 2022, https://arxiv.org/abs/2202.05262,
"causal tracing"; Heimersheim, Nanda 2024, https://arxiv.org/abs/2404.15255 on how to read the results).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..errors import ParameterError
from ..generation.request import Reply, Request
from ..generation.sampling import Sampling
from ..model import Llava
from ..models.stages import residual
from ..ops.protocol import Array
from ..tracing.edits import Edits
from ..tracing.trace import At


def record(model: Llava, source: Request, stage: str) -> np.ndarray:
    """Return all rows of one stage of a prompt's run."""
    with model.trace(stage) as trace:
        model.request_logits(source)
    return trace[stage]


def transplant(model: Llava, stage: str, rows: Sequence[int], values: np.ndarray) -> Edits:
    """Make an edit that replaces `rows` of `stage` by `values[row]`.

    Rows are positions of the sequence or, in the tower and the projector, rows of the first picture."""

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
    """Return the logits (T, V) of `into` with rows of one stage taken from `source`.

    Raises ParameterError if the prompts differ in length or in the positions of pictures."""
    _check(into, source)
    values = record(model, source, stage)
    with model.probed(transplant(model, stage, rows, values)):
        return model.request_logits(into)


def patched_answer(
    model: Llava, into: Request, source: Request, stage: str, rows: Sequence[int], *, max_tokens: int = 16
) -> Reply:
    """Return the model's greedy answer to `into` with rows of one stage taken from `source`.

    Raises ParameterError if the prompts differ in length or in the positions of pictures."""
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
    progress: Callable[[str], None] = lambda text: None,
) -> np.ndarray:
    """Measure how far patching moves the next token from that of `into` to that of `source`: 0 not at all, 1 fully.

    (stages, groups) float32, for each group of positions at each stage, by default the input and every block. `tokens`:
    the first token of the answer to `source` and of that to `into`; the measure is their difference in logits.
    `progress` is called at the start of each stage. Raises ParameterError if the difference is the same in both
    prompts."""
    _check(into, source)
    theirs, ours = tokens

    def difference(logits: np.ndarray) -> float:
        return float(logits[-1, theirs]) - float(logits[-1, ours])

    stages = stages or residual(range(model.text.config.n_layer))
    with model.trace(*stages) as values:
        high = difference(model.request_logits(source))
    low = difference(model.request_logits(into))
    if high == low:
        raise ParameterError("tokens", str(tokens), "the two prompts do not differ in these tokens")
    effects = np.empty((len(stages), len(groups)), np.float32)
    for i, stage in enumerate(stages):
        progress(f"{i + 1} of {len(stages)} stages: {stage}")
        for j, rows in enumerate(groups.values()):
            with model.probed(transplant(model, stage, rows, values[stage])):
                effects[i, j] = (difference(model.request_logits(into)) - low) / (high - low)
    return effects


def _check(into: Request, source: Request) -> None:
    """Check that two prompts have the same layout. Raises ParameterError."""
    a, b = into.token_ids, source.token_ids
    if len(a) != len(b) or [token < 0 for token in a] != [token < 0 for token in b]:
        raise ParameterError("patching", "prompts", f"{len(a)} and {len(b)} positions, expected the same layout")
