"""Check that two pairs of files are one model in different types, and exchange tensors between them."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import PairError
from ..gguf.file import GGUFFile, TensorView
from ..models import text_family, tower_family
from ..profiles import Quirks


@dataclass(frozen=True, slots=True)
class FilePair:
    """Holds a text model's file, an mmproj file, or both."""

    text: GGUFFile | None
    mmproj: GGUFFile | None

    def tensors(self) -> dict[str, TensorView]:
        """Return the tensors of both files by name, in their order. The two files share no names."""
        files = [file for file in (self.text, self.mmproj) if file is not None]
        return {name: view for file in files for name, view in file.tensors.items()}

    def with_tensors(self, views: Mapping[str, TensorView]) -> "FilePair":
        """Return the same pair with these tensors in place of its own of the same name. Nothing is copied."""
        return FilePair(*(None if file is None else _with(file, views) for file in (self.text, self.mmproj)))


def _with(file: GGUFFile, views: Mapping[str, TensorView]) -> GGUFFile:
    other = copy.copy(file)
    other.tensors = {name: views.get(name, view) for name, view in file.tensors.items()}
    return other


def changed(quantised: FilePair, reference: FilePair) -> list[str]:
    """Return the names of the tensors that are not stored in the same bytes, in the order of the files."""
    theirs = reference.tensors()
    return [name for name, view in quantised.tensors().items() if not same_bytes(view, theirs[name])]


def same_bytes(a: TensorView, b: TensorView) -> bool:
    """Tell whether two tensors are stored in the same type and bytes."""
    return a.type == b.type and a.data == b.data


def check(quantised: FilePair, reference: FilePair) -> None:
    """Check that two pairs are siblings.

    Raises PairError naming the first tensor or setting that only one has, or that differs."""
    if quantised.text is not None and reference.text is not None:
        _check_tensors(quantised.text, reference.text)
        _check_settings(quantised.text, reference.text, lambda file: text_family(file).about(file, Quirks()))
        key = "tokenizer.ggml.tokens"
        if list(quantised.text[key]) != list(reference.text[key]):
            raise PairError(quantised.text.path, key, f"differs from {reference.text.path}: another vocabulary")
    if quantised.mmproj is not None and reference.mmproj is not None:
        _check_tensors(quantised.mmproj, reference.mmproj)
        _check_settings(quantised.mmproj, reference.mmproj, lambda file: tower_family(file).about(file, Quirks()))


def _check_tensors(file: GGUFFile, other: GGUFFile) -> None:
    for name, view in file.tensors.items():
        if name not in other.tensors:
            raise PairError(other.path, name, f"missing tensor: {file.path} has it")
        if view.shape != other.tensors[name].shape:
            ours, theirs = list(view.shape), list(other.tensors[name].shape)
            raise PairError(file.path, name, f"has shape {ours}, but {theirs} in {other.path}")
    for name in other.tensors:
        if name not in file.tensors:
            raise PairError(file.path, name, f"missing tensor: {other.path} has it")


def _check_settings(file: GGUFFile, other: GGUFFile, about: Callable[[GGUFFile], dict[str, Any]]) -> None:
    ours, theirs = about(file), about(other)
    for name in ours | theirs:
        a, b = ours.get(name), theirs.get(name)
        if a != b:
            raise PairError(file.path, name, f"is {a}, but {b} in {other.path}: not the same model")
