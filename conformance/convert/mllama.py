"""Convert a Hugging Face Llama-3.2-Vision to the metadata and tensors of a GGUF pair, as Ollama's converter names them.

Gates become their tanh, that of positions 1 less it (convert/convert_mllama.go). A config may leave out any value that
equals the default of its class, so the defaults of transformers 5.24's MllamaVisionConfig are repeated.
D width, F MLP width, V vocabulary, P patch, K tiles at most, L rows of a tile.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..pairs.writing import Metadata, StoredTensor
from .hf_config import ConversionError, TextShape, read_text
from .hf_weights import Source, text_block

VISION = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_global_layers": 8,
    "attention_heads": 16,
    "intermediate_size": 5120,
    "image_size": 448,
    "patch_size": 14,
    "norm_eps": 1e-5,
    "max_num_tiles": 4,
    "intermediate_layers_indices": [3, 7, 15, 23, 30],
    "hidden_act": "gelu",
}
LOOKS = [3, 8, 13, 18, 23, 28, 33, 38]  # of MllamaTextConfig
CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
NEW_ROWS = 8  # of the embedding: that of a picture's token, and of seven that no vocabulary has
Part = tuple[Metadata, dict[str, StoredTensor]]


def n_vocab(where: str, config: Mapping[str, Any]) -> int:
    """Return the number of tokens: those that can be said, and a picture's. Raises ConversionError."""
    return read_text(where, config).n_vocab + 1


def convert_mllama(
    source: Source, config: Mapping[str, Any], processor: Mapping[str, Any], n_kept: int
) -> tuple[Part, Part]:
    """Return metadata and tensors of the text file and of the mmproj. Raises ConversionError."""
    text, looks = read_text(source.where, config), (config.get("text_config") or {}).get("cross_attention_layers")
    looks, vision = LOOKS if looks is None else looks, {**VISION, **(config.get("vision_config") or {})}
    _check(source.where, vision, processor)
    keys = {key.replace("llama.", "mllama.", 1): value for key, value in text.metadata.items()}
    keys |= {"general.architecture": "mllama", "mllama.attention.cross_attention_layers": list(looks)}
    parts = (
        (keys, _text_tensors(source, text, looks)),
        (_metadata(vision, text.width), _tower_tensors(source, vision, text.width)),
    )
    source.finish(())
    return parts


def _check(where: str, c: Mapping[str, Any], processor: Mapping[str, Any]) -> None:
    if c["hidden_act"] != "gelu":
        raise ConversionError(where, "vision_config.hidden_act", f"{c['hidden_act']!r} is not supported")
    for name, values in CLIP.items():
        if not np.allclose(processor.get(name, values), values, atol=1e-6):
            raise ConversionError(where, name, "is not CLIP's, and a GGUF file of this family has no place for it")
    size = (processor.get("size") or {}).get("height", c["image_size"])
    for name, found, wanted in (
        ("size", size, c["image_size"]), ("max_image_tiles", processor.get("max_image_tiles"), c["max_num_tiles"]),
    ):  # fmt: skip
        if found not in (None, wanted):
            raise ConversionError(where, name, f"{found} for the processor, {wanted} for the model")


def _text_tensors(source: Source, s: TextShape, looks: list[int]) -> dict[str, StoredTensor]:
    D, V, name = s.width, s.n_vocab, "language_model"
    tensors = {
        "token_embd.weight": source.take(f"{name}.embed_tokens.weight", (V + NEW_ROWS, D)),
        "output_norm.weight": source.take(f"{name}.norm.weight", (D,)),
        "output.weight": source.take("lm_head.weight", (V, D)),
    }
    if s.rope_divisors is not None:
        divisors = s.rope_divisors
        tensors["rope_freqs.weight"] = StoredTensor(divisors.shape, lambda: divisors)
    for i in range(s.n_layer):
        block = _look if i in looks else text_block
        tensors |= block(source, f"{name}.layers.{i}", f"blk.{i}", s)
    return tensors


def _look(source: Source, name: str, to: str, s: TextShape) -> dict[str, StoredTensor]:
    D, F, Q, KV = s.width, s.mlp_width, s.n_head * s.head_size, s.n_head_kv * s.head_size
    cross = {"q_proj": (Q, D), "k_proj": (KV, D), "v_proj": (KV, D), "o_proj": (D, Q)}
    cross |= {"q_norm": (s.head_size,), "k_norm": (s.head_size,)}  # type: ignore[dict-item]
    mlp = {"gate": (F, D), "up": (F, D), "down": (D, F)}
    return {
        f"{to}.attn_norm.weight": source.take(f"{name}.input_layernorm.weight", (D,)),
        f"{to}.ffn_norm.weight": source.take(f"{name}.post_attention_layernorm.weight", (D,)),
        **{f"{to}.cross_attn_{part}.weight": source.take(f"{name}.cross_attn.{part}.weight", shape)
           for part, shape in cross.items()},
        **{f"{to}.cross_attn_{gate}": source.take(f"{name}.cross_attn_{gate}", (1,))
           for gate in ("attn_gate", "mlp_gate")},
        **{f"{to}.ffn_{part}.weight": source.take(f"{name}.mlp.{part}_proj.weight", shape)
           for part, shape in mlp.items()},
    }  # fmt: skip


def _metadata(c: Mapping[str, Any], text_width: int) -> Metadata:
    v = "mllama.vision."
    return {
        "general.architecture": "mllama",
        "general.type": "mmproj",
        v + "block_count": c["num_hidden_layers"],
        v + "global.block_count": c["num_global_layers"],
        v + "intermediate_layers_indices": list(c["intermediate_layers_indices"]),
        v + "embedding_length": c["hidden_size"],
        v + "feed_forward_length": c["intermediate_size"],
        v + "attention.head_count": c["attention_heads"],
        v + "attention.layer_norm_epsilon": float(c["norm_eps"]),
        v + "image_size": c["image_size"],
        v + "patch_size": c["patch_size"],
        v + "max_num_tiles": c["max_num_tiles"],
        v + "num_channels": 3,
        v + "projection_dim": text_width,
    }


def _tower_tensors(source: Source, c: Mapping[str, Any], text_width: int) -> dict[str, StoredTensor]:
    D, P, K, name = c["hidden_size"], c["patch_size"], c["max_num_tiles"], "vision_tower"
    L = (c["image_size"] // P) ** 2 + 1
    grids = 1 + sum(rows * columns <= K for rows in range(1, K + 1) for columns in range(1, K + 1))
    positions, states = f"{name}.gated_positional_embedding", len(c["intermediate_layers_indices"])
    gate = source.take(f"{positions}.gate", (1,))
    tensors = {
        "v.class_embd": source.take(f"{name}.class_embedding", (D,)),
        "v.patch_embd.weight": source.take(f"{name}.patch_embedding.weight", (D, 3, P, P)),
        "v.position_embd.weight": source.take(f"{positions}.embedding", (L, D)),
        "v.position_embd.gate": StoredTensor((1,), lambda: 1 - np.tanh(gate.load())),
        "v.tile_position_embd.weight": source.take(f"{positions}.tile_embedding.weight", (grids, K * L * D)),
        "v.tile_position_embd.gate": StoredTensor((1,), lambda: np.tanh(gate.load())),
        "mm.0.weight": source.take("multi_modal_projector.weight", (text_width, (1 + states) * D)),
        "mm.0.bias": source.take("multi_modal_projector.bias", (text_width,)),
    }
    for place in ("pre", "post"):
        tiles, to = f"{name}.{place}_tile_positional_embedding", f"v.{place}_tile_position_embd"
        tensors[f"{to}.weight"] = source.take(f"{tiles}.embedding.weight", (grids, K * D))
        tensors[f"{to}.gate"] = source.take(f"{tiles}.gate", (1,), np.tanh)
        for part in ("weight", "bias"):
            tensors[f"v.{place}_ln.{part}"] = source.take(f"{name}.layernorm_{place}.{part}", (D,))
    for i in range(c["num_hidden_layers"]):
        tensors |= _tower_block(source, f"{name}.transformer.layers.{i}", f"v.blk.{i}", D, c["intermediate_size"])
    for i in range(c["num_global_layers"]):
        theirs, to = f"{name}.global_transformer.layers.{i}", f"v.global.blk.{i}"
        tensors |= _tower_block(source, theirs, to, D, c["intermediate_size"])
        tensors[f"{to}.attn_gate"] = source.take(f"{theirs}.gate_attn", (1,), np.tanh)
        tensors[f"{to}.ffn_gate"] = source.take(f"{theirs}.gate_ffn", (1,), np.tanh)
    return tensors


def _tower_block(source: Source, name: str, to: str, D: int, F: int) -> dict[str, StoredTensor]:
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "input_layernorm.weight": ("attn_norm.weight", (D,)),
        "input_layernorm.bias": ("attn_norm.bias", (D,)),
        "post_attention_layernorm.weight": ("ffn_norm.weight", (D,)),
        "post_attention_layernorm.bias": ("ffn_norm.bias", (D,)),
        **{f"self_attn.{part}_proj.weight": (f"attn_{part}.weight", (D, D)) for part in "qkv"},
        "self_attn.o_proj.weight": ("attn_output.weight", (D, D)),
        "mlp.fc1.weight": ("ffn_up.weight", (F, D)),
        "mlp.fc1.bias": ("ffn_up.bias", (F,)),
        "mlp.fc2.weight": ("ffn_down.weight", (D, F)),
        "mlp.fc2.bias": ("ffn_down.bias", (D,)),
    }
    return {f"{to}.{ours}": source.take(f"{name}.{theirs}", shape) for theirs, (ours, shape) in shapes.items()}
