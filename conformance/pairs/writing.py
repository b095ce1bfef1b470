"""Write GGUF files with the `gguf` package, one tensor in memory at a time.

Matrices are stored in one chosen type. Tensors with one axis (norms, biases, the class token) and the position table
stay float32, as llama.cpp's converters write them. The patch kernel is float16 if matrices are not float32: llama.cpp
b10605 can convolve with no other narrow type (ggml.c, ggml_conv_2d).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize

from llava_ref.errors import ParameterError

Value = bool | int | float | str | list[int] | list[float] | list[str]
Metadata = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Make a tensor when it is written.  `load() -> ndarray` of `shape`, torch order; uint8 means blocks as they are
    stored, (rows, bytes of a row)."""

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    kind: str | None = None
    """The type it is stored in; None: the type of the file's matrices."""

    def as_kind(self, kind: str) -> "StoredTensor":
        return replace(self, kind=kind)


def held(array: np.ndarray) -> StoredTensor:
    """Wrap a tensor that is in memory already."""
    return StoredTensor(array.shape, lambda: array)


def write(path: Path, metadata: Metadata, tensors: Mapping[str, StoredTensor], kind: str = "F32") -> None:
    """Write a GGUF file (version 3). Integers become uint32, floats float32, lists int32, float32 or string arrays.

    `kind` is the type of the matrices: F32, F16, BF16, Q8_0 or another that `gguf.quants.quantize` makes.
    Raises ParameterError if a matrix's rows do not fill the blocks of that type."""
    writer = GGUFWriter(path, str(metadata["general.architecture"]))
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    stored = {
        name: GGMLQuantizationType[tensor.kind] if tensor.kind else _stored_type(name, tensor.shape, kind)
        for name, tensor in tensors.items()
    }
    for name, tensor in tensors.items():
        shape, size = _byte_shape(name, tensor.shape, stored[name])
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), size, raw_dtype=stored[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        writer.write_tensor_data(_data(name, tensor, stored[name]))
    writer.close()


def _data(name: str, tensor: StoredTensor, kind: GGMLQuantizationType) -> np.ndarray:
    array = np.ascontiguousarray(tensor.load())
    if array.dtype == np.uint8:
        expected, _ = _byte_shape(name, tensor.shape, kind)
    else:
        array, expected = array.astype(np.float32, copy=False), tensor.shape
    assert array.shape == expected, f"{name}: made {array.shape}, announced {expected}"
    return array if array.dtype == np.uint8 else quantize(array, kind)


def _add(writer: GGUFWriter, key: str, value: Value) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)


def _stored_type(name: str, shape: tuple[int, ...], kind: str) -> GGMLQuantizationType:
    if len(shape) == 1 or name == "v.position_embd.weight":
        return GGMLQuantizationType.F32
    if len(shape) == 4 and kind != "F32":
        return GGMLQuantizationType.F16
    return GGMLQuantizationType[kind]


def _byte_shape(name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> tuple[tuple[int, ...], int]:
    """Return the shape in bytes, as the writer wants it, and the number of bytes."""
    weights, size = GGML_QUANT_SIZES[kind]
    if shape[-1] % weights:
        raise ParameterError("type", kind.name, f"{name} has rows of {shape[-1]}, expected a multiple of {weights}")
    in_bytes = (*shape[:-1], shape[-1] // weights * size)
    return in_bytes, int(np.prod(in_bytes))
