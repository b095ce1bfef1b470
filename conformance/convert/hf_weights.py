"""Give the weights of a Hugging Face LLaVA their GGUF names.   D width, F MLP width, V vocabulary, H heads, dh head
size.

Three layouts of names are in use: transformers 5.x in memory (`model.language_model.`, `model.vision_tower.`), what it
saves (`language_model.model.`, `vision_tower.`), and 4.x (`vision_tower.vision_model.`). All mean the same tensors.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from ..pairs.writing import StoredTensor, held
from .hf_config import ConversionError, TextShape, VisionShape

UNUSED = ("vision_tower.post_layernorm.", "vision_tower.embeddings.position_ids")  # not fed to the projector


class Source:
    """Hand out each tensor once, by its plain name. Raises ConversionError for a missing tensor or a leftover."""

    def __init__(self, where: str, tensors: Mapping[str, StoredTensor]) -> None:
        self.where = where
        self._left = {_decoder_named(plain_name(name)): tensor for name, tensor in tensors.items()}

    def take(
        self, name: str, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> StoredTensor:
        """Return the tensor `name`, which must have `shape`; `change` is applied to it and keeps the shape."""
        if name not in self._left:
            raise ConversionError(self.where, name, "missing tensor")
        tensor = self._left.pop(name)
        if tensor.shape != shape:
            raise ConversionError(self.where, name, f"has shape {list(tensor.shape)}, expected {list(shape)}")
        return StoredTensor(shape, lambda: change(tensor.load())) if change else tensor

    def take_first(self, rows: int, name: str, shape: tuple[int, ...]) -> StoredTensor:
        """Return the first `rows` of the tensor `name`, which must have `shape`."""
        tensor = self.take(name, shape)
        return StoredTensor((rows, *shape[1:]), lambda: tensor.load()[:rows])

    def drop(self, name: str) -> None:
        self._left.pop(name, None)

    def finish(self, unused: tuple[str, ...]) -> None:
        for name in self._left:
            if not name.startswith(unused) and not name.endswith("rotary_emb.inv_freq"):
                raise ConversionError(self.where, name, "unexpected tensor: nothing in the config asks for it")


def plain_name(name: str) -> str:
    """Map any layout's name to `language_model.layers.0...`, `vision_tower.encoder...`, `multi_modal_projector...`."""
    name = name.removeprefix("model.")
    for old, new in (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "language_model."),
        ("vision_tower.vision_model.", "vision_tower."),
        ("text_model.", "language_model."),  # Idefics3, SmolVLM
        ("vision_model.", "vision_tower."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _decoder_named(name: str) -> str:
    """Name the decoder where a layout does not: Qwen2-VL's in 4.x."""
    return f"language_model.{name}" if name.startswith(("layers.", "embed_tokens.", "norm.")) else name


def open_folder(folder: Path) -> Source:
    """Open the safetensors files of a folder, several by their index. Tensors are read when they are taken."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    else:
        files = [folder / "model.safetensors"]
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        if not file.is_file():
            raise ConversionError(folder, file.name, "missing file")
        tensors |= _open_file(file)
    return Source(str(folder), tensors)


def _open_file(file: Path) -> dict[str, StoredTensor]:
    opened: Any = safe_open(file, framework="pt")  # numpy has no bfloat16
    names = opened.keys()
    return {name: StoredTensor(tuple(opened.get_slice(name).get_shape()), _loader(opened, name)) for name in names}


def _loader(opened: Any, name: str) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        array: np.ndarray = opened.get_tensor(name).float().numpy()
        return array

    return load


def adjacent_pairs(n_head: int) -> Callable[[np.ndarray], np.ndarray]:
    """Reorder rows of Q or K: channels i and i + dh/2 of a head turn together in transformers, 2i and 2i+1 in GGUF."""

    def change(rows: np.ndarray) -> np.ndarray:  # (H * dh, D) or (H * dh,)
        halves = rows.reshape(n_head, 2, -1, *rows.shape[1:])  # (H, 2, dh / 2, ...)
        return halves.swapaxes(1, 2).reshape(rows.shape)

    return change


def text_tensors(source: Source, s: TextShape, n_kept: int) -> dict[str, StoredTensor]:
    """Return the decoder's tensors, with the first `n_kept` rows of the vocabulary."""
    D, V, name = s.width, s.n_vocab, "language_model"
    tensors = {
        "token_embd.weight": source.take_first(n_kept, f"{name}.embed_tokens.weight", (V, D)),
        "output_norm.weight": source.take(f"{name}.norm.weight", (D,)),
    }
    if s.tied:
        source.drop("lm_head.weight")
    else:
        tensors["output.weight"] = source.take_first(n_kept, "lm_head.weight", (V, D))
    if s.rope_divisors is not None:
        tensors["rope_freqs.weight"] = held(s.rope_divisors)
    for i in range(s.n_layer):
        tensors |= text_block(source, f"{name}.layers.{i}", f"blk.{i}", s)
    return tensors


def text_block(source: Source, name: str, to: str, s: TextShape) -> dict[str, StoredTensor]:
    """Return the tensors of a block of llama."""
    D, F, Q, KV = s.width, s.mlp_width, s.n_head * s.head_size, s.n_head_kv * s.head_size
    matrices = {  # transformers' name: GGUF's, rows, columns, bias, number of heads to reorder
        "self_attn.q_proj": ("attn_q", Q, D, s.attention_bias, s.n_head),
        "self_attn.k_proj": ("attn_k", KV, D, s.attention_bias, s.n_head_kv),
        "self_attn.v_proj": ("attn_v", KV, D, s.attention_bias, None),
        "self_attn.o_proj": ("attn_output", D, Q, s.attention_bias, None),
        "mlp.gate_proj": ("ffn_gate", F, D, s.mlp_bias, None),
        "mlp.up_proj": ("ffn_up", F, D, s.mlp_bias, None),
        "mlp.down_proj": ("ffn_down", D, F, s.mlp_bias, None),
    }
    tensors = {
        f"{to}.attn_norm.weight": source.take(f"{name}.input_layernorm.weight", (D,)),
        f"{to}.ffn_norm.weight": source.take(f"{name}.post_attention_layernorm.weight", (D,)),
    }
    for part, (gguf, rows, columns, bias, n_head) in matrices.items():
        change = adjacent_pairs(n_head) if n_head else None
        tensors[f"{to}.{gguf}.weight"] = source.take(f"{name}.{part}.weight", (rows, columns), change)
        if bias:
            tensors[f"{to}.{gguf}.bias"] = source.take(f"{name}.{part}.bias", (rows,), change)
    return tensors


def vision_tensors(source: Source, s: VisionShape) -> dict[str, StoredTensor]:
    """Return the tower's tensors up to the feature layer, and the projector's."""
    D, P, name = s.width, s.patch_size, "vision_tower"
    tensors = {
        "v.class_embd": source.take(f"{name}.embeddings.class_embedding", (D,)),
        "v.patch_embd.weight": source.take(f"{name}.embeddings.patch_embedding.weight", (D, 3, P, P)),
        "v.position_embd.weight": source.take(f"{name}.embeddings.position_embedding.weight", (s.n_rows, D)),
        "v.pre_ln.weight": source.take(f"{name}.pre_layrnorm.weight", (D,)),  # sic
        "v.pre_ln.bias": source.take(f"{name}.pre_layrnorm.bias", (D,)),
    }
    for i in range(s.n_used):
        tensors |= vision_block(source, f"{name}.encoder.layers.{i}", f"v.blk.{i}", D, s.mlp_width)
    T = s.text_width
    for part, to, columns in (("linear_1", "mm.0", D), ("linear_2", "mm.2", T)):
        tensors[f"{to}.weight"] = source.take(f"multi_modal_projector.{part}.weight", (T, columns))
        bias = f"multi_modal_projector.{part}.bias"
        # llama.cpp adds mm.*.bias without checking that it exists, so a projector without one gets zeros.
        tensors[f"{to}.bias"] = source.take(bias, (T,)) if s.projector_bias else held(np.zeros(T, np.float32))
    if s.tiled:
        tensors["v.image_newline"] = source.take("image_newline", (T,))
    return tensors


def vision_block(source: Source, name: str, to: str, D: int, F: int) -> dict[str, StoredTensor]:
    """Return the tensors of a block of CLIP or SigLIP."""
    parts = {
        "layer_norm1": ("ln1", (D,)),
        "self_attn.q_proj": ("attn_q", (D, D)),
        "self_attn.k_proj": ("attn_k", (D, D)),
        "self_attn.v_proj": ("attn_v", (D, D)),
        "self_attn.out_proj": ("attn_out", (D, D)),
        "layer_norm2": ("ln2", (D,)),
        "mlp.fc1": ("ffn_up", (F, D)),
        "mlp.fc2": ("ffn_down", (D, F)),
    }
    tensors = {}
    for part, (gguf, shape) in parts.items():
        tensors[f"{to}.{gguf}.weight"] = source.take(f"{name}.{part}.weight", shape)
        tensors[f"{to}.{gguf}.bias"] = source.take(f"{name}.{part}.bias", shape[:1])
    return tensors


def unused_names(s: VisionShape) -> tuple[str, ...]:
    """Return prefixes of tensors that a checkpoint has and a pair has not: blocks above the feature layer, last
    norm."""
    return (*UNUSED, *(f"vision_tower.encoder.layers.{i}." for i in range(s.n_used, s.n_block)))
