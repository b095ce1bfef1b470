"""Write the models that docs/speed.md measures: `python docs/speed/models.py FOLDER [--only GLOB]`.

They have the shapes and types of released models and random weights, since speed does not depend on the values: a
matrix is a few random rows, repeated; only the output matrix is random throughout, so that no two tokens are equally
likely. The vocabulary is a small one filled up with words that nobody writes. A model takes as much disk as a released
one of its size: 4 GB for `7b-q4_k_m`, 13.5 GB for `7b-f16`.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np

from llava_ref.benchmark.card.models import MIXES
from llava_ref.conformance.pairs.pairs import Random, VisionSpec, vision_metadata, vision_tensors, vocabulary
from llava_ref.conformance.pairs.random_blocks import random_tensor
from llava_ref.conformance.pairs.writing import Metadata, StoredTensor, held, write

ROWS = 64
"""Rows of a matrix that are drawn at random; the others are copies of these."""
NAMES = {  # of a matrix in a file -> in `MIXES`
    "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "out",
    "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of architecture `llama`: D width, F MLP width, H heads, Hkv key and value heads, V vocabulary."""

    layers: int
    D: int
    F: int
    H: int
    Hkv: int
    V: int = 32000
    context: int = 8192 + 256


SHAPES = {
    "1b": Shape(16, 2048, 8192, 32, 8),
    "7b": Shape(32, 4096, 11008, 32, 32),
    "7b-4-layers": Shape(4, 4096, 11008, 32, 32),
}
TOWER = VisionSpec(
    width=1024, n_block=23, n_head=16, mlp_width=4096, image_size=336, patch_size=14, middle=4096, feature_layer=23,
    kind="F16",
)  # fmt: skip
"""LLaVA-1.5's, with the key that says how many blocks run, so that every program runs all 23."""
MMPROJ = "vit-l-336-f16.gguf"


def names() -> list[str]:
    """Return the names of all files."""
    return [*(f"{shape}-{mix.lower()}.gguf" for shape in SHAPES for mix in MIXES), MMPROJ]


def make(folder: Path, name: str) -> Path:
    """Write a file, unless the folder has it, and return its path."""
    path, part = folder / name, folder / f"{name}.part"
    if not path.exists():
        if name == MMPROJ:
            tensors = vision_tensors(TOWER, SHAPES["7b"].D, Random(0, 0.0))
            write(part, vision_metadata(TOWER, SHAPES["7b"].D), tensors, TOWER.kind)
        else:
            shape, _, mix = name.removesuffix(".gguf").rpartition("-")
            write(part, metadata(SHAPES[shape]), dict(text_tensors(SHAPES[shape], mix.upper())))
        part.rename(path)
    return path


def metadata(s: Shape) -> Metadata:
    return {
        "general.architecture": "llama",
        "llama.block_count": s.layers,
        "llama.context_length": s.context,
        "llama.embedding_length": s.D,
        "llama.feed_forward_length": s.F,
        "llama.attention.head_count": s.H,
        "llama.attention.head_count_kv": s.Hkv,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        **filled(vocabulary(), s.V),
    }


def filled(small: Metadata, n: int) -> Metadata:
    """Return a vocabulary with words of no meaning added, to n tokens."""
    tokens = small["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    more = n - len(tokens)
    added = {
        "tokenizer.ggml.tokens": [f"~{i}" for i in range(more)],
        "tokenizer.ggml.scores": [-2000.0 - i for i in range(more)],
        "tokenizer.ggml.token_type": [1] * more,
    }
    return {key: value + added[key] if key in added else value for key, value in small.items()}  # type: ignore[operator]


def text_tensors(s: Shape, mix: str) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the tensors of a decoder with the types that llama.cpp's `mix` has."""
    kinds = MIXES[mix]
    ones = held(np.ones(s.D, np.float32)).as_kind("F32")
    kv = s.D // s.H * s.Hkv
    shapes = {
        "attn_q": (s.D, s.D), "attn_k": (kv, s.D), "attn_v": (kv, s.D), "attn_output": (s.D, s.D),
        "ffn_gate": (s.F, s.D), "ffn_up": (s.F, s.D), "ffn_down": (s.D, s.F),
    }  # fmt: skip
    yield "token_embd.weight", matrix("token_embd", kinds("embd", 0, s.layers), s.V, s.D)
    for i in range(s.layers):
        yield f"blk.{i}.attn_norm.weight", ones
        yield f"blk.{i}.ffn_norm.weight", ones
        for name, (rows, columns) in shapes.items():
            yield f"blk.{i}.{name}.weight", matrix(f"{i}.{name}", kinds(NAMES[name], i, s.layers), rows, columns)
    yield "output_norm.weight", ones
    yield "output.weight", matrix("output", kinds("output", 0, s.layers), s.V, s.D, s.V)


def matrix(name: str, kind: str, rows: int, columns: int, drawn: int = ROWS) -> StoredTensor:
    return StoredTensor((rows, columns), partial(blocks, name, kind, rows, columns, drawn), kind)


def blocks(name: str, kind: str, rows: int, columns: int, drawn: int) -> np.ndarray:
    """Return a matrix as a file holds it, (rows, bytes of a row) uint8: `drawn` random rows, repeated."""
    few = random_tensor(kind, min(rows, drawn), columns, list(name.encode()))
    return np.tile(few, (-(-rows // len(few)), 1))[:rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", metavar="GLOB", help="of file names (default: all)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in filter(partial(fnmatchcase, pat=args.only), names()):
        path = make(args.folder, name)
        print(f"{path}: {path.stat().st_size / 1e9:.2f} GB", flush=True)


if __name__ == "__main__":
    main()
