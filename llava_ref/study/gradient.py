"""Compute gradients: how a number made of the logits changes with each number of an array inside the run.

T positions, V vocabulary. Torch's autograd runs the pass backwards, in precision `exact`. Weights are constants, also
quantised ones: they are dequantised, and what a gradient is taken of is an array of float32. A gradient is local: it
says what an infinitely small change does, and says nothing where a softmax or an activation is flat (Sundararajan et
al. 2017, https://arxiv.org/abs/1703.01365, section 2.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ParameterError
from ..generation.request import Request
from ..images import DecodedImage
from ..model import Llava
from ..models.family import encode_on_device
from ..ops.protocol import Array
from ..tracing.trace import At, Probe

if TYPE_CHECKING:  # numpy runs without torch
    from torch import Tensor

LOGITS = "result_output"


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """Holds a number of a run, and its gradient by some of the run's arrays; names and shapes are those of a trace."""

    value: float
    arrays: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in self.arrays.items())
        return f"<Gradients of {self.value:.6g} by {shapes}>"


def gradients(model: Llava, request: Request, of: Callable[[Tensor], Tensor], names: str | Sequence[str]) -> Gradients:
    """Return the gradient of `of(logits)`, logits (T, V) a torch tensor, by every stage whose name matches `names`.

    `of` returns a tensor of one number, as `lambda logits: logits[-1, token]`. Pixels are the stage `vision.pixels`, of
    which one unit is the file's `image_std`; `projector.out` are the rows of a picture. Edits made with
    `model.intervene` are passed through if they return torch tensors. Everything between the stages and the logits
    stays in memory, dequantised weights too. Raises ParameterError for another backend or precision than torch and
    `exact`, for a stage that the logits do not depend on, and for an `of` that gives no number."""
    for setting, wanted in (("backend", "torch"), ("precision", "exact")):
        if model.settings[setting] != wanted:
            raise ParameterError(setting, repr(model.settings[setting]), f"has no gradients, expected {wanted!r}")
    import torch

    graph = _Graph([names] if isinstance(names, str) else names)
    with torch.inference_mode(False), torch.enable_grad(), model.probed(graph):
        rows: list[Any] = [_rows(model, image) for image in request.images]
        model.session().feed(request.parts(rows), all_logits=True)
        value, arrays = _number(of(graph.logits)), graph.arrays
        c = model.text.config
        with model.ops.running(len(graph.logits), c.n_vocab * c.width):
            found = torch.autograd.grad(value, list(arrays.values()), allow_unused=True) if arrays else ()
    for name, gradient in zip(arrays, found, strict=True):
        if gradient is None:
            raise ParameterError(
                "stage", name, "has no gradient: the number does not depend on it, or an edit cut it off"
            )
    return Gradients(
        value.item(),
        {name: model.ops.numpy(x) for name, x in arrays.items()},
        {name: model.ops.numpy(x) for name, x in zip(arrays, found, strict=True)},
    )


def _rows(model: Llava, image: DecodedImage) -> Array:
    tap = model.probes.tap(object())
    picture = model.preprocess(image, tap)
    return encode_on_device(model.tower, picture.pixels, picture.source, tap)


def _number(value: Any) -> Tensor:
    """Check what `of` returned. Raises ParameterError."""
    from torch import Tensor

    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f" of shape {list(value.shape)}" if hasattr(value, "shape") else ""
        raise ParameterError("of", type(value).__name__ + shape, "expected a torch tensor of one number")
    if not value.requires_grad:
        raise ParameterError("of", "its number", "does not depend on any of the stages")
    return value.sum()


class _Graph(Probe):
    """Makes the arrays of some stages the variables of a graph, and keeps them and the logits."""

    whole = True

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__([*names, LOGITS])
        self._names = tuple(names)
        self.arrays: dict[str, Tensor] = {}
        self.logits: Any = None

    def see(self, x: Array, at: At) -> Array:
        if any(fnmatchcase(at.name, glob) for glob in self._names):
            if isinstance(x, np.ndarray):
                raise ParameterError("stage", at.name, "has whole numbers and no gradient, expected vision.pixels")
            x = x if x.requires_grad else x.detach().requires_grad_()
            self.arrays[at.numbered] = x
        if at.name == LOGITS:
            self.logits = x
        return x
