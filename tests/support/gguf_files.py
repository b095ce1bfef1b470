"""GGUF bytes made by hand, with no library in between, so that a test can write what no library would.

build([("general.name", "string", "x")], [Tensor("w", "F32", (4, 2))])
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llava_ref.gguf.types import TYPES

CODES = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "B"}
CODES |= {"u64": "Q", "i64": "q", "f64": "d"}
IDS = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "string": 8, "array": 9}
IDS |= {"u64": 10, "i64": 11, "f64": 12}
Key = tuple[str, str, object] | bytes


@dataclass(frozen=True)
class Tensor:
    """A row of the tensor table and its data. What is None is what a good file would have; `type` may be any number."""

    name: str | bytes
    type: str | int = "F32"
    ne: tuple[int, ...] = (4,)  # fastest axis first, as GGUF stores it
    data: bytes | None = None
    offset: int | None = None
    n_dims: int | None = None


def text(content: str | bytes, length: int | None = None) -> bytes:
    """A GGUF string, or one that says it is `length` bytes long."""
    raw = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def value(kind: str, content: object) -> bytes:
    """`kind` as "u32", "string", or "u32[]" for an array, "u32[][]" for an array of arrays."""
    if kind.endswith("[]"):
        inner = kind.removesuffix("[]")
        element = IDS["array"] if inner.endswith("[]") else IDS[inner]
        return struct.pack("<IQ", element, len(content)) + b"".join(value(inner, x) for x in content)
    return text(content) if kind == "string" else struct.pack("<" + CODES[kind], content)


def key(name: str | bytes, kind: str, content: object) -> bytes:
    """A key, its type and its value."""
    return text(name) + struct.pack("<I", IDS["array" if kind.endswith("[]") else kind]) + value(kind, content)


def build(
    keys: Iterable[Key] = (),
    tensors: Iterable[Tensor] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
    cut: int = 0,
) -> bytes:
    """A whole file. `alignment` is what is used, whatever the keys say; `cut` bytes are missing at the end."""
    records = [record if isinstance(record, bytes) else key(*record) for record in keys]
    tensors = list(tensors)
    table, data = b"", b""
    for tensor in tensors:
        content = _data(tensor)
        data += b"\0" * (-len(data) % alignment)
        table += text(tensor.name) + struct.pack("<I", len(tensor.ne) if tensor.n_dims is None else tensor.n_dims)
        kind = TYPES[tensor.type].id if isinstance(tensor.type, str) else tensor.type
        offset = len(data) if tensor.offset is None else tensor.offset
        table += struct.pack(f"<{len(tensor.ne)}QIQ", *tensor.ne, kind, offset)
        data += content
    counts = len(tensors) if n_tensors is None else n_tensors, len(records) if n_keys is None else n_keys
    whole = magic + struct.pack("<IQQ", version, *counts) + b"".join(records) + table
    whole += b"\0" * (-len(whole) % alignment) + data
    return whole[: len(whole) - cut]


def _data(tensor: Tensor) -> bytes:
    if tensor.data is not None or isinstance(tensor.type, int):
        return tensor.data or b""
    block = TYPES[tensor.type]
    size = int(np.prod(tensor.ne)) // block.weights * block.bytes
    return np.random.default_rng(list(str(tensor.name).encode())).integers(0, 60, size, np.uint8).tobytes()


def write(folder: Path, content: bytes, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


TEXT = [
    ("general.architecture", "string", "llama"),
    ("general.name", "string", "tiny"),
    ("llama.context_length", "u32", 64),
    ("llama.embedding_length", "u32", 32),
    ("llama.block_count", "u32", 1),
    ("llama.feed_forward_length", "u32", 64),
    ("llama.attention.head_count", "u32", 4),
    ("llama.attention.head_count_kv", "u16", 2),
    ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
    ("llama.rope.dimension_count", "u64", 8),
    ("llama.rope.freq_base", "f64", 10000.0),
    ("llama.rope.scaling.type", "string", "linear"),
    ("llama.rope.scaling.factor", "f32", 2.0),
    ("tokenizer.ggml.model", "string", "llama"),
    ("tokenizer.ggml.tokens", "string[]", ["<unk>", "<s>", "</s>", "▁", "a", "▁a", "b"]),
    ("tokenizer.ggml.scores", "f32[]", [0, 0, 0, -1, -2, -3, -4]),
    ("tokenizer.ggml.token_type", "i32[]", [2, 3, 3, 1, 1, 1, 1]),
    ("tokenizer.ggml.bos_token_id", "u32", 1),
    ("tokenizer.ggml.eos_token_id", "u32", 2),
    ("tokenizer.ggml.add_bos_token", "bool", 1),
]
VISION = [
    ("general.architecture", "string", "clip"),
    ("clip.has_vision_encoder", "bool", 1),
    ("clip.projector_type", "string", "mlp"),
    ("clip.use_gelu", "bool", 0),
    ("clip.vision.image_size", "u32", 28),
    ("clip.vision.patch_size", "u32", 14),
    ("clip.vision.embedding_length", "u32", 32),
    ("clip.vision.feed_forward_length", "u32", 64),
    ("clip.vision.attention.head_count", "u32", 4),
    ("clip.vision.attention.layer_norm_epsilon", "f32", 1e-5),
    ("clip.vision.block_count", "u32", 2),
    ("clip.vision.feature_layer", "i32[]", [1]),
    ("clip.vision.image_mean", "f32[]", [0.5, 0.25, 0.5]),
    ("clip.vision.image_std", "f32[]", [0.5, 0.25, 0.5]),
]
ODD = [  # every type, and shapes of metadata that are rare but good
    *((f"odd.{kind}", kind, 1) for kind in CODES),
    *((f"odd.array.{kind}", f"{kind}[]", [0, 1, 1]) for kind in CODES),
    ("odd.empty", "string[]", []),
    ("odd.nested", "u16[][]", [[1, 2], [], [3]]),
    ("odd.deep", "string[][][]", [[["a"], []], []]),
    ("odd.text", "string", "line\nline \x1b[31m 😀"),
    ("general.alignment", "u32", 64),
]


def good_files() -> list[bytes]:
    """Small files of every sort that must be read: a text model, an mmproj, every tensor type, odd metadata."""
    tensors = [Tensor(f"blk.0.{name}", name, (2 * block.weights, 3)) for name, block in TYPES.items()]
    return [
        build(),
        build(TEXT, [Tensor("token_embd.weight", "Q8_0", (32, 7)), Tensor("output_norm.weight", "F32", (32,))]),
        build(VISION, [Tensor("v.patch_embd.weight", "F16", (14, 14, 3, 32)), Tensor("mm.0.bias", "F32", (32,))]),
        build((), tensors),
        build(ODD, [Tensor("a", "I32", (3,)), Tensor("b", "Q4_K", (256, 1, 2))], version=2, alignment=64),
    ]
