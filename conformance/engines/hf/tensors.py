"""Read the tensors of a GGUF file as torch float32, with the `gguf` package's dequantisation.

No code of `llava_ref.models` and `llava_ref.ops` is used, so an error there shows as a difference from transformers.
"""

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from llava_ref.errors import GGUFError
from llava_ref.gguf.file import GGUFFile, TensorView


class TensorReader:
    """Hand out each tensor of `file` once. Raises GGUFError for a missing or misshapen tensor, and for a leftover."""

    def __init__(self, file: GGUFFile) -> None:
        self._file, self._left = file, dict(file.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without its axes of 1."""
        if name not in self._file.tensors:
            raise GGUFError(self._file.path, name, "missing tensor")
        return _without_ones(self._file.tensors[name].shape)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return the tensor `name`, which must have `shape`, apart from axes of 1."""
        if self.shape(name) != _without_ones(shape):
            found = list(self._file.tensors[name].shape)
            raise GGUFError(self._file.path, name, f"has shape {found}, expected {list(shape)}")
        return torch.tensor(numbers(self._left.pop(name))).reshape(shape)

    def has(self, name: str) -> bool:
        return name in self._file.tensors

    def maybe(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """Return the tensor as `take` does, or None if the file has none."""
        return self.take(name, shape) if name in self._left else None

    def bias(self, name: str, size: int) -> Tensor:
        """Return `name`.bias, zeros if the file has none."""
        found = self.maybe(f"{name}.bias", (size,))
        return torch.zeros(size) if found is None else found

    def affine(self, name: str, to: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Return `name`.weight and its bias, zeros if the file has none, by the name `to`."""
        return {f"{to}.weight": self.take(f"{name}.weight", shape), f"{to}.bias": self.bias(name, shape[0])}

    def finish(self, unused: tuple[str, ...] = ()) -> None:
        """Raise GGUFError if a tensor was never taken, except for names that start with one of `unused`."""
        for name in self._left:
            if not name.startswith(unused):
                raise GGUFError(self._file.path, name, "this model has no use for the tensor")


def numbers(view: TensorView) -> np.ndarray:
    """Dequantise a tensor to float32."""
    data = np.frombuffer(view.data, np.uint8)
    if view.type == "F64":  # the package returns float64 as it is
        return data.view(np.float64).astype(np.float32).reshape(view.shape)
    return dequantize(data.reshape(1, -1), GGMLQuantizationType[view.type]).reshape(view.shape)


def tower_block(w: TensorReader, name: str, to: str, D: int, F: int) -> dict[str, Tensor]:
    """Return the tensors of a block of CLIP or SigLIP by transformers' names."""
    swapped = w.shape(f"{name}.ffn_down.weight") == (F, D)  # as llama.cpp's first converter named them
    up, down = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
    state: dict[str, Tensor] = {}
    for part in ("q", "k", "v", "out"):
        state |= w.affine(f"{name}.attn_{part}", f"{to}.self_attn.{part}_proj", (D, D))
    for norm in ("1", "2"):
        state |= w.affine(f"{name}.ln{norm}", f"{to}.layer_norm{norm}", (D,))
    state |= w.affine(f"{name}.{up}", f"{to}.mlp.fc1", (F, D))
    return state | w.affine(f"{name}.{down}", f"{to}.mlp.fc2", (D, F))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)
