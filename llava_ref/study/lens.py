"""Compute the logit lens: the tokens that the model would predict if it stopped after a layer.

T positions, L layers, V vocabulary. The final norm and the output matrix are applied to the hidden states of every
layer (nostalgebraist 2020, "interpreting GPT: the logit lens", https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru). At a
picture's positions this is suggestive at best: the model was never trained to predict anything there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..generation.request import Request
from ..model import Llava
from ..models.stages import residual
from ..tracing.distance import log_softmax

ROWS = 256  # positions turned into logits at once: V is large


@dataclass(frozen=True, slots=True)
class Lens:
    """Holds the likeliest tokens at every layer and position."""

    layers: tuple[str, ...]
    """Stage names: `embd`, then each block's `out`."""
    token_ids: tuple[int, ...]
    """The token at each position, -1 for a picture: the prompt, then the answer without its last token."""
    tokens: np.ndarray  # (L, T, k) int64, the likeliest first
    probabilities: np.ndarray  # (L, T, k) float32

    def __repr__(self) -> str:
        L, T, k = self.tokens.shape
        return f"<Lens of {L} layers and {T} positions: {k} tokens each>"


def logit_lens(model: Llava, request: Request, answer: Sequence[int] = (), *, top: int = 5) -> Lens:
    """Apply the lens to a prompt and the answer generated after it. The last layer gives the model's own prediction."""
    layers = tuple(residual(range(model.text.config.n_layer)))
    with model.trace(*layers) as trace:
        model.forward([*model.parts(request), list(answer[:-1])])
    best = [_top(model, trace[layer], top) for layer in layers]
    tokens, probabilities = (np.stack(part) for part in zip(*best, strict=True))
    return Lens(layers, (*request.token_ids, *answer[:-1]), tokens, probabilities)


def _top(model: Llava, hidden: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `top` likeliest tokens (T, top) of hidden states (T, D), and their probabilities (T, top)."""
    tokens, probabilities = [], []
    for at in range(0, len(hidden), ROWS):
        logprobs = log_softmax(model.unembed(hidden[at : at + ROWS]))
        best = np.argsort(-logprobs, axis=-1, kind="stable")[:, :top]
        tokens.append(best)
        probabilities.append(np.exp(np.take_along_axis(logprobs, best, -1)).astype(np.float32))
    return np.concatenate(tokens), np.concatenate(probabilities)
