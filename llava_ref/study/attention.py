"""Read the attention of generated tokens to the patches of a picture.

N patches, L layers, A tokens of the answer, H heads. Raw attention is a poor attribution: heads also park it on
positions that carry no information, after a few layers a position no longer holds the patch it began as, and models
keep their answers when attention is shuffled (Jain, Wallace 2019, https://arxiv.org/abs/1902.10186). It says where the
model looked, not what it used; `ablation` measures the latter.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import ParameterError
from ..generation.request import Request
from ..model import Llava
from ..models.family import LookingModel
from ..ops.protocol import Array
from ..tracing.trace import ON_REQUEST, At, Probe


def attention_to_picture(model: Llava, request: Request, answer: Sequence[int], *, image: int = 0) -> np.ndarray:
    """Return the attention weights of the position that predicts each token of the answer: (L, A, N) float32.

    They are averaged over heads. The rest of a row, which sums to 1 over all positions, is on text and on other
    pictures. Of a decoder with layers that look at pictures, L are those layers, and a row is over pictures alone."""
    return np.concatenate(_weights(model, request, answer, image, attended_layers(model), mean=True))


def heads_to_picture(
    model: Llava, request: Request, answer: Sequence[int], layer: int, *, image: int = 0
) -> np.ndarray:
    """Return the attention weights of every head of a layer: (H, A, N) float32. Raises ParameterError.

    `layer` is one of `attended_layers`; the mean over H is that layer's part of `attention_to_picture`."""
    layers = attended_layers(model)
    if layer not in layers:
        raise ParameterError("layer", str(layer), f"expected one of {', '.join(map(str, layers))}")
    return _weights(model, request, answer, image, [layer], mean=False)[0]


def attended_layers(model: Llava) -> tuple[int, ...]:
    """Return the numbers of the layers whose attention can reach a picture."""
    text = model.text
    return tuple(text.looks if isinstance(text, LookingModel) else range(text.config.n_layer))


def _weights(
    model: Llava, request: Request, answer: Sequence[int], image: int, layers: Iterable[int], *, mean: bool
) -> list[np.ndarray]:
    """Run prompt and answer; return the weights (H, A, N) of each of the layers, or their mean (1, A, N)."""
    first = len(request.token_ids) - 1
    rows, states = range(first, first + len(answer)), seen_states(request, image)
    probe = _Rows(layers, rows, states or picture_positions(request, image), model, mean=mean)
    with model.probed(probe):
        model.forward([*model.parts(request), list(answer[:-1])])
    return probe.weights()


def picture_positions(request: Request, image: int = 0) -> list[int]:
    """Return the position in the prompt of each of a picture's rows."""
    return request.positions(image)


def seen_states(request: Request, image: int = 0) -> range:
    """Return the numbers of a picture's states among those that layers see; none where its rows are in the sequence."""
    counts = [span.n_seen or 0 for span in request.spans]
    return range(sum(counts[:image]), sum(counts[: image + 1]))


class _Rows(Probe):
    """Keeps layers' attention weights (H, T, S) at some rows and columns, or their mean over heads."""

    def __init__(self, layers: Iterable[int], rows: range, columns: Sequence[int], model: Llava, *, mean: bool) -> None:
        super().__init__([f"blk.{layer}.{ON_REQUEST}" for layer in layers])
        self._rows, self._columns, self._ops, self._mean = rows, columns, model.ops, mean
        self._kept: dict[str, list[np.ndarray]] = {}

    def see(self, x: Array, at: At) -> Array:
        assert at.positions is not None
        wanted = [row - at.positions.start for row in self._rows if row in at.positions]
        if wanted:
            weights = self._ops.numpy(x[:, wanted[0] : wanted[-1] + 1])[..., self._columns]
            self._kept.setdefault(at.name, []).append(weights.mean(0, keepdims=True) if self._mean else weights)
        return x

    def weights(self) -> list[np.ndarray]:
        """Return the weights kept of each layer (H or 1, rows, columns)."""
        return [np.concatenate(pieces, 1) for pieces in self._kept.values()]
